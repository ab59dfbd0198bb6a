"""One angle, known digits, a local and the global optimum (McNamara et al. 2024, figure 7).

McNamara, Loper & Regier, "Globally convergent variational inference", section 5.4: images G(z_i)
turned by a shared angle, z known, pixel noise 0.01; q = N(mu, 0.5^2). The angle is the only
unknown, so the posterior, the ELBO as a function of mu and both divergences are exact, by a grid.
ELBO ascent ends where its start lets it; forward KL on simulations finds the global optimum.
"""

import os
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from .._numerics import x64
from .._types import Array
from ..amortised import heads
from ..families import Conditional, Scaling
from .digits import (
    LATENT,
    NOISE,
    away,
    degrees,
    encoder_of_angle,
    images,
    rotate,
    train_decoder,
)
from .result import Claim, Result, Table, below, number, numbers
from .training import harmonic, train

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE = "McNamara et al. 2024, fig. 7; landscape and divergences on a grid of the angle"
TRUE = 260.0  # degrees, as published
SD = 0.5  # radians, of q, as published
GRID = 720  # angles: half a degree apart, a fiftieth of q's sd
_STARTS = 12  # of the ascents, 30 degrees apart, as published
SIZES = {  # images, steps, decoder's steps, angles per step
    "fast": (20, 1_500, 1_500, 8),
    "reference": (50, 6_000, 2_500, 8),
    "full": (100, 10_000, 5_000, 1),
}


