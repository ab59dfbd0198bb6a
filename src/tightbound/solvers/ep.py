"""Expectation propagation: one Gaussian factor per site.

Each is matched to its site where the other factors put weight.
"""

import dataclasses
from typing import ClassVar

import equinox as eqx
import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Int

from .._types import Array, Key
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective
from ..results import Result
from ..targets.base import AbstractTarget, require
from ..targets.sites import GaussianSites, inverses, log_dets
from .base import AbstractSolver, Info, check_full_rank, check_no_objective

_PRECISION = 1e-3  # of `tol`: fixed points are reached linearly, and cost little
_LEAST_DAMPING = 0.05  # of a change: 200 sweeps still leave only 4e-5 of an error
_LARGE = 1e-2  # in sds: larger changes that grow mean oscillation, smaller ones do no harm
_MOST_HALVINGS = 30  # of a parallel step: by then it is 1e-9 of itself
_ROUNDING = 1e-12  # relative: an eigenvalue below it cannot be told from zero


@dataclasses.dataclass(frozen=True)
class EPState:
    """Natural parameters, precision and shift = precision times mean, and how far the run is.

    Attributes:
        precision: of q.
        shift: of q.
        site_precisions: of each site's factor.
        site_shifts: of each site's factor.
        prior: precision and shift of the prior.
        damping: share of each change that is made.
        tol: accuracy asked for, in posterior sds.
        sweeps: so far.
        change: size of the last move of q, in its sds.
        skipped: sites left alone in the last sweep, because their cavity or the new q would not
            have been a Gaussian.
        log_evidence: EP's estimate, nats.
        result: how the run has ended.
    """

    precision: Float[np.ndarray, "dim dim"]
    shift: Float[np.ndarray, "dim"]
    site_precisions: Float[np.ndarray, "sites dim dim"]
    site_shifts: Float[np.ndarray, "sites dim"]
    prior: tuple[Float[np.ndarray, "dim dim"], Float[np.ndarray, "dim"]]
    damping: float
    tol: float
    sweeps: int = 0
    change: float = np.inf
    skipped: int = 0
    log_evidence: float = np.nan
    result: Result | None = None


class EP(AbstractSolver):
    """Expectation propagation for a Gaussian prior times sites.

        q = prior times prod_i factor_i^multiplicity_i

    Each factor is refined until the moments of cavity_i site_i, with cavity_i = q / factor_i, are
    those of q. Aims at KL(p || q), so its mean and covariance are better than those of the best
    ELBO, and the evidence is excellent:

        log Z = sum_i mult_i (log Z_i + A(cavity_i) - A(q)) + A(q) - A(prior),
        A(T, n) = n' T^-1 n / 2 - log |T| / 2;

    its negative is the loss in `fit.trace`. There may be no fixed point, and where there is one the
    run may not reach it: a site whose cavity is improper is left alone in that sweep, and growing
    changes are damped. Factors may have negative precision. Not for multimodal posteriors or a
    handful of conflicting points: there it may not converge (`max_steps`), or end with sites that
    could not be matched (`unmatched`). Memory and time are n d^2 and n d^3 per sweep.

    Arguments:
        parallel: refine all sites from one q (fast for many sites, damped by half), or one after
            the other.
        damping: share of each change that is made, in (0, 1]; None is 1 (.5 when parallel).
        max_sweeps: sweeps after which the run ends with `max_steps`.

    Source: Minka 2001, algorithm of section 3.2 and eq. 3.20 (evidence); Seeger 2005 (natural
    parameters).
    """

    parallel: bool = eqx.field(default=False, static=True)
    damping: float | None = eqx.field(default=None, static=True)
    max_sweeps: int = eqx.field(default=200, static=True)
    compiled: ClassVar[bool] = False

    def __check_init__(self):
        if self.damping is not None and not 0 < self.damping <= 1:
            raise ValueError(f"EP: `damping` must lie in (0, 1], got {self.damping}.")

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        require(self, target, GaussianSites)
        check_no_objective(self, objective, "matches moments site by site")
        check_full_rank(self, q)

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> EPState:
        sites = require(self, target, GaussianSites)
        mean, cov = sites.prior()
        precision = np.linalg.inv(cov)
        prior = (precision, precision @ mean)
        n, dim = sites.num_sites, sites.dim
        damping = self.damping if self.damping is not None else (0.5 if self.parallel else 1.0)
        return EPState(*prior, np.zeros((n, dim, dim)), np.zeros((n, dim)), prior, damping, tol)

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: EPState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, EPState, Info]:
        """One sweep over the sites."""
        sites = require(self, target, GaussianSites)
        old_mean, old_root = mean_and_root(state.precision, state.shift)
        new = _parallel_sweep(sites, state) if self.parallel else _sequential_sweep(sites, state)
        mean, root = mean_and_root(new.precision, new.shift)
        turn = np.linalg.solve(old_root, root)
        moved = np.sqrt(np.mean(np.linalg.solve(old_root, mean - old_mean) ** 2))
        change = float(max(moved, np.abs(turn @ turn.T - np.eye(len(mean))).max()))
        damping = (
            max(0.5 * new.damping, _LEAST_DAMPING)
            if change > state.change and change > _LARGE
            else new.damping
        )
        result = None
        if change < _PRECISION * state.tol * damping:
            result = Result.converged if new.skipped == 0 else Result.unmatched
        elif state.sweeps + 1 >= self.max_sweeps:
            result = Result.max_steps
        new = dataclasses.replace(
            new,
            sweeps=state.sweeps + 1,
            change=change,
            damping=damping,
            log_evidence=ep_log_evidence(sites, new),
            result=result,
        )
        return (
            target,
            Gaussian.from_root(mean, root),
            new,
            Info(np.float64(-new.log_evidence), np.float64(change), 1),
        )

    def done(self, state: EPState) -> Result | None:
        return state.result


