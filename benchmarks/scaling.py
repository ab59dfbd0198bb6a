"""What a fit costs as the dimensions and the rows grow: gradients, seconds, and how far off the
answer is.

Usage: python benchmarks/scaling.py [--dims D ...] [--rows N ...] [--out DIR]

Dimensions: a chain of correlated Gaussians, whose means and sds are known (of a mean-field fit: the
best mean-field sds); full rank up to 300, low rank above, and mean-field. Rows: logistic regression
with ten coefficients against Newton's method on all rows. The certificate is not part of it; times
are cold, compilation included. `figures.py` draws what --out keeps.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record

import tightbound as tb
from tightbound.families import Gaussian
from tightbound.solvers import FixedDraws, NaturalGradient, Subsampled

_CORRELATED = 0.8
_COEFFICIENTS = 10


def chain(dim: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """z_1 ~ N(1, 1 / .36), z_{i+1} - 1 ~ N(.8 (z_i - 1), 1).

    The target, its sds, and the best mean-field sds.
    """

    def log_density(params):
        z = params["z"] - 1.0
        return (
            -0.5 * jnp.sum((z[1:] - _CORRELATED * z[:-1]) ** 2)
            - 0.5 * (1 - _CORRELATED**2) * z[0] ** 2
        )

    precision = np.full(dim, 1 + _CORRELATED**2)
    precision[[0, -1]] = 1.0
    return (
        tb.from_log_density(log_density, {"z": np.zeros(dim)}),
        np.full(dim, (1 - _CORRELATED**2) ** -0.5),
        precision**-0.5,
    )


def logistic(rows: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """The target, and mode and sds by Newton's method."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, _COEFFICIENTS))
    y = rng.random(rows) < 1 / (1 + np.exp(-x @ (0.3 * rng.standard_normal(_COEFFICIENTS))))

    def log_likelihood(params, data):
        logits = data["x"] @ params["beta"]
        return jnp.where(data["y"], -jax.nn.softplus(-logits), -jax.nn.softplus(logits))

    beta, precision = np.zeros(_COEFFICIENTS), np.eye(_COEFFICIENTS)
    for _ in range(10):
        p = 1 / (1 + np.exp(-x @ beta))
        precision = (x.T * (p * (1 - p))) @ x + np.eye(_COEFFICIENTS) / 25
        beta = beta + np.linalg.solve(precision, x.T @ (y - p) - beta / 25)
    example = {"beta": np.zeros(_COEFFICIENTS)}
    target = tb.from_rows(
        lambda q: -0.5 * jnp.sum(q["beta"] ** 2) / 25, log_likelihood, {"x": x, "y": y}, example
    )
    return target, beta, np.sqrt(np.diag(np.linalg.inv(precision)))


def row(
    what: str, size: int, fit: Any, seconds: float, mean: np.ndarray, sd: np.ndarray
) -> dict[str, Any]:
    off, ratio = np.abs((fit.q.mean - mean) / sd).max(), fit.q.sd / sd
    found = {
        "fit": what,
        "size": size,
        "gradients": fit.evaluations,
        "seconds": seconds,
        "mean error": off,
    }
    found |= {"least sd": ratio.min(), "largest sd": ratio.max(), "result": fit.result.name}
    print(
        ", ".join(f"{name} {shown(value)}" for name, value in found.items()),
        file=sys.stderr,
        flush=True,
    )
    return found


def timed(**how: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    fit = tb.fit(**how, progress=False)
    return fit, time.perf_counter() - started


def by_dimension(dims: list[int]) -> list[dict[str, Any]]:
    out = []
    for dim in dims:
        target, sd, flat_sd = chain(dim)
        if dim <= 300:
            out.append(
                row(
                    "full rank",
                    dim,
                    *timed(target=target, solver=NaturalGradient()),
                    np.ones(dim),
                    sd,
                )
            )
        else:
            out.append(
                row("low rank", dim, *timed(target=target, solver=FixedDraws()), np.ones(dim), sd)
            )
        flat = timed(target=target, q=Gaussian.diagonal(dim), solver=FixedDraws())
        out.append(row("mean field", dim, *flat, np.ones(dim), flat_sd))
    return out


def by_rows(rows: list[int]) -> list[dict[str, Any]]:
    out = []
    for count in rows:
        target, beta, sd = logistic(count)
        out.append(
            row("all rows", count, *timed(target=target, solver=NaturalGradient()), beta, sd)
        )
        if count >= 10_000:
            out.append(
                row("subsampled", count, *timed(target=target, solver=Subsampled()), beta, sd)
            )
    return out


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}\n\n| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for one in rows:
        print("| " + " | ".join(map(shown, one.values())) + " |")


def shown(value: Any) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of a fit as dimensions and rows grow.")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 10, 100, 1000, 10_000])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path, metavar="DIR", help="write scaling.json there")
    parsed = parser.parse_args()
    tables = {"dimensions": by_dimension(parsed.dims), "rows": by_rows(parsed.rows)}
    for label, rows in tables.items():
        show(f"By {label}", rows)
    if parsed.out is not None:
        record.write(
            parsed.out / "scaling.json",
            [{"by": label, **one} for label, rows in tables.items() for one in rows],
        )


if __name__ == "__main__":
    main()