def run(
    fast: bool = True,
    reference: bool = False,
    data: str | os.PathLike[str] | None = None,
    sizes: tuple[int, int, int, int] | None = None,
) -> Result:
    """The exact landscape, 12 ascents of the exact ELBO, and the forward-KL network.

    Arguments:
        fast: 20 images, 1,500 steps of 8 angles; else the published 100 and 10,000.
        reference: 50 images, 6,000 steps of 8 angles.
        data: the folder of MNIST; None takes scikit-learn's digits.
        sizes: (images, steps, decoder's steps, angles per step) of your own.
    """
    name = "reference" if reference else "fast" if fast else "full"
    count, steps, decoder_steps, batch = SIZES[name] if sizes is None else sizes
    with x64(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        pictures, source = images(data)
        decoder = train_decoder(pictures, decoder_steps)
        clean = jax.vmap(decoder)(jr.normal(jr.key(42), (count, LATENT), jnp.float32))
        x = rotate(clean, np.radians(TRUE)) + NOISE * jr.normal(
            jr.key(43), clean.shape, jnp.float32
        )
        angles, log_p = profile(clean, x)
        elbo = smoothed(log_p, SD)
        ends = [ascend(elbo, 360.0 * i / _STARTS) for i in range(_STARTS)]
        found, path = _forward_kl(clean, x, steps, batch, log_p)
    rows = [
        {"method": f"ELBO from {360 * i // _STARTS}", "mode": e, **_divergences(log_p, e)}
        for i, e in enumerate(ends)
    ]
    rows.append({"method": "forward KL", "mode": found, **_divergences(log_p, found)})
    landscape = [
        {"angle": float(a), "log_p": float(p), "elbo": float(b)}
        for a, p, b in zip(angles, log_p, elbo, strict=True)
    ]
    tables = {"ends": rows, "landscape": landscape, "path": path}
    note = f"{name}: {count} images from a decoder trained on {source}, {steps:,} steps."
    return Result("local-optimum", _claims(rows, maxima(elbo)), tables, note)


def profile(
    clean: Float[Array, "n side side"], x: Float[Array, "n side side"]
) -> tuple[Float[np.ndarray, "grid"], Float[np.ndarray, "grid"]]:
    """The grid of angles in degrees, and the log-likelihood on it.

    That is the log posterior up to a constant, the prior being uniform.
    """
    angles = np.arange(GRID) * 360.0 / GRID
    log_p = jax.jit(lambda a: -0.5 * jnp.sum(((x - rotate(clean, a)).astype(float) / NOISE) ** 2))
    return angles, np.array([float(log_p(a)) for a in np.radians(angles)])


def smoothed(log_p: Float[np.ndarray, "grid"], sd: float) -> Float[np.ndarray, "grid"]:
    """E log p under N(mu, sd^2), wrapped, for mu on the grid: the ELBO up to its entropy."""
    offsets = np.radians((np.arange(GRID) * 360.0 / GRID + 180) % 360 - 180)
    weights = np.exp(-0.5 * (offsets / sd) ** 2)
    weights /= weights.sum()
    # A correlation on the circle is a product of Fourier transforms.
    return np.real(np.fft.ifft(np.fft.fft(log_p) * np.conj(np.fft.fft(weights))))


def maxima(values: Float[np.ndarray, "grid"]) -> list[float]:
    """Local maxima on the circle, in degrees."""
    up = (values > np.roll(values, 1)) & (values >= np.roll(values, -1))
    return [float(a) for a in np.flatnonzero(up) * 360.0 / GRID]


def ascend(values: Float[np.ndarray, "grid"], start: float) -> float:
    """Where ascent on the grid ends from `start` degrees."""
    i = round(start * GRID / 360) % GRID
    while True:
        best = max((i - 1) % GRID, i, (i + 1) % GRID, key=lambda j: values[j])
        if best == i:
            return i * 360.0 / GRID
        i = best


def _divergences(log_p: Float[np.ndarray, "grid"], mode: float) -> dict[str, float]:
    """KL(p || q), KL(q || p) and -log q at the truth, nats, on the grid.

    q is N(mode, SD^2) wrapped, of which one turn on either side counts.
    """
    width = 2 * np.pi / GRID
    p = np.exp(log_p - log_p.max())
    log_density_p = log_p - log_p.max() - np.log(p.sum() * width)
    offsets = np.radians((np.arange(GRID) * 360.0 / GRID - mode + 180) % 360 - 180)
    turns = np.stack([-0.5 * ((offsets + 2 * np.pi * m) / SD) ** 2 for m in (-1, 0, 1)])
    log_q = np.logaddexp.reduce(turns) - np.log(SD * np.sqrt(2 * np.pi))
    p /= p.sum()
    q = np.exp(log_q) * width
    here = round(TRUE * GRID / 360)
    return {
        "KL(p || q)": float(np.sum(p * (log_density_p - log_q))),
        "KL(q || p)": float(np.sum(q * (log_q - log_density_p))),
        "-log q at the truth": float(-log_q[here]),
    }


def _forward_kl(
    clean: Float[Array, "n side side"],
    x: Float[Array, "n side side"],
    steps: int,
    batch: int,
    log_p: Float[np.ndarray, "grid"],
) -> tuple[float, list[dict[str, int | float]]]:
    """The mode of q at x, and the way there, by training on simulations.

    They have the same z and fresh noise.
    """
    encoder = encoder_of_angle(clean, 1)
    head = heads.Gaussian(1, "mean", sd=(SD,))
    start = Conditional(
        encoder, head, Scaling.none(np.zeros(clean.shape, np.float32), 1, np.float32)
    )
    path: list[dict[str, int | float]] = []

    def loss(q, _, key):
        def one(key):
            a, b = jr.split(key)
            angle = jr.uniform(a, (), jnp.float32, 0.0, 2 * jnp.pi)
            made = rotate(clean, angle) + NOISE * jr.normal(b, clean.shape, jnp.float32)
            return -q._log_prob_to_train(angle[None], made)

        return jnp.mean(jax.vmap(one)(jr.split(key, batch)))

    def look(found, n):
        mode = float(degrees(found[0].at(x).moments[0][0]))
        path.append({"steps": n, "mode": mode, **_divergences(log_p, mode)})

    # As published, with one angle a step, the rate falls at every twentieth of the run; with more
    # angles a step its noise is smaller, and it falls three times.
    rate = harmonic(1e-3, max(1, steps // (20 if batch == 1 else 3)))
    train(loss, [start], jnp.zeros(1), jr.key(6), rate=rate, steps=steps, looks=12, look=look)
    return path[-1]["mode"], path


def _claims(rows: Table, peaks: list[float]) -> list[Claim]:
    forward, ascents = rows[-1], rows[:-1]
    worst = max(ascents, key=lambda row: number(row, "KL(q || p)"))
    stuck = float(np.mean(away(numbers(ascents, "mode"), TRUE) > 20))
    off = float(away(number(forward, "mode"), TRUE))
    maxima = "minus the number of maxima of the exact ELBO"
    others = "minus the share of 12 ELBO ascents that end in another maximum"
    return [
        below(maxima, SOURCE, -1.5, -float(len(peaks))),
        below(others, SOURCE, -0.3, -stuck),
        below("forward KL: degrees from the truth", SOURCE, 20.0, off),
        *(
            below(
                f"{name}, forward KL less the worst ELBO end",
                SOURCE,
                0.0,
                number(forward, name) - number(worst, name),
            )
            for name in ("KL(p || q)", "KL(q || p)")
        ),
    ]


def figures(result: Result) -> "dict[str, Figure]":
    """The landscape with the ends of the ascents, and the way of forward KL."""
    from .drawing import COLOURS, panels

    with panels(1, 2) as (figure, axes):
        left, right = axes[0]
        _landscape(left, result)
        path = result.tables["path"]
        right.plot(numbers(path, "steps"), numbers(path, "mode"), "o-", color=COLOURS[2])
        right.axhline(TRUE, color="black", lw=0.8)
        right.set(
            xlabel="steps",
            ylabel="mode (degrees)",
            title="Forward KL on simulations",
            ylim=(0, 360),
        )
    return {"landscape": figure}


def _landscape(axes: "Axes", result: Result) -> None:
    from .drawing import COLOURS

    land = result.tables["landscape"]
    angle, top = numbers(land, "angle"), numbers(land, "log_p").max()
    log_p, elbo = ((numbers(land, name) - top) / 1e6 for name in ("log_p", "elbo"))
    axes.plot(angle, log_p, color="grey", lw=0.8, label="log posterior")
    axes.plot(angle, elbo, color=COLOURS[0], label="exact ELBO, sd 0.5")
    height = dict(zip(angle, elbo, strict=True))
    *ascents, forward = numbers(result.tables["ends"], "mode")
    heights = [height[end] for end in ascents]
    axes.plot(ascents, heights, "v", color=COLOURS[1], label="ends of 12 ascents")
    axes.axvline(forward, color=COLOURS[2], label="forward KL")
    axes.set(xlabel="angle (degrees)", ylabel="million nats", title="Landscape")
    axes.legend(fontsize=7)


__all__ = ["SIZES", "ascend", "figures", "maxima", "profile", "run", "smoothed"]
