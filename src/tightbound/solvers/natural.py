"""Natural-gradient variational inference: the one rule behind most solvers.

For an exponential-family q with base measure h, `eta <- (1 - rho) eta + rho d/dm E_q[log p - log
h]` (Khan & Rue 2023, eq. 6). For a Gaussian it reads `S^-1 <- (1 - rho) S^-1 - rho E_q[hess log
p]`, `mean <- mean + rho S E_q[grad log p]`. Everything is done in whitened coordinates u, z = mean
+ root u, where the target that is already matched has curvature I.
"""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np

from .._numerics import host_rng
from ..estimators.base import Moments
from ..estimators.fixed_design import FixedDesign, moment_matched
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..results import PairingError, Result
from ..search import damped_factors
from ..targets.base import Conjugate, Density, require
from .base import AbstractSolver, Info

_TRUST = 4.0  # a precision may change by this factor in one step, up or down
_STRIDE = 4  # steps between two tries to extrapolate
_LEAP = 0.7  # largest relative change of the root that an extrapolation may make
_FAR = 0.3  # nats of spread over pairs
_ENOUGH_PAIRS = 3  # times max(dim, 32): a design that shows how far q is
_MOST_PAIRS = 16  # times max(dim, 32): the largest design
_FLAT = 1e8  # a posterior sd this many times its start (or larger than 1) is an improper direction


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NewtonModel:
    """The whitened quadratic model of the ELBO at q.

    Curvature = vectors diag(eigenvalues) vectors'.
    """

    eigenvalues: Any
    vectors: Any
    # |eigenvalues| kept within the trust factor of 1: what precisions are multiplied by
    damped: Any
    stiff: Any  # |eigenvalues| kept above 1 / trust factor: what mean steps are divided by
    gradient: Any  # in the eigenbasis


def newton_model(
    gradient: Any, curvature: Any, xp: Any = np, floor: float = 1.0 / _TRUST
) -> NewtonModel:
    """Diagonalise the curvature.

    Directions of wrong sign or extreme size are tamed to within the trust factor.
    """
    eigenvalues, vectors = xp.linalg.eigh(curvature)
    size = xp.abs(eigenvalues)
    damped = xp.clip(size, 1.0 / _TRUST, _TRUST)
    return NewtonModel(eigenvalues, vectors, damped, xp.maximum(size, floor), vectors.T @ gradient)


def natural_step(
    mean: Any, root: Any, model: NewtonModel, rho: Any, xp: Any = np, reach: Any = 1.0
) -> tuple[Any, Any, Any]:
    """(mean, root, change of log|root|) after one damped step of the rule.

    The mean moves at most 2 reach sqrt(d) sds.

    The mean step is divided by the curvature: a damped Newton variant of the rule, equal to it at
    rho = 1.
    """
    shift = rho * model.gradient / model.stiff
    longest = 2.0 * reach * np.sqrt(shift.shape[0])
    shift = shift * xp.minimum(1.0, longest / (xp.linalg.norm(shift) + 1e-300))
    factor = 1.0 + rho * (model.damped - 1.0)
    new_root = root @ ((model.vectors / xp.sqrt(factor)[None, :]) @ model.vectors.T)
    return mean + root @ (model.vectors @ shift), new_root, -0.5 * xp.sum(xp.log(factor))


def natural_step_diagonal(
    mean: Any, root: Any, model: NewtonModel, rho: Any, xp: Any = np, reach: Any = 1.0
) -> tuple[Any, Any, Any]:
    """The same for a mean-field q.

    The mean takes the joint Newton step, each precision the diagonal of the curvature.
    """
    new_mean, _, _ = natural_step(mean, root, model, rho, xp, reach)
    diagonal = xp.sum(model.vectors**2 * model.eigenvalues, axis=1)
    factor = 1.0 + rho * (xp.clip(xp.abs(diagonal), 1.0 / _TRUST, _TRUST) - 1.0)
    return new_mean, root / xp.sqrt(factor)[None, :], -0.5 * xp.sum(xp.log(factor))


_STEPS = {"full": natural_step, "diagonal": natural_step_diagonal}
# a mean-field q whitens no correlation: small eigenvalues are real
_FLOORS = {"full": 1.0 / _TRUST, "diagonal": 1e-6}
_CURVATURES = {  # what must be 1 at the optimum
    "full": lambda model: model.eigenvalues,
    "diagonal": lambda model: np.sum(model.vectors**2 * model.eigenvalues, axis=1),
}


