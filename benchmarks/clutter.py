"""The default's Gaussian against the best one on the clutter spec's data sets, and EP's evidence:
200 data sets per n.

    python benchmarks/clutter.py [--sets 200] [--sizes 5 20] [--fits]

`--fits` runs `tb.fit` with its ladder and certificate as well, some .1 s each. Seeds are those of
the clutter spec, section 5.1.
"""

import argparse
import time

import numpy as np

import tightbound as tb
from tightbound._numerics import host_algebra, x64
from tightbound.experiments.clutter_methods import best_gaussian, default_rung, draw, search
from tightbound.families import Gaussian
from tightbound.solvers import EP
from tightbound.targets import Clutter


def measure(n: int, sets: int, fits: bool) -> None:
    """Print excess KL of the first rung over the best Gaussian, KL of the fit, EP's evidence, and
    seconds.
    """
    rng = np.random.default_rng(1000 + n)
    rung, final, wide, evidence, verdicts, seconds = [], [], [], [], [], []
    for _ in range(sets):
        target = Clutter(draw(rng, n))
        with x64(), host_algebra():
            exact, best = target.exact(), best_gaussian(target)
            began = time.perf_counter()
            q = default_rung(target).q
            seconds.append(time.perf_counter() - began)
            propagated = search(target, EP(parallel=True), Gaussian.full(1))
        rung.append(exact.kl(q) - exact.kl(best))
        wide.append(best.cov[0, 0] > 5)
        evidence.append(abs(-propagated.trace.loss[-1] - exact.log_evidence))
        if fits:
            fit = tb.fit(target)
            final.append(exact.kl(fit.q))
            verdicts.append(str(fit.certificate.verdict))
    excess, wide = np.array(rung), np.array(wide)
    print(f"n = {n}, {sets} data sets, first rung: excess KL over the best Gaussian, nats")
    print(
        f"  mean {excess.mean():.2e}, median {np.median(excess):.2e}, largest {excess.max():.2e}, ",
        end="",
    )
    print(f"above .3: {100 * np.mean(excess > 0.3):.1f} %")
    if wide.any():
        print(f"  v / vg > 5: {wide.sum()} data sets, largest {excess[wide].max():.2e}")
    print(
        f"  median seconds {np.median(seconds):.3f}; median |log evidence error| of EP"
        f" {np.nanmedian(evidence):.2e}"
    )
    if fits:
        counts = {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}
        print(
            f"  tb.fit: KL(q || p) mean {np.mean(final):.2e}, largest {np.max(final):.2e}; verdicts"
            f" {counts}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--fits", action="store_true")
    arguments = parser.parse_args()
    for size in arguments.sizes:
        measure(size, arguments.sets, arguments.fits)
