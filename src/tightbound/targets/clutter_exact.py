"""The exact posterior of a clutter target on a grid.

The truth that its approximations are judged by.
"""

import dataclasses
from typing import Any

import numpy as np

from ..families.mixture import Mixture
from ..results import TargetError

_DEPTH = 60.0  # nats below the top at which a density counts as zero
_MOST = {1: 400_000, 2: 1201}  # points per axis
_LEAST = {1: 2001, 2: 301}
_COARSE = {1: 4001, 2: 241}
_REACH = 8.5  # sds of a component of q that expectations under it reach


@dataclasses.dataclass(frozen=True)
class Exact:
    """Moments and evidence of a posterior in one or two dimensions, by the trapezoid rule on an
    even grid.

    The rule converges faster than any power of the step for densities that vanish at the ends;
    steps are at most a third of the narrowest kernel's sd over the square root of the number of
    points in one dimension.

    Attributes:
        target: the clutter target.
        points: the grid, `[m, D]`; `log_p` the normalised log posterior there, `cell` the volume of
            a cell.
        log_evidence: log of the integral of exp(log_density), nats.
        mean: `[D]`; `cov` `[D, D]`.
        modes: local maxima on the grid, `[k, D]`, highest first.
    """

    target: Any
    points: np.ndarray
    log_p: np.ndarray
    cell: float
    log_evidence: float
    mean: np.ndarray
    cov: np.ndarray
    modes: np.ndarray

    def kl(self, q: Any) -> float:
        """KL(q || p) = E_q[log q - log p], nats: for a Gaussian or a mixture of them on nodes of
        its own, else on the grid.

        Raises:
            TargetError: q is neither, and has more than 1e-4 of its mass outside the grid.
        """
        components, weights = _components(q)
        if not all(hasattr(component, "root") for component in components):
            return self._kl_on_grid(q)
        total = 0.0
        for component, weight in zip(components, weights, strict=True):
            z, w = _nodes_of(component, self.target)
            log_p = self.target.log_density_on_host(z) - self.log_evidence
            total += weight * float(w @ (q.log_prob_on_host(z) - log_p))
        return total

    def kl_from(self, q: Any) -> float:
        """KL(p || q) = E_p[log p - log q], nats, for any q."""
        p = np.exp(self.log_p) * self.cell
        inside = p > 0
        return float(p[inside] @ (self.log_p[inside] - q.log_prob_on_host(self.points[inside])))

    def _kl_on_grid(self, q: Any) -> float:
        log_q = q.log_prob_on_host(self.points)
        mass = np.exp(log_q) * self.cell
        if abs(mass.sum() - 1.0) > 1e-4:
            raise TargetError(
                f"exact: q reaches beyond the grid of the posterior, which holds {mass.sum():.3f}"
                " of its mass."
            )
        inside = mass > 0
        return float(mass[inside] @ (log_q[inside] - self.log_p[inside]))

    def elbo(self, q: Any) -> float:
        """log evidence - KL(q || p), nats."""
        return self.log_evidence - self.kl(q)


def exact_posterior(target: Any) -> Exact:
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


def _step(target: Any) -> float:
    """Fine enough for the narrowest posterior that the points could give, in coordinates of theta."""
    narrowest = _kernel_sd(target)
    if target.dim == 1:
        return narrowest / (3.0 * np.sqrt(max(1.0, float(target.multiplicities.sum()))))
    return narrowest / (1.0 * np.sqrt(max(1.0, float(target.multiplicities.sum()))))


def _kernel_sd(target: Any) -> float:
    """The smallest sd of the posterior of a single point, in any direction."""
    k = target.kernels()
    smallest = np.linalg.svd(k.root, compute_uv=False)[-1] * np.sqrt(k.scales.min())
    prior = np.linalg.svd(target.prior()[1], compute_uv=False)[-1]
    return float(1.0 / np.sqrt(1.0 / smallest**2 + 1.0 / prior))


def _window(target: Any) -> tuple[np.ndarray, np.ndarray]:
    """A box outside which the posterior is more than `_DEPTH` nats below its top: coarse grids,
    each inside the last.

    The posterior's modes lie in the hull of the points and the prior mean. A coarse grid can step
    over narrow modes, so the points themselves are tried as well, and a box shrinks only as far as
    the steepest cell at its top allows.
    """
    mean, cov = target.prior()
    x = np.asarray(target.x)
    noise = np.sqrt(np.diag(target.noise_root @ target.noise_root.T) * target.noise_scale.max())
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
        new_low, new_high = (
            np.maximum(low, keep.min(axis=0) - spacing),
            np.minimum(high, keep.max(axis=0) + spacing),
        )
        settled = bool(np.all(new_high - new_low > 0.8 * (high - low)))
        low, high = new_low, new_high
        if settled:
            break
    return low, high


def _tensor(axes: list[np.ndarray]) -> np.ndarray:
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def _modes(points: np.ndarray, values: np.ndarray) -> np.ndarray:
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


def _components(q: Any) -> tuple[list[Any], np.ndarray]:
    if isinstance(q, Mixture):
        return list(q.components), q.weights
    return [q], np.ones(1)


def _nodes_of(q: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """Nodes `[m, D]` and weights `[m]` for expectations under one Gaussian.

    Trapezoid in its whitened coordinates.
    """
    root = np.asarray(q.root)
    widest = float(np.linalg.svd(root, compute_uv=False)[0])
    per_sd = 6.0 * widest / _kernel_sd(target)
    count = int(np.clip(2 * _REACH * per_sd, *((341, 20_001) if target.dim == 1 else (171, 401))))
    axis = np.linspace(-_REACH, _REACH, count)
    white = _tensor([axis] * target.dim)
    weights = np.exp(-0.5 * np.sum(white**2, axis=1))
    return np.asarray(q.mean) + white @ root.T, weights / weights.sum()


__all__ = ["Exact", "exact_posterior"]
