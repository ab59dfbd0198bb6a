"""A product of named factors: the mean-field family, global factors and local ones."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float, Shaped

from ..._numerics import namespace, scoped
from ..._types import Array, PyTree, Scalar, Validated
from ...results import PairingError
from ..base import AbstractFamily
from .base import AbstractExponentialFamily
from .trees import rebuilt, settled


class Product(AbstractFamily):
    """q(z) = prod_d q_d(z_d), each factor from an exponential family and with a name.

        Product(mu=Normal(0.0, 1.0), tau=Gamma(1.0, 1.0))
        Product(weights=Dirichlet(np.ones(3)), z=Categorical(np.zeros((100, 3))), local=("z",))

    A *local* factor belongs to the rows of data: the first axis of its plate is N, one member for
    each row. Not for posteriors whose factors are strongly correlated: the sds of a mean-field q
    are then too small (Blei et al. 2017, section 2.3), which the certificate measures;
    MultivariateNormal and NormalWishart hold some of it.

    Arguments:
        local: names of the local factors.
        **factors: a member of an exponential family for each name.

    Raises:
        PairingError: a factor is not a member of an exponential family.
        ValueError: no factors; a name in `local` that is no factor; local factors with plates of
            different length.
    """

    factors: dict[str, AbstractExponentialFamily]
    local: tuple[str, ...] = eqx.field(static=True)
    space: ClassVar[str] = "native"

    def __init__(
        self,
        *,
        local: tuple[str, ...] = (),
        **factors: Validated[AbstractExponentialFamily, "this function"],
    ):
        if not factors:
            raise ValueError(
                "Product: no factors; pass them by name, such as Product(mu=tb.families.Normal(0.0,"
                " 1.0))."
            )
        for name, factor in factors.items():
            if not isinstance(factor, AbstractExponentialFamily):
                raise PairingError(
                    f"Product: the factor {name!r} must be a member of an exponential family, such"
                    f" as tb.families.Gamma(1.0, 1.0), got {type(factor).__name__}."
                )
        self.factors, self.local = dict(sorted(factors.items())), tuple(local)
        lengths = {name: _rows_of(self.factors, name) for name in self.local}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"Product: local factors must have plates of one length N, got {lengths}."
            )

    def __getitem__(self, name: str) -> AbstractExponentialFamily:
        if name not in self.factors:
            raise KeyError(f"No factor is called {name!r}; there are: {', '.join(self.factors)}.")
        return self.factors[name]

    # A constant of most families, and here a property of the factors: read alike from an instance.
    @property
    def reparameterised(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the draws of every factor are smooth in its parameters."""
        return all(factor.reparameterised for factor in self.factors.values())

    @property
    def smooth_draws_no(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Which factor's draws are not smooth in the parameters, and why."""
        return "; ".join(
            f"of the factor {n!r}, {f.smooth_draws_no}"
            for n, f in self.factors.items()
            if f.smooth_draws_no
        )

    @property
    def num_rows(self) -> int | None:
        """N, the length of the local factors' plates; None without local factors."""
        return _rows_of(self.factors, self.local[0]) if self.local else None

    @property
    def dim(self) -> int:
        return sum(factor.dim for factor in self.factors.values())

    @property
    def globals(self) -> "Product":
        """The product of the factors that are not local."""
        shown = {name: f for name, f in self.factors.items() if name not in self.local}
        return Product(local=(), **shown)

    @property
    def natural(self) -> dict[str, PyTree]:
        """Natural parameters by factor."""
        return {name: factor.natural for name, factor in self.factors.items()}

    @property
    def mean_parameters(self) -> dict[str, PyTree]:
        """Mean parameters by factor: what a conjugate target's expected log joint depends on."""
        return {name: factor.mean_parameters for name, factor in self.factors.items()}

    @scoped
    def entropy(self, scale: Scalar = 1.0) -> Scalar:
        """The sum of the factors' entropies, nats.

        Those of local factors are multiplied by `scale` (N/B for a minibatch).
        """
        parts = [
            (name, jnp.sum(jnp.asarray(factor.entropies())))
            for name, factor in self.factors.items()
        ]
        return settled(sum(scale * part if name in self.local else part for name, part in parts))

    def kls(self, other: "Product") -> dict[str, Array]:
        """KL of each member of each factor from that of `other`, nats."""
        return {name: factor.kls(other[name]) for name, factor in self.factors.items()}

    @scoped
    def kl(self, other: "Product") -> Scalar:
        """KL(self || other): the sum over the factors, nats, exact."""
        return settled(sum(jnp.sum(jnp.asarray(part)) for part in self.kls(other).values()))

    def with_factor(self, name: str, factor: AbstractExponentialFamily) -> "Product":
        """The same product with another member in one place."""
        return rebuilt(self, factors={**self.factors, name: factor})

    def take(self, index: Shaped[Array, "..."] | int) -> "Product":
        """The product on the rows at `index`: its local factors restricted to them."""
        chosen = {
            name: f.take(index) if name in self.local else f for name, f in self.factors.items()
        }
        return rebuilt(self, factors=chosen)

    def values(self, z: Shaped[Array, "*batch dim"]) -> dict[str, PyTree]:
        """A flat draw as values by name, in their own shapes."""
        ends = np.cumsum([factor.dim for factor in self.factors.values()])[:-1].tolist()
        xp = namespace(z)
        parts = xp.split(xp.asarray(z), ends, axis=-1)
        return {
            name: f.values(part)
            for (name, f), part in zip(self.factors.items(), parts, strict=True)
        }

    def flat(self, values: dict[str, PyTree]) -> Float[Array, "*batch dim"]:
        """The inverse of `values`."""
        parts = [factor.flat(values[name]) for name, factor in self.factors.items()]
        return namespace(*parts).concatenate(parts, axis=-1)

    def statistics(self, values: dict[str, PyTree]) -> dict[str, PyTree]:
        """t(z) by factor at one draw's values."""
        return {
            name: f.each(lambda q, v: q._statistics(v), values[name])
            for name, f in self.factors.items()
        }

    def retract(self, step: "Product") -> "Product":
        """Each factor's own retraction."""
        return rebuilt(
            self, factors={name: f.retract(step.factors[name]) for name, f in self.factors.items()}
        )

    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        keys = jr.split(key, len(self.factors))
        return jnp.concatenate(
            [f._sample(k) for f, k in zip(self.factors.values(), keys, strict=True)]
        )

    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        values = self.values(z)
        return sum(
            (
                jnp.sum(f.each(lambda q, v: q._log_density(v), values[name]))
                for name, f in self.factors.items()
            ),
            jnp.zeros((), self.dtype),
        )


def _rows_of(factors: dict[str, AbstractExponentialFamily], name: str) -> int:
    if name not in factors:
        raise ValueError(
            f"Product: `local` names {name!r}, which is not a factor; there are:"
            f" {', '.join(factors)}."
        )
    if not factors[name].plate:
        raise ValueError(
            f"Product: the local factor {name!r} has no plate; it needs one member for each row of"
            " data."
        )
    return factors[name].plate[0]


__all__ = ["Product"]
