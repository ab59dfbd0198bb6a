"""What share of the speed of bare gradients a fit reaches.

Usage: python benchmarks/raw_speed.py [--posteriors PART ...] [--rounds 3] [--out DIR]

The bare gradient is `jit(vmap(value_and_grad(log density)))` on a batch of points drawn from the
fit, at the batch size that is fastest per point. A warm fit (same target, another key) and the bare
gradient take turns in one process, so that a busy machine slows both. Share = gradients of the fit
x seconds of one bare gradient / seconds of the fit. The rest is the algebra and the decisions
between the batches, and batches smaller or slower than the best.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import posteriors
import record
import tables

import tightbound as tb

SIZES = (1, 8, 64, 512)
_LEAST = 0.02  # seconds that a timing must last, to be worth something


def per_point(gradient: Callable[[Any], Any], z: Any) -> float:
    """Seconds per point of a batch `[n, d]`, compiled before."""
    calls, spent = 0, 0.0
    started = time.perf_counter()
    while spent < _LEAST:
        jax.block_until_ready(gradient(z))
        calls, spent = calls + 1, time.perf_counter() - started
    return spent / calls / len(z)


def measured(name: str, rounds: int) -> dict[str, Any]:
    models, numpyro_models = posteriors.modules()
    data = models.POSTERIORS[name].load(str(posteriors.FOLDER))
    target = tb.from_numpyro(numpyro_models.MODELS[name], data)
    cold = tb.fit(target, key=0, progress=False)
    draws = jnp.asarray(cold.q.draw(max(SIZES), 0)[0])
    gradient = jax.jit(jax.vmap(jax.value_and_grad(target.log_density)))
    batches = {size: draws[:size] for size in SIZES}
    for z in batches.values():
        jax.block_until_ready(gradient(z))
    shares, fits = [], []
    for key in range(1, rounds + 1):
        fit = tb.fit(target, key=key, progress=False)
        bare = {size: per_point(gradient, z) for size, z in batches.items()}
        shares.append(fit.evaluations * min(bare.values()) / fit.seconds)
        fits.append(fit)
    best = min(bare, key=lambda size: bare[size])
    return {
        "posterior": name,
        "dim": target.dim,
        "microseconds": 1e6 * bare[best],
        "batch": best,
        "share": median(shares),
        "gradients": median(fit.evaluations for fit in fits),
        "seconds": median(fit.seconds for fit in fits),
    }


def table(rows: list[dict[str, Any]]) -> str:
    head = (
        "posterior",
        "d",
        "one bare gradient, µs",
        "fastest batch",
        "gradients",
        "warm fit, s",
        "share of raw speed",
    )
    lines = [
        [
            row["posterior"],
            str(row["dim"]),
            tables.number(row["microseconds"], ".1f"),
            str(row["batch"]),
            tables.count(row["gradients"]),
            tables.number(row["seconds"], ".3f"),
            f"{row['share']:.0%}",
        ]
        for row in rows
    ]
    return tables.markdown(head, lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="The share of the speed of bare gradients that a fit reaches."
    )
    parser.add_argument(
        "--posteriors", nargs="+", default=[], metavar="PART", help="only names that contain a PART"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write raw_speed.json there")
    parsed = parser.parse_args()
    if not posteriors.FOLDER.exists():
        print(posteriors.MISSING, file=sys.stderr)
        return 2
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    rows = []
    for name in posteriors.names(parsed.posteriors):
        rows.append(measured(name, parsed.rounds))
        print(rows[-1], file=sys.stderr, flush=True)
        if parsed.out is not None:
            record.write(parsed.out / "raw_speed.json", rows)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
