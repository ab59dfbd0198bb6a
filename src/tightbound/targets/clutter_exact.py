"""The exact posterior of a clutter target on a grid: the truth for its approximations."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from jaxtyping import Float

from ..families.base import AbstractFamily
from ..families.mixture import Mixture
from ..results import TargetError
from .sites import LearnableNoise

if TYPE_CHECKING:
    from ..families.gaussian import Gaussian
else:
    # The name is for annotations; a Gaussian is known by its covariance structure
    Gaussian = AbstractFamily

_DEPTH = 60.0  # nats below the top at which a density counts as zero
# Points on each axis, by dimension: at most (beyond it a grid takes too much memory), at least
# (so that modes are seen where kernels are wide), and on the coarse grids that look for the mass.
_MOST = {1: 400_000, 2: 1201}
_LEAST = {1: 2001, 2: 301}
_COARSE = {1: 4001, 2: 241}
_REACH = (
    8.5  # sds of a component of q that expectations under it reach: 2e-17 of its mass is beyond
)


@dataclasses.dataclass(frozen=True)
class Exact:
    """Moments and evidence of a posterior in one or two dimensions, on an even grid.

    By the trapezoid rule. It converges faster than any power of the step for densities that vanish
    at the ends; steps are at most a third of the narrowest kernel's sd over the square root of the
    number of points in one dimension.

    Attributes:
        target: the clutter target.
        points: the grid.
        log_p: the normalised log posterior there, nats.
        cell: volume of a cell of the grid.
        log_evidence: log of the integral of exp(log_density), nats.
        mean: of the posterior.
        cov: of the posterior.
        modes: local maxima on the grid, highest first.
    """

    target: LearnableNoise
    points: Float[np.ndarray, "m dim"]
    log_p: Float[np.ndarray, "m"]
    cell: float
    log_evidence: float
    mean: Float[np.ndarray, "dim"]
    cov: Float[np.ndarray, "dim dim"]
    modes: Float[np.ndarray, "modes dim"]

    def kl(self, q: AbstractFamily) -> float:
        """KL(q || p) = E_q[log q - log p], nats.

        For a Gaussian or a mixture of them on nodes of its own, else on the grid.

        Raises:
            TargetError: q is neither, and has more than 1e-4 of its mass outside the grid.
        """
        components, weights = _components(q)
        if any(component.covariance_structure == "none" for component in components):
            return self._kl_on_grid(q)
        total = 0.0
        for component, weight in zip(components, weights, strict=True):
            # A Gaussian: no other family has a covariance structure
            z, w = _nodes_of(cast(Gaussian, component), self.target)
            log_p = self.target.log_density_on_host(z) - self.log_evidence
            total += weight * float(w @ (q.log_prob_on_host(z) - log_p))
        return total

    def kl_from(self, q: AbstractFamily) -> float:
        """KL(p || q) = E_p[log p - log q], nats, for any q."""
        p = np.exp(self.log_p) * self.cell
        inside = p > 0
        return float(p[inside] @ (self.log_p[inside] - q.log_prob_on_host(self.points[inside])))

    def _kl_on_grid(self, q: AbstractFamily) -> float:
        log_q = q.log_prob_on_host(self.points)
        mass = np.exp(log_q) * self.cell
        if abs(mass.sum() - 1.0) > 1e-4:
            raise TargetError(
                f"exact: q reaches beyond the grid of the posterior, which holds {mass.sum():.3f}"
                " of its mass."
            )
        inside = mass > 0
        return float(mass[inside] @ (log_q[inside] - self.log_p[inside]))

    def elbo(self, q: AbstractFamily) -> float:
        """log evidence - KL(q || p), nats."""
        return self.log_evidence - self.kl(q)


def exact_posterior(target: LearnableNoise) -> Exact:
    """The posterior of a clutter target with one or two dimensions.

    Raises:
        TargetError: in more than two dimensions, or when modes lie so far apart that a grid cannot
            resolve them.
    """
    if target.dim > 2:
        raise TargetError(
            f"exact: a grid serves one or two dimensions, this target has {target.dim}; use tb.fit"
            " and its certificate."
        )
    low, high = _window(target)
    step = _step(target)
    counts = np.ceil((high - low) / step).astype(int) + 1
    if np.any(counts > _MOST[target.dim]):
        raise TargetError(
            f"exact: the posterior reaches from {low} to {high}, too far for a grid of step"
            f" {step:.2g}; its modes lie far apart. Fit a mixture instead (tb.fit does)."
        )
    axes = [
        np.linspace(a, b, max(c, _LEAST[target.dim]))
        for a, b, c in zip(low, high, counts, strict=True)
    ]
    points = _tensor(axes)
    log_joint = target.log_density_on_host(points)
    cell = float(np.prod([axis[1] - axis[0] for axis in axes]))
    top = log_joint.max()
    log_evidence = float(top + np.log(np.exp(log_joint - top).sum() * cell))
    log_p = log_joint - log_evidence
    p = np.exp(log_p) * cell
    mean = p @ points
    delta = points - mean
    cov = (delta * p[:, None]).T @ delta
    modes = _modes(points, log_joint.reshape([len(axis) for axis in axes]))
    return Exact(target, points, log_p, cell, log_evidence, mean, cov, modes)


def _step(target: LearnableNoise) -> float:
    """Step of the grid in coordinates of theta, for the narrowest posterior that is possible.

    All points together shrink the posterior of one by the root of their number. A third of that sd
    in one dimension; a whole sd in two, where the number of points on the grid is squared. At a
    step of h sds the trapezoid rule is off by 2 exp(-2 pi^2 / h^2) for a Gaussian: 5e-9 at one sd.
    """
    per_sd = 3.0 if target.dim == 1 else 1.0
    return _kernel_sd(target) / (per_sd * np.sqrt(max(1.0, float(target.multiplicities.sum()))))


def _kernel_sd(target: LearnableNoise) -> float:
    """The smallest sd of the posterior of a single point, in any direction."""
    k = target.kernels()
    smallest = np.linalg.svd(k.root, compute_uv=False)[-1] * np.sqrt(k.scales.min())
    prior = np.linalg.svd(target.prior()[1], compute_uv=False)[-1]
    return float(1.0 / np.sqrt(1.0 / smallest**2 + 1.0 / prior))


def _window(target: LearnableNoise) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim"]]:
    """A box outside which the posterior is more than `_DEPTH` nats below its top.

    By coarse grids, each inside the last. The posterior's modes lie in the hull of the points and
    the prior mean. A coarse grid can step over narrow modes, so the points themselves are tried as
    well, and a box shrinks only as far as the steepest cell at its top allows.
    """
    mean, cov = target.prior()
    x = np.asarray(target.x)
    noise = np.sqrt(np.diag(target.noise_root @ target.noise_root.T) * target.noise_scale.max())
    # 11 sds: a Gaussian is 60.5 nats below its top there
    reach = np.minimum(11.0 * np.sqrt(np.diag(cov)), 11.0 * noise + 11.0 * np.sqrt(np.diag(cov)))
    low = np.minimum(x.min(axis=0) - 11.0 * noise, mean - reach)
    high = np.maximum(x.max(axis=0) + 11.0 * noise, mean + reach)
    low, high = np.maximum(low, mean - 1e9 * noise), np.minimum(high, mean + 1e9 * noise)
    extra = x[:: max(1, len(x) // 500)]
    for _ in range(40):
        axes = [np.linspace(a, b, _COARSE[target.dim]) for a, b in zip(low, high, strict=True)]
        spacing = np.array([axis[1] - axis[0] for axis in axes])
        grid = _tensor(axes)
        points = np.concatenate([grid, extra[np.all((extra >= low) & (extra <= high), axis=1)]])
        values = target.log_density_on_host(points)
        best = int(np.argmax(values))
        beside = target.log_density_on_host(
            points[best] + np.concatenate([np.diag(spacing), -np.diag(spacing)])
        )
        slack = float(np.min([values[best] - beside.min(), 1e9]))
        keep = points[values > values[best] - _DEPTH - slack]
        new_low = np.maximum(low, keep.min(axis=0) - spacing)
        new_high = np.minimum(high, keep.max(axis=0) + spacing)
        settled = bool(np.all(new_high - new_low > 0.8 * (high - low)))
        low, high = new_low, new_high
        if settled:
            break
    return low, high


def _tensor(axes: list[np.ndarray]) -> Float[np.ndarray, "m dim"]:
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def _modes(
    points: Float[np.ndarray, "m dim"], values: Float[np.ndarray, "*grid"]
) -> Float[np.ndarray, "modes dim"]:
    """The points of the grid that lie above their neighbours along each axis, highest first."""
    is_mode = np.ones(values.shape, bool)
    for axis in range(values.ndim):
        padded = np.pad(
            values,
            [(1, 1) if a == axis else (0, 0) for a in range(values.ndim)],
            constant_values=-np.inf,
        )
        before = np.take(padded, range(values.shape[axis]), axis)
        after = np.take(padded, range(2, values.shape[axis] + 2), axis)
        is_mode &= (values > before) & (values >= after)
    flat = values.ravel()
    chosen = np.flatnonzero(is_mode.ravel() & (flat > flat.max() - _DEPTH))
    return points[chosen[np.argsort(-flat[chosen])]]


def _components(q: AbstractFamily) -> tuple[Sequence[AbstractFamily], Float[np.ndarray, "k"]]:
    if isinstance(q, Mixture):
        return list(q.components), q.weights
    return [q], np.ones(1)


def _nodes_of(
    q: Gaussian, target: LearnableNoise
) -> tuple[Float[np.ndarray, "m dim"], Float[np.ndarray, "m"]]:
    """Nodes and weights for expectations under one Gaussian, by the trapezoid rule.

    In its whitened coordinates.
    """
    root = np.asarray(q.root)
    widest = float(np.linalg.svd(root, compute_uv=False)[0])
    # Nodes for each sd of q, so that six lie within the narrowest kernel where q is wide
    per_sd = 6.0 * widest / _kernel_sd(target)
    count = int(np.clip(2 * _REACH * per_sd, *((341, 20_001) if target.dim == 1 else (171, 401))))
    axis = np.linspace(-_REACH, _REACH, count)
    white = _tensor([axis] * target.dim)
    weights = np.exp(-0.5 * np.sum(white**2, axis=1))
    return np.asarray(q.mean) + white @ root.T, weights / weights.sum()


__all__ = ["Exact", "exact_posterior"]
