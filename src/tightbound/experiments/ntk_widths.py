"""An angle on the circle, by networks of growing width (McNamara, Loper & Regier 2024, figure 1).

Section 5.1 of the paper: theta ~ U[0, 2 pi), e ~ N(0, 0.5^2), x = (cos, sin)(theta + e), q von
Mises. The best von Mises function is linear, f*(x) = kappa* x with I_1(kappa*) / I_0(kappa*) =
exp(-1/8), so that the distance to the global optimum is known. The same networks linearised around
their start show what the theory describes.
"""

from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import scipy.optimize
import scipy.special as sp
from jaxtyping import Float

from .._numerics import x64
from .._types import Array
from ..amortised import encoders, heads
from ..amortised.tangent_kernel import tangent_kernel
from ..families import Conditional, Scaling
from .result import Cell, Claim, Result, Table, agrees, below, number, numbers
from .training import train

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE = "McNamara et al. 2024, fig. 1; the optimum by its moment equation"
SD = 0.5  # radians, of the angle given x
SIZES = {  # widths, steps
    "fast": ((64, 1024), 10_000),
    "reference": ((64, 256, 1024, 4096), 200_000),
    "full": ((64, 128, 256, 512, 1024, 2048, 4096), 200_000),
}
_OFFSET = 1e-4  # added to the natural parameter, as published: at zero the direction is undefined
# Steps from which the claims of a whole run are made; the narrow networks need that many.
_LONG = 50_000
_NARROWEST = 256  # the width from which on the optimum is reached in 200,000 steps


def _excess_of_length(kappa: float) -> float:
    """The mean resultant length of a von Mises less that of the data: zero at the best one."""
    return float(sp.ive(1, kappa) / sp.ive(0, kappa) - np.exp(-(SD**2) / 2))


# SciPy's types allow for a second form of the answer, which `full_output` would ask for.
KAPPA = cast(float, scipy.optimize.brentq(_excess_of_length, 0.1, 100))


def run(
    fast: bool = True,
    reference: bool = False,
    sizes: tuple[tuple[int, ...], int] | None = None,
) -> Result:
    """Train each width and its linearisation.

    Compare with the optimum, and the tangent kernel with its start.

    Arguments:
        fast: widths 64 and 1024, 10,000 steps (seconds); else the published seven and 200,000 steps
            (minutes).
        reference: four of the widths, all 200,000 steps.
        sizes: (widths, steps) of your own.
    """
    name = "reference" if reference else "fast" if fast else "full"
    widths, steps = SIZES[name] if sizes is None else sizes
    rows, curve = [], []
    with x64():
        theta, x = _draw(jr.key(7), 1000)
        best = float(_nll(KAPPA * x, theta))
        for width in widths:
            for linear in (False, True):
                row, path = _one(width, linear, steps, theta, x)
                rows.append({**row, "excess": path[-1][1] - best})
                curve += [
                    {"width": width, "linear": linear, "steps": n, "nll": nll} for n, nll in path
                ]
    tables = {
        "widths": rows,
        "curve": curve,
        "optimum": [{"best von Mises": best, "exact": _exact(theta, x)}],
    }
    return Result(
        "ntk-widths",
        _claims(rows, steps),
        tables,
        f"{name}: {steps:,} steps, widths {', '.join(map(str, widths))}.",
    )


def network(width: int, linear: bool = False) -> Conditional:
    """The published network at its start: no biases, output layer zero; in float32."""
    wide = encoders.WideReLU.make(2, 2, jr.key(11), width=width, bias=False, dtype=jnp.float32)
    encoder = encoders.Linearised.of(wide) if linear else wide
    return Conditional(
        encoder, heads.VonMises(), Scaling.none(np.zeros(2, np.float32), 1, np.float32)
    )


def _draw(key: jax.Array, n: int) -> tuple[Float[jax.Array, "n"], Float[jax.Array, "n 2"]]:
    """`n` angles and their data."""
    a, b = jr.split(key)
    theta = jr.uniform(a, (n,), jnp.float32, 0.0, 2 * jnp.pi)
    angle = theta + jnp.float32(SD) * jr.normal(b, (n,), jnp.float32)
    return theta, jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def _nll(eta: Float[Array, "n 2"], theta: Float[Array, "n"]) -> Float[jax.Array, ""]:
    """Mean negative log-likelihood of the angles under von Mises with natural parameters eta."""
    return jnp.mean(jax.vmap(heads.VonMises().loss)(eta, theta[:, None]))


def _exact(theta: Float[Array, "n"], x: Float[Array, "n 2"]) -> float:
    """Mean negative log density of the exact posterior, a wrapped normal, at the test pairs.

    Two turns on either side are counted: the next one would add exp(-490).
    """
    away = np.asarray(theta) - np.arctan2(np.asarray(x)[:, 1], np.asarray(x)[:, 0])
    away = (away + np.pi) % (2 * np.pi) - np.pi
    wrapped = np.stack([-0.5 * ((away + 2 * np.pi * m) / SD) ** 2 for m in (-2, -1, 0, 1, 2)])
    return float(-np.mean(np.logaddexp.reduce(wrapped) - np.log(SD * np.sqrt(2 * np.pi))))