@dataclasses.dataclass(frozen=True)
class NaturalState:
    """What the next step needs: q as (mean, root), the moments there, the design and the step size."""

    mean: np.ndarray
    root: np.ndarray
    moments: Moments
    design: Any  # what the estimator's `prepare` returned: draws, quadrature nodes, or nothing
    rho: float
    tol: float
    doublings: int
    steps_on_design: int
    first_sd: np.ndarray
    rng: np.random.Generator
    anchor: tuple[np.ndarray, np.ndarray]  # (mean, root) some steps ago, to extrapolate from
    stretch: float = 4.0
    # of the mean's steps; doubled while steps of full length climb, so that a far start costs few
    reach: float = 1.0
    floor: float = 1.0 / _TRUST  # of the curvature that mean steps are divided by
    result: Result | None = None


class NaturalGradient(AbstractSolver):
    """Gaussian variational inference by natural gradient on a fixed design, monotone in the
    design's ELBO.

    The default solver up to some hundreds of dimensions. Each step evaluates the design once and
    moves mean and covariance together; a step that lowers the ELBO is shortened. When q has settled
    to within the design's own error and that error is above `tol` posterior sds, the design is
    drawn anew, two to four times larger. For a tb.families.Product on a conjugate target the same
    rule moves each factor's natural parameters, with exact expectations and a step that is
    shortened until the ELBO does not fall: it takes models that CoordinateAscent refuses. Not for:
    minibatches or noisy densities (StochasticGradient), low-rank scales (FixedDraws), dim above
    about 2,000.

    Arguments:
        estimator: where E_q[grad log p] and E_q[hess log p] come from; anything with `moments`.
            Where its `elbo` is NaN (LocalQuadratic has none) steps are taken unchecked, and nothing
            is monotone. An estimator with `enlarged(design, error / tol, rng) -> design | None`
            says itself how its design grows.
        max_doublings: how often the design may grow; then the result is `noisy`.
        max_steps_per_design: steps before a design is given up.

    Source: Opper & Archambeau 2009; Khan & Rue 2023, section 3.1; `docs/default-fit.md`.
    """

    estimator: Any = eqx.field(default_factory=FixedDesign)
    max_doublings: int = 4
    max_steps_per_design: int = 60
    compiled: ClassVar[bool] = False

    def default_objective(self) -> AbstractObjective:
        return ELBO()

    def own_start(self, target: Any, key: Any, starts: int | None) -> Any:
        """Of a conjugate target the start of its factors; else the default's."""
        return (
            target.start(host_rng(key, "start").integers(2**31))
            if isinstance(target, Conjugate)
            else None
        )

    def check(self, target: Any, q: Any, objective: AbstractObjective | None) -> None:
        require(self, target, Conjugate if _has_factors(q) else Density)
        if not isinstance(objective, ELBO):
            raise PairingError(
                "NaturalGradient maximises the ELBO and nothing else, got"
                f" {type(objective).__name__}; leave `objective` out, or use StochasticGradient."
            )
        if _has_factors(q):
            damped_factors.check(target, q)
            return
        if not hasattr(self.estimator, "moments"):
            raise PairingError(
                "NaturalGradient needs an estimator of E_q[grad log p] and E_q[hess log p];"
                f" {type(self.estimator).__name__} only estimates gradients in q's parameters. Use"
                " FixedDesign, or StochasticGradient with this estimator."
            )
        if _structure(q) not in _STEPS:
            raise PairingError(
                "NaturalGradient moves a Gaussian with a full or diagonal scale, not"
                f" {_describe_family(q)}; use tb.families.Gaussian.full(dim), or another solver"
                " (FixedDraws, StochasticGradient)."
            )

    def init(self, target: Any, q: Any, objective: Any, key: Any, tol: float) -> Any:
        if _has_factors(q):
            return damped_factors.init(target, q, tol)
        design = self.estimator.prepare(target, q, key)
        mean, root = np.array(q.mean, dtype=np.float64), np.array(q.scale.root, dtype=np.float64)
        moments = self.estimator.moments(target, mean, root, design)
        for _ in range(40):  # shrink a start that reaches beyond where the density is finite
            if moments.finite:
                break
            root = 0.5 * root
            moments = self.estimator.moments(target, mean, root, design)
        result = None if moments.finite else Result.nonfinite
        sd = np.sqrt(np.sum(root**2, axis=1))
        return NaturalState(
            mean,
            root,
            moments,
            design,
            1.0,
            tol,
            0,
            0,
            sd,
            host_rng(key, "larger designs"),
            (mean, root),
            floor=_FLOORS[_structure(q)],
            result=result,
        )

    def step(
        self, target: Any, q: Any, objective: Any, state: Any, key: Any
    ) -> tuple[Any, Any, Any, Info]:
        if _has_factors(q):
            return target, *damped_factors.step(q, state)
        if state.result is not None:
            return target, q, state, _info(state, 0.0, 0)
        structure = _structure(q)
        new, tried = self._ascend(target, _STEPS[structure], state, _model_at(state))
        if new is not None and new.steps_on_design % _STRIDE == 0:
            new, tried = self._leap(target, new), tried + 1
        used = tried * state.moments.evaluations
        if new is None:
            ended, extra = self._settle(target, state, stalled=not _settled(state, structure))
        elif _improvement(new, state) < 1e-4 or _settled(new, structure):
            ended, extra = self._settle(target, new, stalled=False)
        else:
            ended, extra = self._limits(target, new)
        change = float(np.sqrt(np.mean(np.linalg.solve(state.root, ended.mean - state.mean) ** 2)))
        q = type(q)(ended.mean, type(q.scale).from_root(ended.root))
        return target, q, ended, _info(ended, change, used + extra)

    def done(self, state: Any) -> Result | None:
        return state.result

    def _ascend(
        self, target: Any, rule: Any, state: NaturalState, model: NewtonModel
    ) -> tuple[NaturalState | None, int]:
        """The first step along the rule that does not lower the design's ELBO, and how many were
        tried.
        """
        rho, slope = state.rho, float(np.sum(model.gradient**2 / model.stiff))
        here = float(state.moments.elbo)
        for tried in range(1, 13):
            mean, root, _ = rule(state.mean, state.root, model, rho, reach=state.reach)
            moments = self.estimator.moments(target, mean, root, state.design)
            climbs = np.isnan(here) or float(
                moments.elbo
            ) >= here + 1e-4 * rho * slope - 1e-9 * abs(here)
            if moments.finite and climbs:
                return (
                    dataclasses.replace(
                        state,
                        mean=mean,
                        root=root,
                        moments=moments,
                        rho=min(1.0, 1.8 * rho),
                        reach=_next_reach(state, mean, tried),
                        steps_on_design=state.steps_on_design + 1,
                    ),
                    tried,
                )
            rho *= 0.4
        return None, 12

    def _leap(self, target: Any, state: NaturalState) -> NaturalState:
        """Extrapolate the last few steps; kept when it climbs, and then the next leap is longer.

        Hierarchical models make the rule creep along a curved valley, each step a little further
        the same way.
        """
        old_mean, old_root = state.anchor
        state = dataclasses.replace(state, anchor=(state.mean, state.root))
        turn = np.linalg.solve(old_root, state.root) - np.eye(len(old_mean))
        mean = state.mean + state.stretch * (state.mean - old_mean)
        root = state.root @ (np.eye(len(mean)) + state.stretch * turn)
        shorter = dataclasses.replace(state, stretch=max(1.0, 0.5 * state.stretch))
        if np.linalg.norm(state.stretch * turn, ord=2) > _LEAP or np.linalg.cond(root) > 1e12:
            return shorter
        moments = self.estimator.moments(target, mean, root, state.design)
        if not (moments.finite and moments.elbo > state.moments.elbo):
            return shorter
        return dataclasses.replace(
            state, mean=mean, root=root, moments=moments, stretch=min(64.0, 2.0 * state.stretch)
        )

    def _settle(self, target: Any, state: NaturalState, stalled: bool) -> tuple[NaturalState, int]:
        """q has settled on this design.

        Finish when the design's error is below tol, else enlarge the design.
        """
        error = _standard_error(state.moments, _model_at(state))
        if error < state.tol:
            return (
                dataclasses.replace(state, result=Result.stalled if stalled else Result.converged),
                0,
            )
        enlarge = getattr(self.estimator, "enlarged", _larger_design)
        design = (
            None
            if state.doublings >= self.max_doublings or _is_far(state)
            else enlarge(state.design, error / state.tol, state.rng)
        )
        if design is None:
            return dataclasses.replace(state, result=Result.noisy), 0
        moments = self.estimator.moments(target, state.mean, state.root, design)
        used = moments.evaluations
        # the larger design reaches where the density is not finite: keep what the smaller one found
        if not moments.finite:
            return dataclasses.replace(state, result=Result.noisy), used
        fresh = {
            "anchor": (state.mean, state.root),
            "rho": 1.0,
            "steps_on_design": 0,
            "doublings": state.doublings + 1,
        }
        return dataclasses.replace(state, moments=moments, design=design, **fresh), used

    def _limits(self, target: Any, state: NaturalState) -> tuple[NaturalState, int]:
        sd = np.sqrt(np.sum(state.root**2, axis=1))
        if np.any(sd > _FLAT * np.maximum(state.first_sd, 1.0)):
            return dataclasses.replace(state, result=Result.unbounded), 0
        if state.steps_on_design >= self.max_steps_per_design:
            return self._settle(target, state, stalled=True)
        return state, 0


