"""`fit_batch(make_target, data_batch)`.

Thousands of small posteriors of one model, in compiled chunks.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from .._numerics import host_algebra, host_rng, key_words, x64
from .._types import Array, Key, PyTree, Validated
from ..certify.psis import smooth_many
from ..estimators.fixed_design import larger_size, moment_matched
from ..families.base import standard_normals
from ..families.gaussian import Gaussian
from ..results import FitError, Result, TargetError
from ..search.natural_rule import RUNNING, conclusion, is_far
from ..search.natural_search import NaturalSearch, begun, on_new_design
from ..starts.paths import CLEAN, dispersed_points
from ..targets.base import Density
from ..targets.layout import named_leaves
from .programs import LanePrograms, MakeTarget, programs_of, put, take
from .result import BatchFit

_START_PAIRS = 16  # pairs of draws that rank local Gaussians
_EARLIER = (1, 4, 10)  # tries after which the path is looked at where its end is not clean
# Of the Laplace sds, then: far from Gaussian, the best Gaussian is narrower than the curvature
# says.
_SMALLER = 0.4


@dataclasses.dataclass(frozen=True)
class _Job:
    """What all stages share."""

    programs: LanePrograms
    rows: PyTree
    count: int
    key: Key
    tol: float


def fit_batch(
    make_target: MakeTarget,
    data_batch: PyTree,
    *,
    key: Key = 0,
    tol: Validated[float, "_check_numbers"] = 0.02,
    starts: Validated[int, "_check_numbers"] = 2,
    pairs: int | None = None,
    max_doublings: Validated[int, "_check_numbers"] = 1,
    draws: Validated[int, "_check_numbers"] = 1000,
    start: Callable[[Density], Gaussian] | None = None,
    throw: bool = True,
) -> BatchFit:
    """Full-rank Gaussian fits of one model to many data sets.

    Each has its own status, weights and corrected summaries.

    What `tb.fit(target, solver=tb.solvers.NaturalGradient())` does for one target: Newton searches
    from dispersed points, the local Gaussian with the best ELBO along them, natural gradient on a
    fixed antithetic design (monotone in its ELBO), larger designs where the error of one is above
    `tol`, importance weights. All data sets share the design and the draws, so that their Monte
    Carlo errors are alike and do not average out. A second call with the same function and shapes
    compiles nothing. NaN in one data set spoils that one only.

    Not for: richer families, or a search for further modes: ask `tb.check(batch[i])`, or `tb.fit`,
    of the data sets that `batch.attention` names. Not for data sets of different sizes: pad them
    and mask the padding in the log density.

    Arguments:
        make_target: from one data set (a row of every array) to a target with a log density; traced
            once by JAX.
        data_batch: a pytree of arrays whose leading axis is the data sets, `[B, ...]`.
        key: an int, a typed JAX key or a legacy one.
        tol: accuracy asked of the means, in posterior sds.
        starts: Newton searches for each data set.
        pairs: of draws in the first design; None is max(dim, 32).
        max_doublings: how often the design may grow, four times each.
        draws: for ELBO, importance weights and summaries, an even number.
        start: `start(target) -> Gaussian` with a full scale to begin from, traced; None searches as
            above.
        throw: raise FitError when no data set has a usable approximation.

    Raises:
        TargetError: `data_batch` has no arrays, or not the same number of data sets in each.
        PairingError: `make_target` does not return a target with a log density on R^d.
        FitError: all fits failed; `.fit` holds the BatchFit.
    """
    began = time.perf_counter()
    rows, count = _rows(data_batch)
    _check_numbers(
        tol, (("starts", starts, 1), ("max_doublings", max_doublings, 0), ("draws", draws, 100))
    )
    with x64(), host_algebra():
        job = _Job(programs_of(make_target, rows), rows, count, key, float(tol))
        lanes, used = (
            _given(job, make_target, start) if start is not None else _searched(job, int(starts))
        )
        lanes, results, more = _climbed(job, lanes, pairs, max_doublings)
        lanes = _without_lost(lanes, results)
        noise = standard_normals(int(draws) + draws % 2, job.programs.dim, key, "batch draws")
        log_w = _log_weights(job, lanes, noise)
        weights, khat, ess = smooth_many(log_w)
    fit = BatchFit(
        mean=np.asarray(lanes.mean),
        root=np.asarray(lanes.root),
        results=results,
        steps=np.asarray(lanes.steps),
        evaluations=used + more,
        elbo=log_w.mean(axis=1),
        elbo_stderr=_stderr(log_w),
        weights=weights,
        khat=khat,
        ess=ess,
        noise=noise,
        make_target=make_target,
        data=rows,
        coordinate_names=job.programs.names,
        key=key_words(key),
        seconds=time.perf_counter() - began,
    )
    if throw and not any(one.usable for one in results):
        raise FitError(
            f"None of the {count} fits is usable. The first ended with: {results[0]}", fit
        )
    return fit


def _check_numbers(tol: float, integers: tuple[tuple[str, object, int], ...]) -> None:
    for name, value, least in integers:
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(
                f"fit_batch: `{name}` must be an integer of at least {least}, got {value!r}."
            )
    if not 0 < tol < np.inf:
        raise ValueError(
            "fit_batch: `tol` must be a positive number of posterior standard deviations, got"
            f" {tol!r}."
        )


def _rows(data_batch: PyTree) -> tuple[PyTree, int]:
    """The data as NumPy arrays, floating ones in float64, and the number of data sets."""
    leaves = named_leaves(data_batch, "data_batch") if jax.tree.leaves(data_batch) else {}
    if not leaves:
        raise TargetError(
            "fit_batch: `data_batch` has no arrays. Pass arrays whose leading axis is the data"
            " sets."
        )
    lengths = {name: (np.shape(leaf) or (0,))[0] for name, leaf in leaves.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise TargetError(
            "fit_batch: every array in `data_batch` needs the same number of data sets, at least"
            f" one, along its leading axis; got {listed}. What all data sets share is closed over"
            " by `make_target`; data sets of different sizes are padded and masked."
        )

    def convert(leaf: Shaped[Array, "..."]) -> Shaped[np.ndarray, "..."]:
        array = np.array(leaf)
        return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return jax.tree.map(convert, data_batch), next(iter(lengths.values()))


Begun: TypeAlias = tuple[NaturalSearch, Float[np.ndarray, "lanes"]]
"""Lanes at their starts, and the gradients that each has used."""


def _searched(job: _Job, starts: int) -> Begun:
    """Lanes at the best local Gaussians that Newton searches from dispersed points find."""
    points = dispersed_points(host_rng(job.key, "starts"), starts, job.programs.dim)
    design = host_rng(job.key, "start design").standard_normal((_START_PAIRS, job.programs.dim))
    best, used, walks = _Best(job, design), np.zeros(job.count), []
    for point in points:
        walks.append(job.programs.walk(job.rows, np.tile(point, (job.count, 1))))
        used += walks[-1].tries * (1 + len(point))
        used += best.offer(np.arange(job.count), walks[-1].point, 1.0)
    unclean = np.flatnonzero(~(best.spread <= CLEAN * np.sqrt(job.programs.dim)))
    for found in walks if len(unclean) else ():
        for points in (found.point, *(found.path[:, tries] for tries in _EARLIER)):
            used[unclean] += best.offer(unclean, points[unclean], _SMALLER)
    return begun(best.mean, best.root, best.log_det), used


class _Best:
    """The local Gaussian with the largest ELBO so far, for each data set."""

    def __init__(self, job: _Job, design: Float[np.ndarray, "m dim"]):
        dim = job.programs.dim
        self.job, self.design = job, design
        self.mean, self.root = np.zeros((job.count, dim)), np.tile(np.eye(dim), (job.count, 1, 1))
        self.log_det = np.zeros(job.count)
        self.elbo = np.full(job.count, -np.inf)
        self.spread = np.full(job.count, np.inf)

    def offer(
        self,
        index: Int[np.ndarray, "lanes"],
        points: Float[np.ndarray, "lanes dim"],
        scale: float,
    ) -> int:
        """Keep the Gaussians at `points` that are better; the gradients used by each."""
        scales = np.full(len(index), scale)
        root, log_det, elbo, spread, _ = self.job.programs.local(
            take(self.job.rows, index), points, scales, self.design
        )
        better = elbo > self.elbo[index]
        kept = index[better]
        self.mean[kept], self.root[kept] = points[better], root[better]
        self.log_det[kept], self.elbo[kept] = log_det[better], elbo[better]
        self.spread[kept] = spread[better]
        return 2 * len(self.design) + 1 + len(self.design[0])


def _given(job: _Job, make_target: MakeTarget, start: Callable[[Density], Gaussian]) -> Begun:
    """Lanes at the caller's own start."""
    mean, root = (np.asarray(leaf) for leaf in _starts_at(make_target, start, job.rows))
    return begun(mean, root, np.linalg.slogdet(root)[1]), np.zeros(job.count)