def _one(
    width: int, linear: bool, steps: int, theta: Float[Array, "n"], x: Float[Array, "n 2"]
) -> tuple[dict[str, Cell], list[tuple[int, float]]]:
    """One network: a row of the table, and (steps, test NLL) on the way."""
    start = network(width, linear)
    path: list[tuple[int, float]] = []

    def loss(q, _, key):
        angles, data = _draw(key, 16)
        eta = jax.vmap(q.encoder)(data) + jnp.float32(_OFFSET)
        return _nll(eta, angles)

    def look(found, n):
        eta = jax.vmap(found[0].encoder)(x) + jnp.float32(_OFFSET)
        path.append((n, float(_nll(eta, theta))))

    def rate(n):  # the published schedule: 1e-4 at first, 3.3e-5 after 200,000 steps
        return (1.0 / (1e4 + n / 10)).astype(jnp.float32)

    (q,) = train(
        loss, [start], jnp.zeros(1), jr.key(5), rate=rate, steps=steps, looks=10, look=look
    )
    eta, optimum = np.asarray(jax.vmap(q.encoder)(x[:100])), KAPPA * np.asarray(x[:100])
    row = {
        "width": width,
        "linear": linear,
        "nll": path[-1][1],
        "distance": float(np.linalg.norm(eta - optimum) / np.linalg.norm(optimum)),
        "drift": (
            None if linear else tangent_kernel(q, x[:100]).drift(tangent_kernel(start, x[:100]))
        ),
    }
    return row, path


def _claims(rows: Table, steps: int) -> list[Claim]:
    plain = {int(number(row, "width")): row for row in rows if not row["linear"]}
    linear = {int(number(row, "width")): row for row in rows if row["linear"]}
    narrow, wide = min(plain), max(plain)
    if steps < _LONG:
        early = f"excess NLL over the best von Mises, width {wide}, {steps:,} steps"
        late = f"minus the excess NLL at width {narrow}: not there yet"
        claims = [
            below(early, SOURCE, 0.02, number(plain[wide], "excess")),
            below(late, SOURCE, -0.05, -number(plain[narrow], "excess")),
        ]
    else:
        far = {w: row for w, row in plain.items() if w >= _NARROWEST}
        what = "|excess NLL| over the best von Mises, width"
        claims = [
            below(f"{what} {w}", SOURCE, 0.002, abs(number(row, "excess")))
            for w, row in far.items()
        ]
        what = "relative L2 distance to the global optimum f*, width"
        claims += [
            below(f"{what} {w}", SOURCE, 0.01, number(row, "distance")) for w, row in far.items()
        ]
    apart = {w: abs(number(linear[w], "nll") - number(plain[w], "nll")) for w in plain}
    what = "linearised run: distance in NLL at the largest width over that at the smallest"
    claims.append(below(what, SOURCE, 1.0, apart[wide] / apart[narrow]))
    # In the limit of wide networks the kernel moves by a share of width^(-1/2)
    drifts = numbers(list(plain.values()), "drift")
    slope = np.polyfit(np.log(list(plain)), np.log(drifts), 1)[0]
    claims.append(
        agrees("exponent of the kernel's drift in the width", SOURCE, -0.5, float(slope), 0.5)
    )
    return claims


def figures(result: Result) -> "dict[str, Figure]":
    """NLL by steps against the optimum, and the kernel's drift by width."""
    from .drawing import panels

    with panels(1, 2) as (figure, axes):
        _paths(axes[0, 0], result)
        _drifts(axes[0, 1], [row for row in result.tables["widths"] if not row["linear"]])
    return {"widths": figure}


def _paths(axes: "Axes", result: Result) -> None:
    from .drawing import COLOURS

    widths = sorted(set(numbers(result.tables["widths"], "width").astype(int)))
    for colour, width in zip(COLOURS * 2, widths, strict=False):
        for linear, style in ((False, "-"), (True, ":")):
            rows = [
                r for r in result.tables["curve"] if r["width"] == width and r["linear"] == linear
            ]
            label = f"{width}" + (" linearised" if linear else "")
            axes.plot(
                numbers(rows, "steps"), numbers(rows, "nll"), style, color=colour, label=label
            )
    optimum = number(result.tables["optimum"][0], "best von Mises")
    axes.axhline(optimum, color="black", lw=0.8, label="best von Mises")
    axes.set(xlabel="steps", ylabel="test NLL (nats)", title="Negative log-likelihood by width")
    axes.legend(fontsize=7)


def _drifts(axes: "Axes", rows: Table) -> None:
    from .drawing import COLOURS

    width, drift = numbers(rows, "width"), numbers(rows, "drift")
    axes.loglog(width, drift, "o-", color=COLOURS[0], label="measured")
    theory = drift[0] * (width / width[0]) ** -0.5
    axes.loglog(width, theory, "--", color="grey", label="width$^{-1/2}$")
    axes.set(xlabel="width", ylabel="|K - K$_0$| / |K$_0$|", title="Drift of the tangent kernel")
    axes.legend(fontsize=7)


__all__ = ["KAPPA", "figures", "network", "run"]
