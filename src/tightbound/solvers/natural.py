"""Natural-gradient variational inference: the default solver up to some hundreds of dimensions."""

import dataclasses
from typing import ClassVar, cast

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .._numerics import host_rng
from .._types import Array, Key, PyTree
from ..estimators.base import AbstractEstimator, AbstractMomentEstimator, Moments
from ..estimators.fixed_design import FixedDesign
from ..families.base import AbstractFamily
from ..families.exponential.product import Product
from ..families.gaussian import Gaussian
from ..families.scales import Diagonal, Full
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..results import PairingError, Result
from ..search import damped_factors
from ..search.natural_rule import DIAGONAL, FULL, RUNNING, Conduct, conclusion, is_far
from ..search.natural_search import NaturalSearch, begun, on_new_design, whole_step
from ..targets.base import AbstractTarget, Conjugate, Density, require
from .base import AbstractSolver, Info, check_elbo

_CONDUCTS: dict[str, Conduct] = {"full": FULL, "diagonal": DIAGONAL}


@dataclasses.dataclass(frozen=True)
class NaturalState:
    """What the next step needs: the search, and the design that it runs on.

    Attributes:
        search: q as (mean, root), and how far it is on the design.
        design: what the estimator's `prepare` returned: draws, quadrature nodes, or nothing.
        tol: accuracy asked of the means, in posterior sds.
        doublings: how often the design has grown.
        rng: of larger designs.
    """

    search: NaturalSearch
    design: PyTree
    tol: float
    doublings: int
    rng: np.random.Generator
    result: Result | None = None


class NaturalGradient(AbstractSolver):
    """Natural gradient on a fixed design, monotone in the design's ELBO.

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

    estimator: AbstractEstimator = eqx.field(default_factory=FixedDesign)
    max_doublings: int = 4
    max_steps_per_design: int = FULL.most_steps
    compiled: ClassVar[bool] = False

    def default_objective(self) -> AbstractObjective:
        return ELBO()

    def own_start(
        self, target: AbstractTarget, key: Key, starts: int | None
    ) -> AbstractFamily | None:
        """Of a conjugate target the start of its factors; else the default's."""
        if not isinstance(target, Conjugate):
            return None
        return target.start(host_rng(key, "start").integers(2**31))

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        require(self, target, Conjugate if q.space == "native" else Density)
        check_elbo(self, objective, "leave `objective` out, or use StochasticGradient")
        if q.space == "native":
            damped_factors.check(target, q)
            return
        if not self.estimator.gives_moments:
            raise PairingError(
                "NaturalGradient needs an estimator of E_q[grad log p] and E_q[hess log p];"
                f" {type(self.estimator).__name__} only estimates gradients in q's parameters. Use"
                " FixedDesign, or StochasticGradient with this estimator."
            )
        if q.covariance_structure not in _CONDUCTS:
            raise PairingError(
                "NaturalGradient moves a Gaussian with a full or diagonal scale, not"
                f" {_describe_family(q)}; use tb.families.Gaussian.full(dim), or another solver"
                " (FixedDraws, StochasticGradient)."
            )

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> NaturalState | damped_factors.DampedState:
        if q.space == "native":
            # `check` has refused every q on native values but a product of factors.
            return damped_factors.init(require(self, target, Conjugate), cast(Product, q), tol)
        start = cast(Gaussian, q)  # `check` has refused all else
        mean, root = np.array(start.mean, np.float64), np.array(start.root, np.float64)
        search = begun(mean, root, np.linalg.slogdet(root)[1])
        design = self.estimator.prepare(target, q, key)
        state = NaturalState(search, design, tol, 0, host_rng(key, "larger designs"))
        # The start is evaluated here, so that a budget that ends at once has an ELBO to show. The
        # account has its evaluations; the trace begins with the first step.
        search, _ = self._stepped(target, q, state)
        result = conclusion(search.status, search.error, tol) if search.status != RUNNING else None
        return dataclasses.replace(state, search=search, result=result)

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: NaturalState | damped_factors.DampedState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, NaturalState | damped_factors.DampedState, Info]:
        if isinstance(state, damped_factors.DampedState):
            new, damped, loss, distance, tried = damped_factors.step(state)
            return target, new, damped, Info(np.float64(loss), np.float64(distance), tried)
        if state.result is not None:
            return target, q, state, _info(state.search, 0.0, 0)
        search, used = self._stepped(target, q, state)
        ended = dataclasses.replace(state, search=search)
        if search.status != RUNNING:
            ended, extra = self._settled(target, q, ended)
            used += extra
        before, after = state.search, ended.search
        change = np.sqrt(np.mean(np.linalg.solve(before.root, after.mean - before.mean) ** 2))
        scale = Full if q.covariance_structure == "full" else Diagonal
        q_new = Gaussian(after.mean, scale.from_root(after.root))
        return target, q_new, ended, _info(after, float(change), used)

    def done(self, state: NaturalState | damped_factors.DampedState) -> Result | None:
        return state.result

    @property
    def _estimator(self) -> AbstractMomentEstimator:
        # `check` has refused every other one.
        return cast(AbstractMomentEstimator, self.estimator)

    def _stepped(
        self, target: AbstractTarget, q: AbstractFamily, state: NaturalState
    ) -> tuple[NaturalSearch, int]:
        """One whole step of the search on the state's design, and the evaluations used."""

        def moments_at(mean: Float[Array, "dim"], root: Float[Array, "dim dim"]) -> Moments:
            estimator = self._estimator
            return estimator.moments(target, np.asarray(mean), np.asarray(root), state.design)

        conduct = dataclasses.replace(
            _CONDUCTS[q.covariance_structure], most_steps=self.max_steps_per_design
        )
        return whole_step(state.search, moments_at, conduct, state.tol)

    def _settled(
        self, target: AbstractTarget, q: AbstractFamily, state: NaturalState
    ) -> tuple[NaturalState, int]:
        """The search has ended on its design: the result, or a larger design to go on with."""
        search = state.search
        result = conclusion(search.status, search.error, state.tol)
        if result is not None:
            return dataclasses.replace(state, result=result), 0
        grows = state.doublings < self.max_doublings and not _is_far(state)
        ratio, design = float(search.error) / state.tol, None
        if grows:
            design = self._estimator.enlarged(state.design, ratio, state.rng)
        if design is None:
            return dataclasses.replace(state, result=Result.noisy), 0
        state = dataclasses.replace(
            state, search=on_new_design(search), design=design, doublings=state.doublings + 1
        )
        search, used = self._stepped(target, q, state)
        ended = search.status != RUNNING
        result = conclusion(search.status, search.error, state.tol) if ended else None
        return dataclasses.replace(state, search=search, result=result), used


def _is_far(state: NaturalState) -> bool:
    search = state.search
    return bool(is_far(search.spread, int(search.pairs), len(search.mean)))


def _info(search: NaturalSearch, change: float, evaluations: int) -> Info:
    return Info(np.float64(-search.elbo), np.float64(change), evaluations)


def _describe_family(q: AbstractFamily) -> str:
    structure, name = q.covariance_structure, type(q).__name__
    return name if structure == "none" else f"{name} with a {structure} scale"