@eqx.filter_jit
def _starts_at(
    make_target: MakeTarget, start: Callable[[Density], Gaussian], rows: PyTree
) -> tuple[Float[Array, "lanes dim"], Float[Array, "lanes dim dim"]]:
    """(means, roots) of `start(make_target(row))`.

    Compiled once for the two functions and the shapes.
    """

    def one(row: PyTree) -> tuple[Float[Array, "dim"], Float[Array, "dim dim"]]:
        q = start(make_target(row))
        return q.mean, q.root

    return jax.vmap(one)(rows)


def _climbed(
    job: _Job, lanes: NaturalSearch, pairs: int | None, max_doublings: int
) -> tuple[NaturalSearch, tuple[Result, ...], Float[np.ndarray, "lanes"]]:
    """Natural gradient on designs that grow for the lanes that need it.

    Returns the lanes, how each ended, and the gradients used.
    """
    dim, first = job.programs.dim, host_rng(job.key, "design")
    larger = host_rng(job.key, "larger designs")
    size = max(dim, 32) if pairs is None else int(pairs)
    lanes = jax.tree.map(np.array, lanes)
    active, used = np.arange(job.count), np.zeros(job.count)
    design: Float[np.ndarray, "m dim"] = moment_matched(first, size, dim)
    for doubling in range(max_doublings + 1):
        before = np.array(lanes.tries)[active]
        _on_design(job, lanes, active, design)
        used[active] += 2 * size * (np.asarray(lanes.tries)[active] - before)
        # One design serves all lanes, and a second call with other data must find its programs
        # compiled: so it always grows as far as the rule lets it, whatever the lanes' errors are.
        grown = larger_size(size, dim, np.inf)
        open_ = np.array([ended is None for ended in _conclusions(job, lanes, active)])
        again = active[open_ & ~is_far(np.asarray(lanes.spread)[active], size, dim)]
        if len(again) == 0 or doubling == max_doublings or grown is None:
            break
        put(lanes, again, on_new_design(take(lanes, again)))
        active, size = again, grown
        design = moment_matched(larger, size, dim)
    ends = _conclusions(job, lanes, np.arange(job.count))
    return lanes, tuple(Result.noisy if ended is None else ended for ended in ends), used