def _next_reach(state: NaturalState, mean: np.ndarray, tried: int) -> float:
    """Twice the reach after a step that went as far as it may and climbed at once.

    Halved, down to 1, otherwise.
    """
    moved = np.linalg.norm(np.linalg.solve(state.root, mean - state.mean)) / np.sqrt(len(mean))
    return (
        2.0 * state.reach
        if tried == 1 and moved > 1.99 * state.reach
        else max(1.0, 0.5 * state.reach)
    )


def _model_at(state: NaturalState) -> NewtonModel:
    return newton_model(state.moments.gradient, state.moments.curvature, floor=state.floor)


def _settled(state: NaturalState, structure: str) -> bool:
    """Whitened move and curvature error below 0.3 of the design's own error (or a quarter of, or
    all of, tol).
    """
    model = _model_at(state)
    error = _standard_error(state.moments, model)
    return bool(arrived(model, _CURVATURES[structure](model), error, state.tol))


def arrived(model: NewtonModel, curvature: Any, error: Any, tol: Any, xp: Any = np) -> Any:
    """Whether the whitened move and the error of `curvature` (1 at the optimum) are below what the
    design can tell.
    """
    move = xp.sqrt(xp.mean((model.gradient / model.stiff) ** 2))
    wrong = xp.sqrt(xp.mean((curvature - 1.0) ** 2))
    near = (move < xp.maximum(0.3 * error, 0.25 * tol)) & (wrong < xp.maximum(0.3 * error, tol))
    return near & (xp.min(curvature) > 0)


