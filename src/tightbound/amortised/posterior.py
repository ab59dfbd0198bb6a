"""`fit.at(x)`: what an amortised fit says of given data."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import report, summary
from .._numerics import scoped, to_device, to_host
from .._types import Array, Estimate, PyTree
from ..certify.certificate import check
from ..certify.finding import Certificate
from ..families.conditional import draws_at, log_probs_at, shapes_of
from ..loop import Trace
from ..results import PairingError, Result
from ..targets.simulator import has_density
from ..targets.values import constrain_batch, flatten_values
from .certificate import check_at


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

    q: Any
    target: Any
    simulator: Any
    x: PyTree
    fit: Any

    def sample(self, key: Any, n: int = 1000, *, corrected: bool = False) -> Any:
        """`n` draws of the named, constrained values: a pytree with leading axis n.

        `corrected=True` resamples by smoothed importance weights, which needs the likelihood; see
        `Fit.sample`.
        """
        if corrected:
            self._needs_density("corrected draws")
        return summary.sample(self, key, n, corrected=corrected)

    @scoped
    def log_prob(self, values: PyTree) -> Array:
        """log q(values | x) in nats, the density of the named, constrained values.

        One number, or one per leading index.

        The density is with respect to the values themselves: the log-Jacobian of their constraints
            is included.
        """
        layout = self.simulator.layout
        extra = np.ndim(jax.tree.leaves(values)[0]) - len(layout.blocks[0].shape)
        one = self._log_prob_of_one
        for _ in range(extra):
            one = jax.vmap(one)
        return np.asarray(one(jax.tree.map(lambda leaf: jnp.asarray(leaf, float), values)))

    def _log_prob_of_one(self, values: PyTree) -> Any:
        z = self.simulator.unconstrain(values)
        _, log_det = self.simulator.layout.constrain_with_log_det(z)
        return to_device(self.q, self.q.dtype)._log_prob(jnp.asarray(z, self.q.dtype)) - log_det

    def check(self, key: Any = 0, **options: Any) -> Certificate:
        """How far off is it here? The certificate of `tb.check` where the density is known.

        Checks by simulation besides.

        Options: `budget` in simulations for the checks by simulation.
        """
        return check_at(self, check, key=key, **options)

    def summary(self) -> Any:
        """A table (pandas.DataFrame) of each value, corrected where the certificate allows and the
        density is known.
        """
        if has_density(self.simulator):
            return summary.summary(self)
        names, columns = flatten_values(
            constrain_batch(self.target, self.q.draw(4000, self.seed)[0])
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

    def report(self, path: Any, *, title: str | None = None) -> Any:
        """Write one self-contained HTML page, as `Fit.report` does.

        Needs the density at x, and the `plots` extra.
        """
        self._needs_density("a report")
        return report.write(self, path, title=title)

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
    fit: Any

    def __len__(self) -> int:
        return int(np.shape(jax.tree.leaves(self.x)[0])[0])

    def __getitem__(self, i: int) -> Posterior:
        if not -len(self) <= i < len(self):
            raise IndexError(f"There are {len(self)} data sets.")
        one = at(self.fit, jax.tree.map(lambda leaf: leaf[i], self.x))
        assert isinstance(one, Posterior)
        return one

    @scoped
    def sample(self, key: Any, n: int = 1000) -> Any:
        """`n` draws for each data set.

        The named, constrained values with leading axes [data sets, n].
        """
        z = draws_at(self.fit.q, self.x, key, n)
        values = constrain_batch(self.fit.target, z.reshape((-1, z.shape[-1])))
        return jax.tree.map(lambda leaf: leaf.reshape(z.shape[:2] + leaf.shape[1:]), values)

    @scoped
    def log_prob(self, values: PyTree) -> Array:
        """log q(values_i | x_i) `[data sets]`, for values with one leading axis."""
        jacobian = lambda z: self.fit.target.layout.constrain_with_log_det(z)[1]  # noqa: E731
        z = jax.vmap(self.fit.target.unconstrain)(
            jax.tree.map(lambda leaf: jnp.asarray(leaf, float), values)
        )
        return np.asarray(log_probs_at(self.fit.q, z, self.x) - jax.vmap(jacobian)(z))


def at(fit: Any, x: PyTree) -> Posterior | PosteriorBatch:
    """The posterior of one data set, or of a batch of them with one leading axis more.

    See `Fit.at`.
    """
    if not fit.q.conditional:
        raise PairingError(
            f"fit.at: this fit is of one data set already ({type(fit.q).__name__} does not"
            " condition on data). Amortised fits come from tb.fit(tb.from_simulator(...))."
        )
    trained = shapes_of(fit.q.scaling.x_shift)
    if jax.tree.structure(x) == jax.tree.structure(fit.q.scaling.x_shift):
        x = jax.tree.map(np.asarray, x)
        got = shapes_of(x)
        if (
            all(len(a) == len(b) + 1 and a[1:] == b for a, b in zip(got, trained, strict=True))
            and len({a[0] for a in got}) == 1
        ):
            return PosteriorBatch(to_host(x), fit)
    q = fit.q.at(x)
    for leaf in jax.tree.leaves(q.x):
        if not np.isfinite(leaf).all():
            raise ValueError(
                "fit.at: `x` holds NaN or infinity, and q was trained on finite data. Impute or"
                " leave out."
            )
    target = fit.target.at(q.x) if has_density(fit.target) else fit.target
    return Posterior(q, target, fit.target, q.x, fit)


__all__ = ["Posterior", "PosteriorBatch", "at"]
