"""Puts the tables of the records into docs/benchmarks.md, so that no number there is copied by
hand.

Usage: python benchmarks/page.py [--records build/bench] [--page docs/benchmarks.md]

Each part of the page between `<!-- measured: NAME -->` and `<!-- end -->` is replaced by what
PARTS[NAME] says of the records; the rest is prose. Where a record is missing its part stays as it
is, and that is said.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import evidence
import fooled
import raw_speed
import record
import tables
from figures import STYLE
from methods import BASELINE

Rows = list[dict[str, Any]]

UNSCALED = (
    "diamonds",
    "earnings",
    "kidiq",
    "sblrc",
)  # regressions on predictors in raw units: unkind to Adam
_PART = re.compile(r"(<!-- measured: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def runs(records: Path, *names: str) -> Rows:
    return tables.joined([rows for name in names for rows in record.runs(records, name)])


def bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def short(rows: Rows) -> Rows:
    return [{**row, "posterior": tables.short(row["posterior"])} for row in rows]


def seeds(records: Path) -> str:
    rows = short(runs(records, "seeds"))
    return tables.seeds_table(rows) + "\n\n" + bullets(tables.conclusions(rows, BASELINE))


def race(records: Path) -> str:
    """Cold, method beside method."""
    rows = short(runs(records, "race"))
    cold = {(row["method"], row["posterior"]): row for row in rows if row["cold"]}
    times = tables.ratios(rows, "tightbound", BASELINE)
    head = (
        "posterior",
        "tightbound, s",
        "NumPyro, s",
        "ratio",
        "compiling: ours, theirs",
        "gradients with certificate",
        "NumPyro's",
        "largest error: tightbound",
        "NumPyro",
        "sd ratios: tightbound",
        "NumPyro",
        "verdict",
    )
    lines = []
    for name, ratio in times.items():
        a, b = cold["tightbound", name], cold[BASELINE, name]
        lines.append(
            [
                name,
                tables.number(a["seconds"], ".2f"),
                tables.number(b["seconds"], ".2f"),
                f"{ratio:.1f}",
                ", ".join(f"{row['compile_seconds'] / row['seconds']:.0%}" for row in (a, b)),
                tables.count(a["evaluations"] + a["certificate_evaluations"]),
                tables.count(b["evaluations"]),
                tables.number(a["max_error"]),
                tables.number(b["max_error"]),
                *(
                    f"{tables.number(row['sd_low'], '.2f')}–{tables.number(row['sd_high'], '.2f')}"
                    for row in (a, b)
                ),
                a["verdict"],
            ]
        )
    better = [
        cold[BASELINE, name]["rms_error"] / cold["tightbound", name]["rms_error"] for name in times
    ]
    said = (
        f"rms error, NumPyro's over tightbound's: median {median(better):.0f}, least"
        f" {min(better):.1f}"
    )
    return (
        tables.markdown(head, lines) + "\n\n" + bullets([*tables.conclusions(rows, BASELINE), said])
    )


def peers(records: Path) -> str:
    """One line per method over all posteriors."""
    rows = runs(records, "peers", "race")
    head = (
        "method",
        "right",
        "no answer",
        "largest error: median, worst",
        "median where scales are even",
        "gradients: median",
        "cold seconds over NumPyro full rank's, median",
        "k-hat above 0.7",
    )
    lines = []
    for method, (label, *_) in STYLE.items():
        own = [row for row in rows if row["method"] == method and row["cold"]]
        good = [row for row in own if "max_error" in row]
        if not good:
            continue
        errors = sorted(finite_or_infinite(row) for row in good)
        even = [
            finite_or_infinite(row)
            for row in good
            if tables.short(row["posterior"]) not in UNSCALED
        ]
        spent = [
            row["evaluations"] + (row["certificate_evaluations"] or 0)
            for row in good
            if row["evaluations"]
        ]
        khats = [float(row["khat"]) for row in good if row.get("khat") is not None]
        relative = [row["relative_seconds"] for row in good if "relative_seconds" in row]
        lines.append(
            [
                label,
                f"{sum(row['right'] for row in good)} of {len(own)}",
                str(len(own) - len(good)),
                f"{figure(median(errors))}, {figure(errors[-1])}",
                figure(median(even)),
                tables.count(median(spent)) if spent else "–",
                f"{median(relative):.2f}" if relative else "–",
                f"{sum(not khat <= 0.7 for khat in khats)} of {len(khats)}" if khats else "–",
            ]
        )
    return tables.markdown(head, lines)


def finite_or_infinite(row: dict[str, Any]) -> float:
    """The largest error, where a missing one (NaN) counts as infinite."""
    error = float(row["max_error"])
    return math.inf if math.isnan(error) else error


def errors(records: Path) -> str:
    """Largest error of a mean, posterior by method; bold where the answer is right."""
    rows = runs(records, "peers", "race")
    found = {(row["posterior"], row["method"]): row for row in rows if row["cold"]}
    methods = [method for method in STYLE if any(row["method"] == method for row in rows)]
    lines = []
    for name in sorted({row["posterior"] for row in rows}):
        cells = [_error(found.get((name, method))) for method in methods]
        lines.append([tables.short(name), *cells])
    return tables.markdown(["posterior", *(STYLE[method][0] for method in methods)], lines)


def figure(value: Any) -> str:
    return tables.number(value, ".3f" if float(value) < 1 else ".1f")


def _error(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "max_error" not in row:
        return "late" if "no answer after" in row["error"] else "failed"
    text = figure(row["max_error"])
    return f"**{text}**" if row["right"] else text


def fooled_part(records: Path) -> str:
    return fooled.report(record.read(records / "fooled.json")[0])


def evidence_part(records: Path) -> str:
    head = (
        "posterior",
        "bracket holds the evidence",
        "ESS above 2,000",
        "widest of those, nats",
        "median, nats",
    )
    rows = record.read(records / "evidence.json")[0]
    lines = [
        [
            row["family"],
            f"{row['contained']} of {row['replicates']}",
            str(row["effective"]),
            tables.number(row["widest"]),
            tables.number(row["median"], ".4f"),
        ]
        for row in rows
    ]
    inside, total = sum(row["contained"] for row in rows), sum(row["replicates"] for row in rows)
    goal = (
        f"goal: {evidence.CONTAINED:.0%} and at most {evidence.WIDTH} nats where"
        f" {evidence.EFFECTIVE:.0%} are effective"
    )
    said = (
        f"{inside} of {total} contained, widest {max(row['widest'] for row in rows):.3f} nats"
        f" ({goal})"
    )
    return tables.markdown(head, lines) + "\n\n" + bullets([said])


def raw_part(records: Path) -> str:
    return raw_speed.table(short(record.read(records / "raw_speed.json")[0]))


def scaling_part(records: Path) -> str:
    head = (
        "grows",
        "fit",
        "size",
        "gradients",
        "cold seconds",
        "largest error of a mean, sds",
        "sd ratios",
        "result",
    )
    lines = [
        [
            row["by"],
            row["fit"],
            tables.count(row["size"]),
            tables.count(row["gradients"]),
            tables.number(row["seconds"], ".2f"),
            tables.number(row["mean error"], ".4f"),
            f"{tables.number(row['least sd'], '.2f')}–{tables.number(row['largest sd'], '.2f')}",
            row["result"],
        ]
        for row in record.read(records / "scaling.json")[0]
    ]
    return tables.markdown(head, lines)


def commits(records: Path) -> str:
    """Which records belong to which commit."""
    found: dict[tuple[str, ...], list[str]] = {}
    for path in sorted(records.glob("**/*.json")):
        _, made = record.read(path)
        commit = f"`{made['commit']}`" + (" and uncommitted changes" if made["differs"] else "")
        versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
        where = f"{path.parent.name}/" if path.parent != records else ""
        found.setdefault((commit, made["day"], versions), []).append(f"`{where}{path.name}`")
    head = ("commit", "day", "libraries", "records")
    return tables.markdown(head, ([*made, ", ".join(names)] for made, names in found.items()))


# name -> the part, and the records that it needs
PARTS: dict[str, tuple[Callable[[Path], str], tuple[str, ...]]] = {
    "seeds": (seeds, ("seeds",)),
    "race": (race, ("race",)),
    "peers": (peers, ("peers", "race")),
    "errors": (errors, ("peers", "race")),
    "fooled": (fooled_part, ("fooled.json",)),
    "evidence": (evidence_part, ("evidence.json",)),
    "raw-speed": (raw_part, ("raw_speed.json",)),
    "scaling": (scaling_part, ("scaling.json",)),
    "commits": (commits, ()),
}


def filled(text: str, records: Path) -> str:
    """The page with its measured parts renewed."""

    def part(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        if name not in PARTS:
            sys.exit(f"The page wants a part {name!r}; there are: {', '.join(PARTS)}.")
        write, needs = PARTS[name]
        if missing := record.missing(records, needs):
            print(
                f"{name} stays as it is: {', '.join(missing)} is not in {records}.", file=sys.stderr
            )
            return found.group()
        return f"{begin}\n{write(records)}\n\n{end}"

    return _PART.sub(part, text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Puts the measured tables into docs/benchmarks.md."
    )
    parser.add_argument("--records", type=Path, default=record.BUILD, metavar="DIR")
    parser.add_argument(
        "--page", type=Path, default=record.ROOT / "docs" / "benchmarks.md", metavar="FILE"
    )
    parsed = parser.parse_args()
    parsed.page.write_text(
        filled(parsed.page.read_text(encoding="utf-8"), parsed.records), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
