"""Rows of runs -> tables in Markdown, and the lines that sum them up."""

import math
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

Row = dict[str, Any]

HEAD = (
    "posterior",
    "method",
    "seconds",
    "compiling",
    "gradients",
    "certificate",
    "max error",
    "rms error",
    "sd ratios",
    "k-hat",
    "verdict",
    "right",
)


def number(value: Any, form: str = ".3f") -> str:
    """A number in `form`, in scientific notation where it is huge; a dash where there is none."""
    if value is None:
        return "–"
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0e}" if abs(value) >= 1e4 else format(value, form)


def short(posterior: str) -> str:
    """`kidiq` of `kidiq-kidscore_interaction`, with what tells the two forms of eight schools
    apart.
    """
    base, _, model = posterior.partition("-")
    return (
        model.replace("eight_schools_", "eight schools, ")
        if base == "eight_schools"
        else base.removesuffix("_data")
    )


def count(value: Any) -> str:
    return "–" if value is None else f"{int(value):,}"


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def full_table(rows: list[Row]) -> str:
    """One line per cold run."""
    return markdown(HEAD, (_cells(row) for row in rows if row["cold"]))


def _cells(row: Row) -> list[str]:
    if "right" not in row:  # it failed before there was an answer
        return [row["posterior"], row["method"], *["–"] * 9, f"failed: {row['error']}"]
    return [
        row["posterior"],
        row["method"],
        number(row["seconds"], ".2f"),
        f"{row['compile_seconds'] / row['seconds']:.0%}",
        count(row["evaluations"]),
        count(row["certificate_evaluations"]),
        number(row["max_error"]) + (" (quantiles)" if row["by_quantiles"] else ""),
        number(row["rms_error"]),
        f"{number(row['sd_low'], '.2f')}–{number(row['sd_high'], '.2f')}",
        number(row.get("khat"), ".2f"),
        row["verdict"] or "–",
        _right(row),
    ]


def _right(row: Row) -> str:
    if false_pass(row):
        return "**false pass**"
    return "yes" if row.get("right") else "no"


def false_pass(row: Row) -> bool:
    return row.get("verdict") == "pass" and not row.get("right", False)


def seeds_table(rows: list[Row], method: str = "tightbound") -> str:
    """One line per posterior over all seeds of a method that gives verdicts."""
    head = (
        "posterior",
        "right",
        "pass",
        "caution",
        "fail",
        "max error",
        "sd ratios",
        "gradients: median, most",
        "certificate",
        "k-hat",
        "cold s",
        "warm s: fit, all",
        "doubts",
    )
    own = [row for row in rows if row["method"] == method]
    lines = []
    for name in dict.fromkeys(row["posterior"] for row in own):
        runs = [row for row in own if row["posterior"] == name]
        good = [row for row in runs if "right" in row]
        if not good:
            lines.append([name, f"0 of {len(runs)}", *["–"] * 10, f"failed: {runs[0]['error']}"])
            continue
        verdicts = [sum(row["verdict"] == v for row in good) for v in ("pass", "caution", "fail")]
        doubts = sorted({doubt for row in good for doubt in row["doubts"]})
        gradients = [row["evaluations"] for row in good]
        cold, warm = [row for row in good if row["cold"]], [row for row in good if not row["cold"]]
        lines.append(
            [
                name,
                f"{sum(row['right'] for row in good)} of {len(runs)}",
                *map(str, verdicts),
                spread(good, "max_error") + (" (quantiles)" if good[0]["by_quantiles"] else ""),
                f"{number(min(_floats(good, 'sd_low')), '.2f')}–"
                f"{number(max(_floats(good, 'sd_high')), '.2f')}",
                f"{count(median(gradients))}, {count(max(gradients))}",
                count(median(row["certificate_evaluations"] for row in good)),
                spread(good, "khat", ".2f"),
                spread(cold, "seconds", ".2f"),
                f"{middle(warm, 'fit_seconds')}, {middle(warm, 'seconds')}",
                ", ".join(doubts) or "none",
            ]
        )
    return markdown(head, lines)


def _floats(rows: list[Row], column: str) -> list[float]:
    return [float(row[column]) for row in rows]


def spread(rows: list[Row], column: str, form: str = ".3f") -> str:
    values = _floats(rows, column)
    if not values:
        return "–"
    low, high = number(min(values), form), number(max(values), form)
    return low if low == high else f"{low} to {high}"


def middle(rows: list[Row], column: str) -> str:
    return number(median(_floats(rows, column)), ".3f") if rows else "–"


def ratios(rows: list[Row], method: str, baseline: str) -> dict[str, float]:
    """Per posterior.

    Cold seconds of the baseline over those of the method, where both have an answer.
    """
    seconds = {
        (r["posterior"], r["method"]): r["seconds"] for r in rows if r["cold"] and "seconds" in r
    }
    both = [
        n
        for n in dict.fromkeys(row["posterior"] for row in rows)
        if {(n, method), (n, baseline)} <= seconds.keys()
    ]
    return {name: seconds[name, baseline] / seconds[name, method] for name in both}


def joined(records: list[list[Row]], baseline: str = "numpyro-full-10k") -> list[Row]:
    """Rows of several runs, each with its cold seconds relative to the baseline's of the same run
    and posterior.

    Where two runs have the same method, posterior and seed, the later run counts.
    """
    found: dict[tuple[str, str, int], Row] = {}
    for rows in records:
        unit = {
            row["posterior"]: row["seconds"]
            for row in rows
            if row["method"] == baseline and "seconds" in row
        }
        for row in rows:
            timed = row["cold"] and "seconds" in row and row["posterior"] in unit
            relative = (
                {"relative_seconds": row["seconds"] / unit[row["posterior"]]} if timed else {}
            )
            found[row["posterior"], row["method"], row["seed"]] = {**row, **relative}
    return list(found.values())


def conclusions(rows: list[Row], baseline: str) -> list[str]:
    """What the tables come to, one line each."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        line = (
            f"{method}: {_number_of(own, lambda r: r.get('right', False))} of {len(own)} runs right"
        )
        if any(row.get("verdict") for row in own):
            passes = _number_of(own, lambda r: r.get("verdict") == "pass")
            line += f", {passes} say pass, {_number_of(own, false_pass)} false passes"
        failed = _number_of(own, lambda r: "right" not in r)
        lines.append(line + (f", {failed} failed" if failed else ""))
    cold = ratios(rows, "tightbound", baseline)
    if cold:
        low, high = min(cold, key=lambda n: cold[n]), max(cold, key=lambda n: cold[n])
        lines.append(
            f"cold seconds, {baseline} : tightbound, median {median(cold.values()):.1f} over"
            f" {len(cold)} posteriors, from {cold[low]:.1f} ({low}) to {cold[high]:.1f} ({high})"
        )
    gradients = [
        row["evaluations"] for row in rows if row["method"] == "tightbound" and "right" in row
    ]
    if gradients:
        lines.append(
            f"gradients of a tightbound fit: median {count(median(gradients))}, most"
            f" {count(max(gradients))}"
        )
    return lines


def _number_of(rows: list[Row], holds: Callable[[Row], bool]) -> int:
    return sum(map(holds, rows))