def _conclusions(
    job: _Job, lanes: NaturalSearch, index: Int[np.ndarray, "lanes"]
) -> list[Result | None]:
    """How the lanes at `index` ended; None where a larger design is wanted."""
    pairs = zip(np.asarray(lanes.status)[index], np.asarray(lanes.error)[index], strict=True)
    return [conclusion(status, error, job.tol) for status, error in pairs]


def _on_design(
    job: _Job,
    lanes: NaturalSearch,
    active: Int[np.ndarray, "lanes"],
    design: Float[np.ndarray, "m dim"],
) -> None:
    """Run the lanes at `active` until they end, in place.

    Those that still run are gathered into full chunks anew.
    """
    while len(active):
        rows, running = take(job.rows, active), take(lanes, active)
        put(lanes, active, job.programs.advance(rows, running, design, job.tol))
        active = active[np.asarray(lanes.status)[active] == RUNNING]


def _without_lost(lanes: NaturalSearch, results: tuple[Result, ...]) -> NaturalSearch:
    """NaN for the lanes without an approximation: nobody shall take a start for an answer."""
    lost = np.array([not result.usable for result in results])
    mean, root = np.array(lanes.mean), np.array(lanes.root)
    mean[lost], root[lost] = np.nan, np.nan
    return dataclasses.replace(lanes, mean=mean, root=root)


def _stderr(log_w: Float[np.ndarray, "lanes draws"]) -> Float[np.ndarray, "lanes"]:
    """Standard error of the mean of each row, over draws and their mirror images.

    NaN where a row holds -inf.
    """
    half = log_w.shape[1] // 2
    x = 0.5 * (log_w[:, :half] + log_w[:, half:])
    finite = np.all(np.isfinite(x), axis=1)
    return np.where(
        finite, np.where(finite[:, None], x, 0.0).std(axis=1) / np.sqrt(x.shape[1]), np.nan
    )


def _log_weights(
    job: _Job, lanes: NaturalSearch, noise: Float[np.ndarray, "draws dim"]
) -> Float[np.ndarray, "lanes draws"]:
    """log p - log q at mean + root u for the rows u of `noise`; -inf where p is not finite."""
    mean, root = np.asarray(lanes.mean), np.asarray(lanes.root)
    log_p = job.programs.log_density(job.rows, mean, root, noise)
    base = -0.5 * np.sum(noise**2, axis=1) - 0.5 * noise.shape[1] * np.log(2 * np.pi)
    log_w = log_p - base[None, :] + np.asarray(lanes.log_det)[:, None]
    return np.where(np.isfinite(log_w), log_w, -np.inf)


__all__ = ["fit_batch"]