def refined(
    target: GaussianSites,
    index: Int[np.ndarray, "some"],
    precisions: Float[np.ndarray, "some dim dim"],
    shifts: Float[np.ndarray, "some dim"],
) -> tuple[
    Float[np.ndarray, "some"], Float[np.ndarray, "some dim dim"], Float[np.ndarray, "some dim"]
]:
    """Factors of the given sites in the given cavities: log Z_i, precision, shift.

    From G = -d^2 log Z / dm^2 and g = d log Z / dm at the cavity N(m, V): precision (I - G V)^-1 G
    and shift precision (m + V g) + g. Subtracting the cavity's precision from that of the tilted
    moments, as the textbook does, would lose all digits where the cavity is wide.
    """
    covs = inverses(precisions)
    means = np.einsum("kde,ke->kd", covs, shifts)
    log_z, slope, bend = target.tilt(index, means, covs)
    factor = inverses(np.eye(means.shape[1]) - bend @ covs) @ bend
    factor = 0.5 * (factor + np.swapaxes(factor, 1, 2))
    moved = means + np.einsum("kde,ke->kd", covs, slope)
    return log_z, factor, np.einsum("kde,ke->kd", factor, moved) + slope


def _sequential_sweep(target: GaussianSites, state: EPState) -> EPState:
    precision, shift = state.precision.copy(), state.shift.copy()
    sites, shifts = state.site_precisions.copy(), state.site_shifts.copy()
    counts, skipped = target.multiplicities, 0
    for i in range(len(counts)):
        # A site that counts k times has k equal factors, all changed at once: a k-th of the change
        # each keeps that stable.
        rate = state.damping / max(1.0, counts[i])
        cavity, cavity_shift = precision - sites[i], shift - shifts[i]
        if not is_precision(cavity):
            skipped += 1
            continue
        _, new, new_shift = refined(target, np.array([i]), cavity[None], cavity_shift[None])
        change, change_shift = rate * (new[0] - sites[i]), rate * (new_shift[0] - shifts[i])
        if not is_precision(precision + counts[i] * change):
            skipped += 1
            continue
        sites[i] += change
        shifts[i] += change_shift
        precision = precision + counts[i] * change
        shift = shift + counts[i] * change_shift
    return _with_sites(state, counts, sites, shifts, skipped)


