"""Targets that are no Gaussian: a funnel, a banana, a ring."""

import math

import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr, ndtri

from ..log_density import from_log_density
from .known import LOG_2PI, Known, normal


def funnel(dim: int = 10, *, scale: float = 3.0) -> Known:
    """Neal's funnel: v ~ N(0, scale^2), and dim - 1 values x_i ~ N(0, exp(v)) given v.

    E[x_i^2] = exp(scale^2 / 2). Source: Neal (2003), Slice sampling, section 8.

    Arguments:
        dim: d, v included; at least 2.
        scale: sd of v.
    """
    width = dim - 1

    def log_density(params):
        return normal(params["v"], 0.0, scale) + jnp.sum(
            normal(params["x"], 0.0, jnp.exp(params["v"] / 2))
        )

    def draw(n, rng):
        v = scale * rng.standard_normal(n)
        return {"v": v, "x": np.exp(v[:, None] / 2) * rng.standard_normal((n, width))}

    sd_x = math.exp(scale**2 / 4)
    return Known(
        name=f"funnel({dim}, scale={scale:g})",
        target=from_log_density(log_density, {"v": 0.0, "x": np.zeros(width)}),
        mean={"v": np.array(0.0), "x": np.zeros(width)},
        sd={"v": np.array(scale), "x": np.full(width, sd_x)},
        log_evidence=0.0,
        cov=np.diag([scale**2] + [sd_x**2] * width),
        draw=draw,
    )


def banana(*, curvature: float = 0.5, scale: float = 2.0) -> Known:
    """A bent Gaussian in the plane: x ~ N(0, scale^2), y ~ N(curvature (x^2 - scale^2), 1) given x.

    x and y are uncorrelated, and Var[y] = 1 + 2 curvature^2 scale^4. Source: Haario, Saksman and
    Tamminen (1999).

    Arguments:
        curvature: of the bend.
        scale: sd of x.
    """
    sd_y = math.sqrt(1 + 2 * curvature**2 * scale**4)

    def log_density(params):
        bend = curvature * (params["x"] ** 2 - scale**2)
        return normal(params["x"], 0.0, scale) + normal(params["y"], bend, 1.0)

    def draw(n, rng):
        x = scale * rng.standard_normal(n)
        return {"x": x, "y": curvature * (x**2 - scale**2) + rng.standard_normal(n)}

    return Known(
        name=f"banana(curvature={curvature:g}, scale={scale:g})",
        target=from_log_density(log_density, {"x": 0.0, "y": 0.0}),
        mean={"x": np.array(0.0), "y": np.array(0.0)},
        sd={"x": np.array(scale), "y": np.array(sd_y)},
        log_evidence=0.0,
        cov=np.diag([scale**2, sd_y**2]),
        draw=draw,
    )


def ring(*, radius: float = 4.0, width: float = 0.5) -> Known:
    """A ring in the plane, log p(x) = -(|x|^2 - r^2)^2 / (2 s^2) with s = 2 r w.

    Near it, |x| is about N(r, w^2). t = |x|^2 is a normal N(r^2, s^2) cut off at 0, and the angle
    is uniform, so that with a = r^2 / s

        evidence = pi sqrt(2 pi) s Phi(a),   E[x_i^2] = (r^2 + s phi(a) / Phi(a)) / 2

    Smooth everywhere, unlike a density of |x|.

    Arguments:
        radius: r.
        width: w, the sd of |x| about r, for w far below r.
    """
    spread = 2 * radius * width
    # Where t = |x|^2 is cut off, in its own sds below its mean
    edge = radius**2 / spread
    density_at_edge = math.exp(-0.5 * edge**2 - 0.5 * LOG_2PI)
    variance = 0.5 * (radius**2 + spread * density_at_edge / ndtr(edge))

    def log_density(params):
        return -0.5 * ((jnp.sum(params["x"] ** 2) - radius**2) / spread) ** 2

    def draw(n, rng):
        # t by the inverse of its distribution function, on the part of it above the cut
        square = radius**2 + spread * ndtri(rng.uniform(ndtr(-edge), 1, n))
        angle = rng.uniform(0, 2 * np.pi, n)
        return {"x": np.sqrt(square)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)}

    return Known(
        name=f"ring(radius={radius:g}, width={width:g})",
        target=from_log_density(log_density, {"x": np.array([radius, 0.0])}),
        mean={"x": np.zeros(2)},
        sd={"x": np.full(2, math.sqrt(variance))},
        log_evidence=math.log(math.pi * spread * ndtr(edge)) + 0.5 * LOG_2PI,
        cov=variance * np.eye(2),
        draw=draw,
    )