def _standard_error(moments: Moments, model: NewtonModel) -> float:
    return float(design_error(moments, model))


def design_error(moments: Moments, model: NewtonModel, xp: Any = np) -> Any:
    """Sampling error of the design: of the mean in posterior sds (rms over directions), or a fifth
    of the precisions'.

    A symmetric target has no error in the mean on antithetic draws, however wrong the sds are:
    hence the second. A fifth holds the relative error of the sds, half that of the precisions, to
    two and a half times `tol`.
    """
    spread = (moments.gradient_spread - moments.gradient[None, :]) @ (
        model.vectors / model.stiff[None, :]
    )
    return xp.maximum(xp.sqrt(xp.mean(spread**2) / spread.shape[0]), 0.2 * moments.curvature_stderr)


def _larger_design(design: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray | None:
    """A fixed design two to four times larger, by how far its error is above `tol`.

    None where it is at its largest.
    """
    pairs, dim = design.shape
    grown = min(int(pairs * min(max(2.0, ratio**2), 4.0)), max(_MOST_PAIRS * max(dim, 32), pairs))
    return None if grown == pairs else moment_matched(rng, grown, dim)


def _is_far(state: NaturalState) -> bool:
    """Whether log p - log q varies so much over the design that no Gaussian's mean deserves a
    larger one.

    A spread of a nat (KL of about half of one) means that the answer needs weights or a richer
    family, not digits.
    """
    pairs, dim = state.moments.gradient_spread.shape
    return pairs >= _ENOUGH_PAIRS * max(dim, 32) and bool(
        float(state.moments.elbo_stderr) * np.sqrt(pairs) > _FAR
    )


def _improvement(new: NaturalState, old: NaturalState) -> float:
    return float(new.moments.elbo - old.moments.elbo)


def _info(state: NaturalState, change: float, evaluations: int) -> Info:
    return Info(np.float64(-state.moments.elbo), np.float64(change), evaluations)


def _has_factors(q: Any) -> bool:
    """Whether q is a product of exponential-family factors, whose expectations are exact
    (damped_factors.py).
    """
    return hasattr(q, "factors")


def _structure(q: Any) -> str:
    return q.covariance_structure


def _describe_family(q: Any) -> str:
    structure = _structure(q)
    return (
        f"{type(q).__name__} with a {structure} scale" if structure != "none" else type(q).__name__
    )
