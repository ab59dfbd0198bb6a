"""Where a Gaussian fit starts: at the best local Gaussian along L-BFGS paths, or from far out.

The best by its ELBO; from far out, by natural gradients of the ELBO, where none looks like the
posterior.

The mode may not exist: centred hierarchical models, Gaussian processes and item response models
have densities that grow without bound as a scale shrinks, so the end of a path is no place to start
from. Pathfinder's idea (Zhang et al. 2022, Algorithm 1), with the local curvature from differences
of scores (2 d of them) instead of the quasi-Newton matrix.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float

from .._numerics import host_rng
from .._types import Array, Key
from ..estimators.base import Moments
from ..estimators.fixed_design import FixedDesign, moment_matched
from ..families.gaussian import Gaussian
from ..results import TargetError
from ..search.lbfgs import Evaluate, Path, ascend
from ..search.natural_rule import FULL
from ..search.natural_search import begun, whole_step
from ..targets.base import Density, WithExample
from ..targets.batched import batched

# Iterates of a path that are tried where its end is no place for a Gaussian: early ones, by number,
# where the log density still climbs steeply, and later ones by their share of the path.
_EARLY = (0, 3, 6, 12)
_FRACTIONS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8)
_SCALES = (1.0, 0.3)  # of the Laplace sds there: far from Gaussian, the best one is narrower
_MAX_ITERATIONS = 250  # of L-BFGS; a path that needs more is in a funnel, and is cut there
_SAME_END = 0.1  # nats within which two paths count as having ended at one optimum
_NEWTON_STEPS = 3
# Differences over 1e-3 of a coordinate's scale: rounding and curvature of scores balance there.
_DIFFERENCE = 1e-3
_FIRST_SCALE = 0.3  # of a coordinate, where no path has told one
_LEAST_SCALE, _MOST_SCALE = 1e-8, 1e3
_AT_MODE = 0.1  # rms whitened gradient below which a point counts as a mode
# Nats of spread per sqrt(dim) of the log weights at a mode that needs no look at the rest of its
# path
CLEAN = 1.0

_BROAD_STEPS = 40
_MANY = 100  # dimensions
# At sds of 1 a collapsed optimum attracts half of the starts; but the farther out, the more steps,
# and the design grows with the dimension: above _MANY dimensions sds of 1 must do.
_WIDE, _NARROW = 3.0, 1.0
_BROAD_TOL = 0.1  # posterior sds: a start, not an answer


@dataclasses.dataclass(frozen=True)
class LocalGaussian:
    """N(mean, root root'), judged on a small antithetic design.

    Attributes:
        elbo: nats.
        spread: sd of log p - log q over the design, nats.
    """

    mean: Float[np.ndarray, "dim"]
    root: Float[np.ndarray, "dim dim"]
    elbo: float
    spread: float


def find_start(
    evaluate: Evaluate,
    points: Float[np.ndarray, "starts dim"],
    design: Float[np.ndarray, "m dim"],
    broad: Callable[[], LocalGaussian | None] = lambda: None,
) -> list[LocalGaussian]:
    """Local Gaussians at the distinct ends of L-BFGS paths from `points`, best ELBO first.

    The ends are polished by Newton steps. Where none looks like a Gaussian, `broad` is asked for a
    start that no path finds (`broad_start`), and where that does not look like one either,
    the best paths are searched for an earlier iterate that does. `design`: standardised draws, some
    tens of them.
    """
    paths = ascend(evaluate, points, max_iterations=_MAX_ITERATIONS)
    if not paths:
        return []
    ends = _distinct_ends(paths)
    guess = np.stack([np.sqrt(p.inverse_hessian_diagonal) for p in ends])
    tips = np.stack([p.points[-1] for p in ends])
    roots = local_roots(evaluate, tips, guess)
    tips, pull = _polished(evaluate, tips, roots)
    found = with_elbo(evaluate, tips, roots, design, (1.0,))
    best = max(found, key=lambda g: g.elbo, default=None)
    if not _is_clean(best) or np.min(pull) > _AT_MODE:
        wide = broad()
        found += [] if wide is None else [wide]
        for path in ends[:2] if not _is_clean(wide) else ():
            iterates = _iterates(path)
            roots = local_roots(evaluate, iterates, passes=1)
            tried = with_elbo(evaluate, iterates, roots, design, _SCALES)
            found += sorted(tried, key=lambda g: -g.elbo)[:1]
    return sorted(found, key=lambda g: -g.elbo) or [_last_resort(ends[0])]


def broad_start(target: Density, key: Key, steps: int = _BROAD_STEPS) -> LocalGaussian | None:
    """The Gaussian that natural gradients reach from far out, converged or not.

    A path up the density of a centred hierarchical model ends where a scale collapses to zero: the
    density grows without bound there, and q is drawn into a false optimum tens of nats below the
    true one. The entropy of a q that is as wide as the search region keeps it out, and steps that
    double while they climb bring it home in some thirty steps.

    Found on one small design; its ELBO is that of another. None where the density is finite on no
    Gaussian around the origin, however small. Cost: twice the design (the dimension, or 32) in
    gradients for each of at most `steps` steps.
    """
    estimator, dim = FixedDesign(), target.dim
    q = Gaussian.full(dim).moved(np.zeros(dim), np.full(dim, _WIDE if dim <= _MANY else _NARROW))
    design, root = estimator.prepare(target, q, key), np.array(q.root, dtype=np.float64)

    def moments_at(mean: Float[Array, "dim"], root: Float[Array, "dim dim"]) -> Moments:
        return estimator.moments(target, np.asarray(mean), np.asarray(root), design)

    search = begun(np.zeros(dim), root, np.linalg.slogdet(root)[1])
    with np.errstate(all="ignore"):
        for _ in range(steps + 1):  # its start is one of them
            search, _ = whole_step(search, moments_at, FULL, _BROAD_TOL)
    fresh = moment_matched(host_rng(key, "broad start"), max(dim, 32), dim)
    found = with_elbo(
        batched(target), np.asarray(search.mean)[None], [np.asarray(search.root)], fresh, (1.0,)
    )
    return found[0] if found else None


def _is_clean(found: LocalGaussian | None) -> bool:
    """Whether it looks like the posterior.

    The log weights on its design spread by at most a nat per sqrt(dim).
    """
    return found is not None and bool(found.spread <= CLEAN * np.sqrt(len(found.mean)))


def _last_resort(path: Path) -> LocalGaussian:
    """A small Gaussian at the end of a path, where no local Gaussian has a finite ELBO."""
    root = np.diag(1e-2 * np.sqrt(path.inverse_hessian_diagonal))
    return LocalGaussian(path.points[-1], root, -np.inf, np.inf)


def _distinct_ends(paths: list[Path], most: int = 3) -> list[Path]:
    """One path per distinct end, highest log density first.

    Ends within 0.1 nats of each other count as one.
    """
    ranked = sorted(paths, key=lambda p: (-p.converged, -p.values[-1]))
    kept: list[Path] = []
    for path in ranked:
        if all(abs(path.values[-1] - other.values[-1]) > _SAME_END for other in kept):
            kept.append(path)
    return kept[:most]


def _iterates(path: Path) -> Float[np.ndarray, "points dim"]:
    """The iterates that are tried, the first and the last among them."""
    count = len(path.values)
    index = {min(count - 1, i) for i in _EARLY} | {int(count * f) for f in _FRACTIONS} | {count - 1}
    return path.points[sorted(index)]


def _polished(
    evaluate: Evaluate,
    points: Float[np.ndarray, "n dim"],
    roots: list[Float[np.ndarray, "dim dim"] | None],
) -> tuple[Float[np.ndarray, "n dim"], Float[np.ndarray, "n"]]:
    """Up to three Newton steps from each point, with the curvature found there, while they climb.

    Returns the points and how far each still wants to move, in local sds (rms): small at a mode,
    and only there.
    """
    points = points.copy()
    values, scores = evaluate(points)
    for _ in range(_NEWTON_STEPS):
        steps = np.stack(
            [
                np.zeros_like(s) if r is None else r @ (r.T @ s)
                for r, s in zip(roots, scores, strict=True)
            ]
        )
        new_values, new_scores = evaluate(points + steps)
        better = (new_values > values) & np.all(np.isfinite(new_scores), axis=1)
        if not better.any():
            break
        points[better] += steps[better]
        values = np.where(better, new_values, values)
        scores = np.where(better[:, None], new_scores, scores)
    whitened = [
        np.full_like(s, np.inf) if r is None else r.T @ s
        for r, s in zip(roots, scores, strict=True)
    ]
    return points, np.sqrt(np.mean(np.stack(whitened) ** 2, axis=1))


def local_gaussians(
    evaluate: Evaluate,
    points: Float[np.ndarray, "n dim"],
    design: Float[np.ndarray, "m dim"],
    scales: tuple[float, ...],
) -> list[LocalGaussian]:
    """Laplace-like Gaussians at the points, each at all `scales`, that have a finite ELBO."""
    return with_elbo(evaluate, points, local_roots(evaluate, points), design, scales)


def with_elbo(
    evaluate: Evaluate,
    points: Float[np.ndarray, "n dim"],
    roots: list[Float[np.ndarray, "dim dim"] | None],
    design: Float[np.ndarray, "m dim"],
    scales: tuple[float, ...],
) -> list[LocalGaussian]:
    """Those of N(point, (scale root)(scale root)') that have a finite ELBO on the design."""
    candidates = [
        (x, s * r) for x, r in zip(points, roots, strict=True) if r is not None for s in scales
    ]
    if not candidates:
        return []
    values, _ = evaluate(np.concatenate([_antithetic(x, r, design) for x, r in candidates]))
    half_squares, out = 0.5 * np.tile(np.sum(design**2, axis=1), 2), []
    for (x, root), value in zip(candidates, values.reshape(len(candidates), -1), strict=True):
        if np.all(np.isfinite(value)):
            elbo = (
                value.mean() + np.linalg.slogdet(root)[1] + 0.5 * len(x) * (1 + np.log(2 * np.pi))
            )
            out.append(LocalGaussian(x, root, float(elbo), float(np.std(value + half_squares))))
    return out


def _antithetic(
    mean: Float[np.ndarray, "dim"],
    root: Float[np.ndarray, "dim dim"],
    design: Float[np.ndarray, "m dim"],
) -> Float[np.ndarray, "two_m dim"]:
    """The design and its mirror image, at N(mean, root root')."""
    moves = design @ root.T
    return np.concatenate([mean + moves, mean - moves])


def local_roots(
    evaluate: Evaluate,
    points: Float[np.ndarray, "n dim"],
    scale_guess: Float[np.ndarray, "n dim"] | None = None,
    passes: int = 2,
    floor: float = 1e-2,
    flattest: float = 1e-2,
) -> list[Float[np.ndarray, "dim dim"] | None]:
    """A square root of the inverse of |-Hessian| at each point, from differences of scores.

    None where it is not finite. Two passes: the first finds the scale of each coordinate, the
    second differences over 1e-3 of it. Eigenvalues of the negative Hessian, scaled to unit
    diagonal, are made positive and kept above `floor`: at a point that need not be a mode a small
    one says little, at a mode it is a strong correlation. `flattest`: least curvature along one
    coordinate.
    """
    count, dim = points.shape
    if scale_guess is None:
        scale = np.full((count, dim), _FIRST_SCALE)
    else:
        scale = np.clip(scale_guess, _LEAST_SCALE, _MOST_SCALE)
    roots: list[np.ndarray | None] = [None] * count
    for _ in range(passes):
        step = _DIFFERENCE * np.clip(scale, _LEAST_SCALE, _MOST_SCALE)
        moves = step[:, :, None] * np.eye(dim)
        batch = np.concatenate([points[:, None, :] + moves, points[:, None, :] - moves], axis=1)
        scores = evaluate(batch.reshape(-1, dim))[1].reshape(count, 2, dim, dim)
        for i in range(count):
            roots[i] = _inverse_root(
                (scores[i, 0] - scores[i, 1]) / (2 * step[i][:, None]), floor, flattest
            )
            root = roots[i]
            if root is not None:
                scale[i] = np.sqrt(np.sum(root**2, axis=1))
    return roots


def _inverse_root(
    hessian: Float[np.ndarray, "dim dim"], floor: float, flattest: float
) -> Float[np.ndarray, "dim dim"] | None:
    if not np.all(np.isfinite(hessian)):
        return None
    precision = -0.5 * (hessian + hessian.T)
    unit = 1.0 / np.sqrt(np.maximum(np.abs(np.diag(precision)), flattest))
    eigenvalues, vectors = np.linalg.eigh(unit[:, None] * precision * unit)
    return unit[:, None] * (vectors / np.sqrt(np.maximum(np.abs(eigenvalues), floor)))


def dispersed_points(
    rng: np.random.Generator, starts: int, dim: int
) -> Float[np.ndarray, "starts dim"]:
    """Uniform(-2, 2) on the unconstrained scale, Stan's and NumPyro's habit."""
    return rng.uniform(-2.0, 2.0, (starts, dim))


def sets_of_points(
    target: Density, points: Float[np.ndarray, "starts dim"]
) -> Iterator[Float[np.ndarray, "points dim"]]:
    """Sets of points to search from, each only where those before are nowhere finite.

    Dispersed points; the same nearer the origin; the user's example, alone and with a little of
    their scatter.
    """
    yield points
    yield 0.1 * points
    example = target.example_point if isinstance(target, WithExample) else None
    if example is not None:
        yield example[None]
        yield example + 1e-2 * points


def explain_no_start(
    evaluate: Evaluate, points: Float[np.ndarray, "n dim"], names: tuple[str, ...]
) -> TargetError:
    """The error for a target that was finite at none of `points`.

    It names the parameter that decides, where one does.
    """
    value, score = evaluate(points)
    if np.any(np.isfinite(value)):
        bad = [names[j] for j in np.flatnonzero(~np.isfinite(score).all(axis=0))]
        return TargetError(
            "The log density is finite at the start but its gradient is not, in:"
            f" {', '.join(bad[:5])}. Look for a square root, log or power at zero;"
            " `jax.numpy.where` needs both its branches to be differentiable."
        )
    origin, _ = evaluate(np.zeros((1, points.shape[1])))
    kind = "NaN" if np.isnan(value).all() else "-inf or NaN"
    culprit = _culprit(evaluate, points, names) if not np.isfinite(origin[0]) else ""
    return TargetError(
        f"The log density is {kind} at all {len(points)} start points (unconstrained values drawn"
        f" from -2 to 2).{culprit} Check the data for NaN, declare constrained parameters with"
        " `support`, or give an `example` at which the density is finite."
    )


def _culprit(evaluate: Evaluate, points: Float[np.ndarray, "n dim"], names: tuple[str, ...]) -> str:
    """The single coordinate whose change makes the density finite, if there is one."""
    base = points[0]
    for value in (0.0, 1.0, -1.0, 10.0, 100.0):
        trial = np.tile(base, (len(base), 1))
        np.fill_diagonal(trial, value)
        good = np.flatnonzero(np.isfinite(evaluate(trial)[0]))
        if len(good):
            return (
                f" It becomes finite when `{names[good[0]]}` is moved to {value:g}: does that"
                " parameter need a `support`?"
            )
    return ""
