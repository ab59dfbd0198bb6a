"""McNamara, Loper & Regier 2024, section 5.4 and figure 7: one angle, known digits, a local and the
global optimum.

Images G(z_i) turned by a shared angle, z known, pixel noise 0.01; q = N(mu, 0.5^2). The angle is
the only unknown, so the posterior, the ELBO as a function of mu and both divergences are exact, by
a grid. ELBO ascent ends where its start lets it; forward KL on simulations finds the global
optimum.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._numerics import x64
from ..amortised import encoders, heads
from ..families import Conditional, Scaling
from .digits import NOISE, away, degrees, images, rotate, train_decoder
from .result import Result, below
from .training import harmonic, train

SOURCE = "McNamara et al. 2024, fig. 7; forward-KL spec, section 2.4"
TRUE = 260.0
SD = 0.5
GRID = 720
SIZES = {  # images, steps, decoder's steps, angles per step
    "fast": (20, 1_500, 1_500, 8),
    "reference": (50, 6_000, 2_500, 8),
    "full": (100, 10_000, 5_000, 1),
}


def run(fast: bool = True, reference: bool = False, data: Any = None, sizes: Any = None) -> Result:
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
        clean = jax.vmap(decoder)(jr.normal(jr.key(42), (count, 16), jnp.float32))
        x = rotate(clean, np.radians(TRUE)) + NOISE * jr.normal(
            jr.key(43), clean.shape, jnp.float32
        )
        angles, log_p = profile(clean, x)
        elbo = smoothed(log_p, SD)
        ends = [ascend(elbo, 30.0 * i) for i in range(12)]
        found, path = _forward_kl(clean, x, steps, batch, log_p)
    rows = [
        {"method": f"ELBO from {30 * i}", "mode": e, **_divergences(log_p, e)}
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


def profile(clean: Any, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """The grid of angles in degrees, and the log-likelihood on it.

    The log posterior up to a constant.
    """
    angles = np.arange(GRID) * 360.0 / GRID
    log_p = jax.jit(lambda a: -0.5 * jnp.sum(((x - rotate(clean, a)).astype(float) / NOISE) ** 2))
    return angles, np.array([float(log_p(a)) for a in np.radians(angles)])


def smoothed(log_p: np.ndarray, sd: float) -> np.ndarray:
    """E log p under N(mu, sd^2), wrapped, for mu on the grid: the ELBO up to its constant entropy."""
    offsets = np.radians((np.arange(GRID) * 360.0 / GRID + 180) % 360 - 180)
    weights = np.exp(-0.5 * (offsets / sd) ** 2)
    weights /= weights.sum()
    return np.real(np.fft.ifft(np.fft.fft(log_p) * np.conj(np.fft.fft(weights))))


def maxima(values: np.ndarray) -> list[float]:
    """Local maxima on the circle, in degrees."""
    up = (values > np.roll(values, 1)) & (values >= np.roll(values, -1))
    return [float(a) for a in np.flatnonzero(up) * 360.0 / GRID]


def ascend(values: np.ndarray, start: float) -> float:
    """Where ascent on the grid ends from `start` degrees."""
    i = round(start * GRID / 360) % GRID
    while True:
        best = max((i - 1) % GRID, i, (i + 1) % GRID, key=lambda j: values[j])
        if best == i:
            return i * 360.0 / GRID
        i = best


def _divergences(log_p: np.ndarray, mode: float) -> dict[str, float]:
    """KL(p || q), KL(q || p) and -log q at the truth, nats, for q = N(mode, SD^2) wrapped, on the
    grid.
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
    clean: Any, x: Any, steps: int, batch: int, log_p: np.ndarray
) -> tuple[float, list[Any]]:
    """The mode of q at x after training on simulations with the same z and fresh noise, and the way
    there.
    """
    count, side = clean.shape[:2]
    how: dict[str, Any] = {
        "channels": (4, 16, 32),
        "width": 128,
        "images": True,
        "dtype": jnp.float32,
    }
    encoder = encoders.ConvNet.make((count, side, side), 1, jr.key(5), **how)
    head = heads.Gaussian(1, "mean", sd=(SD,))
    start = Conditional(
        encoder, head, Scaling.none(np.zeros(clean.shape, np.float32), 1, np.float32)
    )
    path: list[dict[str, Any]] = []

    def loss(q, _, key):
        def one(key):
            a, b = jr.split(key)
            angle = jr.uniform(a, (), jnp.float32, 0.0, 2 * jnp.pi)
            made = rotate(clean, angle) + NOISE * jr.normal(b, clean.shape, jnp.float32)
            return -q._log_prob_to_train(angle[None], made)

        return jnp.mean(jax.vmap(one)(jr.split(key, batch)))

    def look(found, n):
        mode = float(degrees(found[0].at(x).moments[0])[0])
        path.append({"steps": n, "mode": mode, **_divergences(log_p, mode)})

    train(
        loss,
        [start],
        jnp.zeros(1),
        jr.key(6),
        rate=harmonic(1e-3, max(1, steps // (20 if batch == 1 else 3))),
        steps=steps,
        looks=12,
        look=look,
    )
    return path[-1]["mode"], path


def _claims(rows: list[dict[str, Any]], peaks: list[float]) -> list[dict[str, Any]]:
    forward, ascents = rows[-1], rows[:-1]
    worst = max(ascents, key=lambda row: row["KL(q || p)"])
    stuck = float(np.mean(away([row["mode"] for row in ascents], TRUE) > 20))
    return [
        below("minus the number of maxima of the exact ELBO", SOURCE, -1.5, -float(len(peaks))),
        below(
            "minus the share of 12 ELBO ascents that end in another maximum", SOURCE, -0.3, -stuck
        ),
        below(
            "forward KL: degrees from the truth", SOURCE, 20.0, float(away(forward["mode"], TRUE))
        ),
        below(
            "KL(p || q), forward KL less the worst ELBO end",
            SOURCE,
            0.0,
            forward["KL(p || q)"] - worst["KL(p || q)"],
        ),
        below(
            "KL(q || p), forward KL less the worst ELBO end",
            SOURCE,
            0.0,
            forward["KL(q || p)"] - worst["KL(q || p)"],
        ),
    ]


def figures(result: Result) -> dict[str, Any]:
    """The landscape with the ends of the ascents, and the divergences along the way of forward KL."""
    from .drawing import COLOURS, panels

    with panels(1, 2) as (figure, axes):
        left, right = axes[0]
        land = result.tables["landscape"]
        angle, top = [r["angle"] for r in land], max(r["log_p"] for r in land)
        left.plot(
            angle,
            [(r["log_p"] - top) / 1e6 for r in land],
            color="grey",
            lw=0.8,
            label="log posterior",
        )
        left.plot(
            angle,
            [(r["elbo"] - top) / 1e6 for r in land],
            color=COLOURS[0],
            label="exact ELBO, sd 0.5",
        )
        height = dict(zip(angle, [(r["elbo"] - top) / 1e6 for r in land], strict=True))
        ends = [r["mode"] for r in result.tables["ends"][:-1]]
        left.plot(
            ends, [height[e] for e in ends], "v", color=COLOURS[1], label="ends of 12 ascents"
        )
        left.axvline(result.tables["ends"][-1]["mode"], color=COLOURS[2], label="forward KL")
        left.set(xlabel="angle (degrees)", ylabel="million nats", title="Landscape")
        left.legend(fontsize=7)
        path = result.tables["path"]
        steps = [r["steps"] for r in path]
        right.plot(steps, [r["mode"] for r in path], "o-", color=COLOURS[2])
        right.axhline(TRUE, color="black", lw=0.8)
        right.set(
            xlabel="steps",
            ylabel="mode (degrees)",
            title="Forward KL on simulations",
            ylim=(0, 360),
        )
    return {"landscape": figure}


__all__ = ["SIZES", "ascend", "figures", "maxima", "profile", "run", "smoothed"]
