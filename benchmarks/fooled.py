"""`tb.fit` on targets built to fool it or its certificate: what it says, and whether that is true.

Usage: python benchmarks/fooled.py [--seeds 20] [--targets PART ...] [--out DIR]

An answer is right when every mean that `summary()` prints is within 0.1 sd of the truth and every
sd within 0.8 to 1.25 of it. A **wrong pass** is "pass" on an answer that is not right: the worst
thing that can happen here. It is an **unseen mode**, and counted apart, where the target has a mode
near which neither q nor any of the certificate's searches ended: the limit that its finding
`optima` states. Exit 1 where there is a wrong pass.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import record
import tables
from fools import FOOLS, LIMITS, MODES, SOUND

import tightbound as tb
from tightbound.targets.layout import flatten_values
from tightbound.targets.zoo import Known

GROUPS = {"well-behaved": SOUND, "built to fool": FOOLS, "out of reach": LIMITS}
MEAN, SD_LOW, SD_HIGH = 0.1, 0.8, 1.25
_QUADRATURE = 1e-3  # nats: how exactly the evidence of eight schools is known


def errors(fit: Any, known: Known) -> dict[str, Any]:
    """Largest error of a mean in true sds, and the sd ratios, of what the user reads."""
    names, mean = flatten_values(jax.tree.map(lambda leaf: np.asarray(leaf)[None], known.mean))
    _, sd = flatten_values(jax.tree.map(lambda leaf: np.asarray(leaf)[None], known.sd))
    table = fit.summary().loc[list(names)]
    error, ratio = (
        np.max(np.abs(table["mean"].to_numpy() - mean[0]) / sd[0]),
        table["sd"].to_numpy() / sd[0],
    )
    right = bool(error <= MEAN and ratio.min() >= SD_LOW and ratio.max() <= SD_HIGH)
    return {"max_error": error, "sd_low": ratio.min(), "sd_high": ratio.max(), "right": right}


def runs(seeds: int, parts: list[str]) -> Iterator[dict[str, Any]]:
    """One row per target and seed; the first seed of a target compiles for the next."""
    for group, targets in GROUPS.items():
        for name, make in targets.items():
            if parts and not any(part in name for part in parts):
                continue
            known = make()
            for seed in range(seeds):
                yield {"group": group, "target": name, "seed": seed, **one(name, known, seed)}


def unseen(name: str, fit: Any) -> bool:
    """Whether the target has a mode that no draw of q and no end of a search is near."""
    # A budget may have left the searches out.
    optima = fit.certificate.get("optima")
    ends = [*fit.q.draw(4000, 0)[0], *getattr(optima and optima.detail, "ends", ())]
    near = [
        np.min(np.linalg.norm(np.stack(ends) - place, axis=1)) < 3 * sd * len(place) ** 0.5
        for place, sd in MODES[name]
    ]
    return not all(near)


def one(name: str, known: Known, seed: int) -> dict[str, Any]:
    started = time.perf_counter()
    fit = tb.fit(known.target, key=seed, throw=False, progress=False)
    certificate = fit.certificate
    lower, upper = certificate.log_evidence
    score = errors(fit, known)
    seconds = time.perf_counter() - started
    return {
        "verdict": str(certificate.verdict.value),
        **score,
        "seconds": seconds,
        "unseen": name in MODES and not score["right"] and unseen(name, fit),
        "holds": bool(lower - _QUADRATURE <= known.log_evidence <= upper + _QUADRATURE),
        "width": upper - lower,
        "khat": certificate.khat,
        "family": type(fit.q).__name__,
        "rung": fit.rung,
        "result": fit.result.name,
        "evaluations": fit.evaluations,
        "certificate_evaluations": certificate.evaluations,
        "doubts": sorted(
            finding.name for finding in certificate.findings if finding.verdict != "pass"
        ),
    }


def table(rows: list[dict[str, Any]], groups: tuple[str, ...] = tuple(GROUPS)) -> str:
    """One line per target."""
    head = (
        "target",
        "right",
        "pass",
        "caution",
        "fail",
        "wrong passes",
        "passes with an unseen mode",
        "evidence in its bracket",
        "max error",
        "sd ratios",
        "family",
        "gradients",
        "s",
    )
    lines = []
    for name in dict.fromkeys(row["target"] for row in rows if row["group"] in groups):
        own = [row for row in rows if row["target"] == name]
        verdicts = [
            sum(row["verdict"] == verdict for row in own) for verdict in ("pass", "caution", "fail")
        ]
        families = sorted(
            {row["family"] for row in own},
            key=lambda family: -sum(row["family"] == family for row in own),
        )
        wrong, hidden = (
            sum(map(wrong_pass, own)),
            sum(row["unseen"] and row["verdict"] == "pass" for row in own),
        )
        low, high = (
            min(float(row["sd_low"]) for row in own),
            max(float(row["sd_high"]) for row in own),
        )
        lines.append(
            [
                name,
                f"{sum(row['right'] for row in own)} of {len(own)}",
                *map(str, verdicts),
                f"**{wrong}**" if wrong else "0",
                str(hidden),
                f"{sum(row['holds'] for row in own)} of {len(own)}",
                tables.spread(own, "max_error"),
                f"{tables.number(low, '.2f')}–{tables.number(high, '.2f')}",
                ", ".join(families),
                tables.count(median(row["evaluations"] for row in own)),
                tables.middle(own, "seconds"),
            ]
        )
    return tables.markdown(head, lines)


def wrong_pass(row: dict[str, Any]) -> bool:
    return tables.false_pass(row) and not row["unseen"]


def conclusions(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        passes, wrong = sum(row["verdict"] == "pass" for row in own), sum(map(wrong_pass, own))
        hidden = sum(row["unseen"] and row["verdict"] == "pass" for row in own)
        right, sound = (
            sum(row["right"] for row in own),
            [row for row in own if row["verdict"] == "pass" and not row["unseen"]],
        )
        lines.append(
            f"{group}: {len(own)} fits of {len({row['target'] for row in own})} targets, {right}"
            f" right, {passes} say pass, **{wrong} wrong passes**, {hidden} with a mode that no"
            " search reached; the bracket of the other passes holds the evidence in"
            f" {sum(row['holds'] for row in sound)} of {len(sound)}"
        )
    return lines


def report(rows: list[dict[str, Any]]) -> str:
    return table(rows) + "\n\n" + "\n".join(f"- {line}" for line in conclusions(rows))


def main() -> int:
    parser = argparse.ArgumentParser(description="The default fit on targets built to fool it.")
    parser.add_argument("--seeds", type=int, default=20, metavar="N")
    parser.add_argument(
        "--targets", nargs="+", default=[], metavar="PART", help="only names that contain a PART"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write fooled.json and fooled.md there"
    )
    parsed = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for row in runs(parsed.seeds, parsed.targets):
        rows.append(row)
        mark = (
            "WRONG PASS"
            if wrong_pass(row)
            else "unseen"
            if row["unseen"]
            else "right"
            if row["right"]
            else "wrong"
        )
        head = (
            f"{row['target'][:44]:44s} seed {row['seed']:2d} {row['seconds']:6.2f} s"
            f" {row['verdict']:8s}{mark:10s}"
        )
        said = (
            f"error {row['max_error']:.3f} sd {row['sd_low']:.2f}-{row['sd_high']:.2f}"
            f" {row['family']}"
        )
        print(f"{head} {said} {' '.join(row['doubts'])}", file=sys.stderr, flush=True)
    if parsed.out is not None:
        record.write(parsed.out / "fooled.json", rows)
        (parsed.out / "fooled.md").write_text(report(rows) + "\n", encoding="utf-8")
    print(report(rows))
    return int(any(map(wrong_pass, rows)))


if __name__ == "__main__":
    sys.exit(main())
