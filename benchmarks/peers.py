"""tightbound against its peers on real posteriors with reference draws.

Usage: python benchmarks/peers.py [--posteriors PART ...] [--methods NAME ...] [--seeds N] [--fast]
[--out DIR]

Each method meets each posterior in a process of its own, so that the first call is cold; the
methods take turns on a posterior, so that a busy machine is unfair to all of them alike.
`posteriors.py` has the bar that decides what is right, `methods.py` what each method runs,
`tables.py` what is printed.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import posteriors
import record
import tables
from methods import BASELINE, METHODS

WORKER = Path(__file__).with_name("worker.py")
SOURCE = Path(__file__).resolve().parents[1] / "src"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="tightbound against its peers on real posteriors with reference draws."
    )
    parser.add_argument(
        "--posteriors", nargs="+", default=[], metavar="PART", help="only names that contain a PART"
    )
    every = list(METHODS)
    parser.add_argument(
        "--methods", nargs="+", default=every, choices=every, metavar="NAME", help=", ".join(every)
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="seeds 0 to N-1 for tightbound; the peers get 0",
    )
    parser.add_argument(
        "--fast", action="store_true", help=f"a few posteriors, tightbound and {BASELINE} only"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=900.0,
        metavar="S",
        help="seconds for a method on a posterior",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write runs.json and tables.md there"
    )
    parsed = parser.parse_args()
    if parsed.seeds < 1:
        parser.error("--seeds must be at least 1.")
    if parsed.fast:
        parsed.posteriors = parsed.posteriors or list(posteriors.FAST)
        parsed.methods = ["tightbound", BASELINE]
    return parsed


def run(method: str, name: str, seeds: int, timeout: float) -> list[tables.Row]:
    """The rows of a method on a posterior; whatever goes wrong in its process is a row too."""
    paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(WORKER), method, name, str(seeds)]
    error = "its process ended early"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )
        output, tail = done.stdout, done.stderr.strip().splitlines()[-1:]
        error += f" with {done.returncode}: {' '.join(tail)}"[:300]
    except subprocess.TimeoutExpired as late:
        output = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        error = f"no answer after {timeout:.0f} s"
    rows = [json.loads(line) for line in output.splitlines() if line.endswith("}")]
    blank = {"posterior": name, "method": method, "error": error}
    return rows + [{**blank, "seed": seed, "cold": seed == 0} for seed in range(len(rows), seeds)]


def line(row: tables.Row) -> str:
    head = f"{row['posterior'][:38]:38s} {row['method']:20s} seed {row['seed']} "
    if "right" not in row:
        return head + f"failed: {row['error']}"
    said = row["verdict"] or ""
    mark = "FALSE PASS" if tables.false_pass(row) else "right" if row["right"] else "wrong"
    low, high = (tables.number(row[side], ".2f") for side in ("sd_low", "sd_high"))
    errors = f"max error {tables.number(row['max_error'])}, sd {low} to {high}"
    return (
        head
        + f"{row['seconds']:7.2f} s {tables.count(row['evaluations']):>9s} gradients, {errors}:"
        f" {said} {mark}"
    )


def main() -> int:
    parsed = arguments()
    chosen = posteriors.names(parsed.posteriors) if posteriors.FOLDER.exists() else []
    if not chosen:
        known = ", ".join(posteriors.names([]))
        unknown = (
            f"No posterior has a name with {' or '.join(parsed.posteriors)}; there are: {known}."
        )
        print(unknown if known else posteriors.MISSING, file=sys.stderr)
        return 2
    rows: list[tables.Row] = []
    for name in chosen:
        for method in parsed.methods:
            seeds = parsed.seeds if method == "tightbound" else 1
            for row in run(method, name, seeds, parsed.timeout):
                rows.append(row)
                print(line(row), file=sys.stderr, flush=True)
        if parsed.out is not None:
            write(parsed.out, rows)
    print(report(rows))
    return 0


def report(rows: list[tables.Row]) -> str:
    parts = [tables.full_table(rows)]
    if any(row["method"] == "tightbound" and not row["cold"] for row in rows):
        parts.append(tables.seeds_table(rows))
    parts.append("\n".join(f"- {line}" for line in tables.conclusions(rows, BASELINE)))
    return "\n\n".join(parts)


def write(folder: Path, rows: list[tables.Row]) -> None:
    record.write(folder / "runs.json", rows)
    (folder / "tables.md").write_text(report(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
