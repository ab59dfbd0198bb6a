"""`fit.at(x)`: what an amortised fit says of given data."""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .. import summary
from .._numerics import scoped, to_device, to_host
from .._types import Array, Estimate, Key, PyTree
from ..account import Budget
from ..certify.certificate import Certificate
from ..certify.simulations import Amortised
from ..certify.standards import EFFORT, STANDARDS, Standards
from ..families.conditional import Conditioned, draws_at, log_probs_at, shapes_of
from ..loop import Trace
from ..results import PairingError, Result
from ..storage import AnyPath
from ..summary import Reported
from ..targets.base import AbstractTarget
from ..targets.batched import constrain_batch
from ..targets.layout import flatten_values
from ..targets.simulator import AbstractSimulated, has_density
from .certificate import check_at

if TYPE_CHECKING:
    import pandas  # half a second that `import tightbound` does without


@runtime_checkable
class Amortising(Reported, Protocol):
    """The fit that a posterior comes from; it writes reports of others than itself, too."""

    def report_of(self, other: Reported, path: AnyPath, *, title: str | None = None) -> Path:
        """Write the page of another fitted object; returns the path."""
        ...


@dataclasses.dataclass(frozen=True)
class Posterior:
    """An amortised approximation at one data set. Refine it with `tb.refine`.

    Attributes:
        q: the member of the family that belongs to x; it lives on the unconstrained scale.
        target: the posterior's density where prior and likelihood are known, else the simulator.
        simulator: the target that the fit was trained on.
        x: the data.
        fit: the amortised fit.
    """

    q: Conditioned
    target: AbstractTarget
    simulator: AbstractSimulated
    x: PyTree
    fit: Amortising

    def sample(self, key: Key, n: int = 1000, *, corrected: bool = False) -> PyTree:
        """`n` draws of the named, constrained values: a pytree with leading axis n.

        `corrected=True` resamples by smoothed importance weights, which needs the likelihood; see
        `Fit.sample`.
        """
        if corrected:
            self._needs_density("corrected draws")
        return summary.sample(self, key, n, corrected=corrected)

    @scoped
    def log_prob(self, values: PyTree) -> Float[np.ndarray, "*batch"]:
        """log q(values | x) in nats, the density of the named, constrained values.

        One number, or one per leading index. The density is with respect to the values themselves:
        the log-Jacobian of their constraints is included.
        """
        layout = self.simulator.layout
        extra = np.ndim(jax.tree.leaves(values)[0]) - len(layout.blocks[0].shape)
        one = self._log_prob_of_one
        for _ in range(extra):
            one = jax.vmap(one)
        return np.asarray(one(jax.tree.map(lambda leaf: jnp.asarray(leaf, float), values)))

    def _log_prob_of_one(self, values: PyTree) -> Float[Array, ""]:
        z = self.simulator.unconstrain(values)
        _, log_det = self.simulator.layout.constrain_with_log_det(z)
        return to_device(self.q, self.q.dtype)._log_prob(jnp.asarray(z, self.q.dtype)) - log_det

    def check(
        self, key: Key = 0, *, budget: Budget | None = None, standards: Standards = STANDARDS
    ) -> Certificate:
        """How far off is it here? By simulation, and by `tb.check` where the density is known.

        Arguments:
            key: of fresh draws and simulations.
            budget: its evaluations are simulations, for the checks by simulation.
            standards: the thresholds of the verdicts.
        """
        return check_at(self, key=key, budget=budget, standards=standards)

    def summary(self) -> "pandas.DataFrame":
        """A table of each value, corrected where the certificate and a known density allow it."""
        if has_density(self.simulator):
            return summary.summary(self)
        names, columns = flatten_values(
            constrain_batch(self.target, self.q.draw(EFFORT.draws, self.seed)[0])
        )
        import pandas

        low, middle, high = np.quantile(columns, [0.05, 0.5, 0.95], axis=0)
        table = {
            "mean": columns.mean(axis=0),
            "sd": columns.std(axis=0),
            "5%": low,
            "50%": middle,
            "95%": high,
            "draws": "q",
        }
        return pandas.DataFrame(table, index=pandas.Index(names, name="parameter"))

    def report(self, path: AnyPath, *, title: str | None = None) -> Path:
        """Write one self-contained HTML page, as `Fit.report` does.

        Needs the density at x, and the `plots` extra.
        """
        self._needs_density("a report")
        return self.fit.report_of(self, path, title=title)

    @functools.cached_property
    def certificate(self) -> Certificate:
        """That of `check`, computed once."""
        return self.check(self.seed)

    @property
    def elbo(self) -> Estimate:
        """The evidence lower bound of x on fresh draws, nats, where the density is known."""
        return self.certificate.elbo

    @property
    def result(self) -> Result:
        """How the training ended."""
        return self.fit.result

    @property
    def steps(self) -> int:
        return self.fit.steps

    @property
    def trace(self) -> Trace:
        """Of the training."""
        return self.fit.trace

    @property
    def evaluations(self) -> int:
        return self.fit.evaluations

    @property
    def seconds(self) -> float:
        return self.fit.seconds

    @property
    def key(self) -> tuple[int, ...]:
        return self.fit.key

    @property
    def seed(self) -> int:
        return self.fit.seed

    def _needs_density(self, what: str) -> None:
        if not has_density(self.simulator):
            raise PairingError(
                f"{what.capitalize()} need{'s' if what.startswith('a ') else ''} the density of the"
                " posterior at x: pass `log_prior` and `log_likelihood` to tb.from_simulator."
            )

    def __str__(self) -> str:
        return (
            f"Amortised posterior ({type(self.q.family).__name__}, {self.q.dim} coordinates) at one"
            " data set"
        )

    __repr__ = __str__