def _parallel_sweep(target: GaussianSites, state: EPState) -> EPState:
    counts = target.multiplicities
    cavities = state.precision - state.site_precisions
    cavity_shifts = state.shift - state.site_shifts
    index = np.flatnonzero(are_precisions(cavities))
    skipped = len(counts) - len(index)
    if len(index) == 0:
        return dataclasses.replace(state, skipped=skipped)
    _, new, new_shift = refined(target, index, cavities[index], cavity_shifts[index])
    rate = state.damping / max(1.0, float(counts.max()))
    for _ in range(_MOST_HALVINGS):
        sites, shifts = state.site_precisions.copy(), state.site_shifts.copy()
        sites[index] += rate * (new - sites[index])
        shifts[index] += rate * (new_shift - shifts[index])
        if is_precision(state.prior[0] + np.einsum("i,ide->de", counts, sites)):
            return _with_sites(state, counts, sites, shifts, skipped)
        rate *= 0.5
    return dataclasses.replace(state, skipped=len(counts))


def _with_sites(
    state: EPState,
    counts: Float[np.ndarray, "sites"],
    sites: Float[np.ndarray, "sites dim dim"],
    shifts: Float[np.ndarray, "sites dim"],
    skipped: int,
) -> EPState:
    """The state with these factors, and q summed afresh from them: rounding does not pile up."""
    precision = state.prior[0] + np.einsum("i,ide->de", counts, sites)
    shift = state.prior[1] + counts @ shifts
    if not is_precision(precision):  # only by rounding: each change was checked
        return dataclasses.replace(state, skipped=len(counts))
    return dataclasses.replace(
        state,
        precision=precision,
        shift=shift,
        site_precisions=sites,
        site_shifts=shifts,
        skipped=skipped,
    )


def ep_log_evidence(target: GaussianSites, state: EPState) -> float:
    """EP's estimate of the log evidence at the state's factors, nats; NaN for improper cavities."""
    cavities = state.precision - state.site_precisions
    cavity_shifts = state.shift - state.site_shifts
    if not np.all(are_precisions(cavities)):
        return np.nan
    log_z, _, _ = refined(target, np.arange(len(cavities)), cavities, cavity_shifts)
    here = _log_partition(state.precision, state.shift)
    sites = target.multiplicities @ (log_z + _log_partition(cavities, cavity_shifts) - here)
    return float(sites + here - _log_partition(*state.prior))


def _log_partition(
    precision: Float[np.ndarray, "*batch dim dim"], shift: Float[np.ndarray, "*batch dim"]
) -> Float[Array, "*batch"]:
    """A(T, n) = n' T^-1 n / 2 - log |T| / 2."""
    mean = (inverses(precision) @ shift[..., None])[..., 0]
    return 0.5 * np.sum(mean * shift, axis=-1) - 0.5 * np.asarray(log_dets(precision), np.float64)


def are_precisions(matrices: Float[np.ndarray, "n dim dim"]) -> Bool[np.ndarray, "n"]:
    """Which of the symmetric matrices are finite and positive definite, with room for rounding."""
    finite = np.all(np.isfinite(matrices), axis=(1, 2))
    if matrices.shape[-1] == 1:
        return finite & (matrices[:, 0, 0] > _ROUNDING)
    eigenvalues = np.linalg.eigvalsh(np.where(finite[:, None, None], matrices, 0.0))
    return finite & (eigenvalues[:, 0] > _ROUNDING * np.maximum(1.0, eigenvalues[:, -1]))


def is_precision(matrix: Float[np.ndarray, "dim dim"]) -> bool:
    """Whether one symmetric matrix is; quicker than the above for a number."""
    if matrix.shape == (1, 1):
        return bool(_ROUNDING < matrix[0, 0] < np.inf)
    return bool(are_precisions(matrix[None])[0])


def mean_and_root(
    precision: Float[np.ndarray, "dim dim"], shift: Float[np.ndarray, "dim"]
) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
    """The mean and a square root of the covariance, from natural parameters."""
    lower = np.linalg.cholesky(precision)
    root = scipy.linalg.solve_triangular(lower, np.eye(len(shift)), lower=True).T
    return root @ (root.T @ shift), root


__all__ = ["EP", "EPState", "ep_log_evidence", "refined"]
