"""The bracket of the log evidence on replicated posteriors whose evidence is known: Gaussian, Beta,
Gamma and Student-t.

Usage: python benchmarks/evidence.py [--replicates N] [--draws S] [--family NAME ...] [--out DIR]

Each replicate is a new data set (of the Student-t a new number of degrees of freedom and
dimensions), fitted by `tb.fit` with nothing chosen and checked with fresh draws. Two claims: the
bracket contains the known value in at least 95 % of the replicates, and it is at most 0.1 nats wide
wherever more than 2,000 of 10,000 draws are effective. Exit 1 where one fails.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import record

import tightbound as tb
from tightbound.targets import zoo
from tightbound.targets.zoo import Known

CONTAINED, WIDTH, EFFECTIVE = 0.95, 0.1, 0.2


def regression(rng: np.random.Generator) -> Known:
    return zoo.linear_regression(30, 3, seed=int(rng.integers(2**31)))


def proportion(rng: np.random.Generator) -> Known:
    return zoo.beta_bernoulli(rng.integers(0, 2, 12) * (rng.random(12) < rng.random()))


def rate(rng: np.random.Generator) -> Known:
    return zoo.gamma_poisson(rng.poisson(rng.gamma(2.0, 2.0), 8))


def heavy(rng: np.random.Generator) -> Known:
    return zoo.student_t(int(rng.integers(1, 4)), df=float(rng.choice([5.0, 10.0, 30.0])))


FAMILIES: dict[str, Callable[[np.random.Generator], Known]] = {
    "gaussian": regression,
    "beta": proportion,
    "gamma": rate,
    "student-t": heavy,
}


def measured(
    family: str, replicates: int, draws: int
) -> Iterator[tuple[Known, bool, float, float]]:
    """Each replicate, whether the bracket contains its evidence, the width in nats, and the share
    of effective draws.
    """
    rng = np.random.default_rng([len(family), replicates])
    for i in range(replicates):
        known = FAMILIES[family](rng)
        certificate = tb.check(tb.fit(known.target, key=i), key=1000 + i, draws=draws)
        lower, upper = certificate.log_evidence
        yield (
            known,
            lower <= known.log_evidence <= upper,
            upper - lower,
            certificate["khat"].detail.ess / draws,
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description="The bracket of the log evidence where the evidence is known."
    )
    parser.add_argument("--replicates", type=int, default=50, metavar="N", help="of each family")
    parser.add_argument("--draws", type=int, default=10_000, metavar="S")
    parser.add_argument("--family", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--out", type=Path, metavar="DIR", help="write evidence.json there")
    parsed = parser.parse_args()
    print(
        "| posterior | contained | widest where ESS > 20 % | median width | seconds |\n| --- | ---"
        " | --- | --- | --- |"
    )
    rows, inside, widest, total = [], 0, 0.0, 0
    for family in parsed.family:
        started = time.perf_counter()
        found = list(measured(family, parsed.replicates, parsed.draws))
        contained, widths = (
            np.array([c for _, c, _, _ in found]),
            np.array([w for _, _, w, _ in found]),
        )
        good = np.array([share > EFFECTIVE for _, _, _, share in found])
        inside, total = inside + int(contained.sum()), total + len(found)
        wide = float(widths[good].max(initial=0.0))
        widest = max(widest, wide)
        seconds, typical = time.perf_counter() - started, np.median(widths)
        rows.append(
            {
                "family": family,
                "replicates": len(found),
                "contained": int(contained.sum()),
                "effective": int(good.sum()),
                "widest": wide,
                "median": typical,
                "seconds": seconds,
            }
        )
        print(
            f"| {family} | {contained.sum()} of {len(found)} | {wide:.3f} | {typical:.4f} |"
            f" {seconds:.0f} |",
            flush=True,
        )
    met = inside >= CONTAINED * total and widest <= WIDTH
    print(
        f"\n{inside} of {total} contained (at least {CONTAINED:.0%}), widest {widest:.3f} nats (at"
        f" most {WIDTH}):",
        end=" ",
    )
    print("met." if met else "NOT met.")
    if parsed.out is not None:
        record.write(parsed.out / "evidence.json", rows)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