@dataclasses.dataclass(frozen=True)
class PosteriorBatch:
    """An amortised approximation at several data sets at once; `[i]` is the Posterior of the i-th.

    Attributes:
        x: the data, with a leading axis.
        fit: the amortised fit.
    """

    x: PyTree
    fit: Amortising

    def __len__(self) -> int:
        return int(np.shape(jax.tree.leaves(self.x)[0])[0])

    def __getitem__(self, i: int) -> Posterior:
        if not -len(self) <= i < len(self):
            raise IndexError(f"There are {len(self)} data sets.")
        one = at(self.fit, jax.tree.map(lambda leaf: leaf[i], self.x))
        assert isinstance(one, Posterior)
        return one

    @scoped
    def sample(self, key: Key, n: int = 1000) -> PyTree:
        """`n` draws for each data set: the named values with leading axes [data sets, n]."""
        z = draws_at(_amortised_of(self.fit), self.x, key, n)
        values = constrain_batch(self.fit.target, z.reshape((-1, z.shape[-1])))
        return jax.tree.map(lambda leaf: leaf.reshape(z.shape[:2] + leaf.shape[1:]), values)

    @scoped
    def log_prob(self, values: PyTree) -> Float[np.ndarray, "sets"]:
        """log q(values_i | x_i), for values with one leading axis."""
        simulator = _simulator_of(self.fit)

        def log_jacobian(z: Float[Array, "dim"]) -> Float[Array, ""]:
            return simulator.layout.constrain_with_log_det(z)[1]

        z = jax.vmap(simulator.unconstrain)(
            jax.tree.map(lambda leaf: jnp.asarray(leaf, float), values)
        )
        log_q = log_probs_at(_amortised_of(self.fit), z, self.x)
        return np.asarray(log_q - jax.vmap(log_jacobian)(z))


def _amortised_of(fit: Amortising) -> Amortised:
    """The family of a fit that is amortised, which `at` has made sure of."""
    return cast(Amortised, fit.q)


def _simulator_of(fit: Amortising) -> AbstractSimulated:
    """The simulator of a fit that is amortised: no other target trains such a family."""
    return cast(AbstractSimulated, fit.target)


def at(fit: Amortising, x: PyTree) -> Posterior | PosteriorBatch:
    """The posterior of one data set, or of a batch of them with one leading axis more.

    See `Fit.at`.
    """
    if not fit.q.conditional:
        raise PairingError(
            f"fit.at: this fit is of one data set already ({type(fit.q).__name__} does not"
            " condition on data). Amortised fits come from tb.fit(tb.from_simulator(...))."
        )
    family, simulator = _amortised_of(fit), _simulator_of(fit)
    shift = family.scaling.x_shift
    if jax.tree.structure(x) == jax.tree.structure(shift):
        x = jax.tree.map(np.asarray, x)
        pairs = list(zip(shapes_of(x), shapes_of(shift), strict=True))
        one_axis_more = all(len(a) == len(b) + 1 and a[1:] == b for a, b in pairs)
        if one_axis_more and len({a[0] for a, _ in pairs}) == 1:
            return PosteriorBatch(to_host(x), fit)
    q = family.at(x)
    for leaf in jax.tree.leaves(q.x):
        if not np.isfinite(leaf).all():
            raise ValueError(
                "fit.at: `x` holds NaN or infinity, and q was trained on finite data. Impute or"
                " leave out."
            )
    target = simulator.at(q.x) if has_density(simulator) else simulator
    return Posterior(q, target, simulator, q.x, fit)


__all__ = ["Posterior", "PosteriorBatch", "at"]
