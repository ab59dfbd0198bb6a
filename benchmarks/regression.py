"""Whether a change makes fits slower, or changes what they say: two checkouts in turns.

Usage: python benchmarks/regression.py --base PATH_OF_SRC [--head PATH_OF_SRC] [--pairs 7]
[--limit 1.05] [--cases PART ...]

Each process fits one case, cold and then warm (`regression_worker.py`). The processes of base and
head take turns, so that a busy machine slows both, and each ratio is head / base within one pair.
Seconds are not printed: they say something about the machine, a ratio says something about the
change. Exit 1 where a median ratio of seconds is above the limit or a verdict changed, 2 where a
case cannot be measured.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import posteriors
import tables
from regression_worker import ZOO

SOURCE = Path(__file__).resolve().parents[1] / "src"
WORKER = Path(__file__).with_name("regression_worker.py")
HEAD = (
    "case",
    "cold fit",
    "warm fit",
    "import",
    "process",
    "evaluations",
    "verdicts of base",
    "verdicts of head",
    "bits of q",
)


class ProcessError(RuntimeError):
    """A process that fits a case ended without an answer."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one process reports: seconds, gradients of fits and certificates, and answers."""

    imports: float
    cold: float
    warm: float
    evaluations: int
    verdicts: str  # of the cold fit and of the warm fit
    bits: str  # a digest of both q

    @property
    def process(self) -> float:
        """Seconds of import and both fits together.

        A pass of the garbage collector, or an import that was put off, may fall into one or another
        of them; what a user waits for is the sum.
        """
        return self.imports + self.cold + self.warm


Pairs = list[tuple[Measured, Measured]]  # base, head


def in_a_process(case: str, source: Path) -> Measured:
    """What a fresh process reports whose `tightbound` is that of `source`."""
    paths = [str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
    # A cache of compiled programs on disk would make every cold fit after the first one warm.
    changed = {"PYTHONPATH": os.pathsep.join(paths), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, str(WORKER), case, str(source)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **changed}, check=False
    )
    if done.returncode:
        last = " ".join(done.stderr.strip().splitlines()[-1:])
        raise ProcessError(
            f"{case}: the process of {source} ended with {done.returncode}. {last}".strip()
        )
    return Measured(**json.loads(done.stdout))


def ratios(pairs: Pairs, of: Callable[[Measured], float]) -> list[float]:
    """head / base of each pair."""
    return [of(head) / of(base) for base, head in pairs]


def spread(values: list[float]) -> str:
    """Median (least–most)."""
    return f"{median(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def verdicts(pairs: Pairs, side: int) -> str:
    """What one side said (0: base, 1: head); all that was said where its processes differ."""
    return " or ".join(sorted({pair[side].verdicts for pair in pairs}))


def row(case: str, pairs: Pairs) -> list[str]:
    """The line of a case in the table, in the order of HEAD."""
    equal = len({one.bits for pair in pairs for one in pair}) == 1
    return [
        case,
        spread(ratios(pairs, lambda one: one.cold)),
        spread(ratios(pairs, lambda one: one.warm)),
        spread(ratios(pairs, lambda one: one.imports)),
        spread(ratios(pairs, lambda one: one.process)),
        f"{median(ratios(pairs, lambda one: one.evaluations)):.3f}",
        verdicts(pairs, 0),
        verdicts(pairs, 1),
        "equal" if equal else "differ",
    ]


def faults(case: str, pairs: Pairs, limit: float) -> list[str]:
    """A sentence for each reason to exit with 1.

    More evaluations, slower imports and other bits are shown in the table, and are no reason.
    """
    medians = {
        "cold": median(ratios(pairs, lambda one: one.cold)),
        "warm": median(ratios(pairs, lambda one: one.warm)),
    }
    found = [
        f"{case}: the {kind} fit takes {ratio:.3f} times as long; the limit is {limit:.3f}."
        for kind, ratio in medians.items()
        if ratio > limit
    ]
    before, after = verdicts(pairs, 0), verdicts(pairs, 1)
    if before != after:
        found.append(f'{case}: base says "{before}"; head says "{after}".')
    return found


def arguments() -> argparse.Namespace:
    """The command line: two folders that hold the package, and at least one pair."""
    parser = argparse.ArgumentParser(description="Ratios of the fits of two checkouts, in turns.")
    parser.add_argument("--base", type=Path, required=True, metavar="PATH_OF_SRC")
    parser.add_argument("--head", type=Path, default=SOURCE, metavar="PATH_OF_SRC")
    parser.add_argument("--pairs", type=int, default=7, metavar="N", help="processes of each side")
    parser.add_argument("--limit", type=float, default=1.05, metavar="RATIO")
    parser.add_argument(
        "--cases", nargs="+", default=[], metavar="PART", help="only names that contain a PART"
    )
    parsed = parser.parse_args()
    parsed.base, parsed.head = parsed.base.resolve(), parsed.head.resolve()
    for name in ("base", "head"):
        if not (getattr(parsed, name) / "tightbound" / "__init__.py").is_file():
            parser.error(f"--{name} must be a folder that holds the package, such as old/src.")
    if parsed.pairs < 1:
        parser.error("--pairs must be at least 1.")
    return parsed


def measured(case: str, parsed: argparse.Namespace) -> Pairs:
    """The pairs of a case: base, head, base, head, and so on."""
    pairs = []
    for number in range(parsed.pairs):
        print(f"{case}: pair {number + 1} of {parsed.pairs}", file=sys.stderr, flush=True)
        pairs.append((in_a_process(case, parsed.base), in_a_process(case, parsed.head)))
    return pairs


def main() -> int:
    """Measures the chosen cases, prints the table and the faults."""
    parsed = arguments()
    every = [*ZOO, *posteriors.names(list(posteriors.FAST))]
    cases = [one for one in every if not parsed.cases or any(part in one for part in parsed.cases)]
    if not posteriors.FOLDER.exists():
        print(f"{posteriors.MISSING} Only the zoo is fitted.", file=sys.stderr)
    if not cases:
        print(f"No case has such a name; there are: {', '.join(every)}.", file=sys.stderr)
        return 2
    try:
        table = {case: measured(case, parsed) for case in cases}
    except ProcessError as error:
        print(error, file=sys.stderr)
        return 2
    print(tables.markdown(HEAD, [row(case, pairs) for case, pairs in table.items()]))
    found = [one for case, pairs in table.items() for one in faults(case, pairs, parsed.limit)]
    print("\n".join(found) or "No fit is above the limit, no verdict changed.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
