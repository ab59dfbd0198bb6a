"""What we want to know: an unnormalised log density, and any structure it can show.

A target says what it can do by the ability classes that it inherits; a part (estimator, solver,
check) says which ability it needs, and `require` turns a mismatch into a sentence before anything
is compiled.
"""

import abc
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int

from .._types import Array, Key, PyTree, Scalar
from ..results import PairingError

if TYPE_CHECKING:
    from ..families.exponential.product import Product
else:
    # Abilities are imported by nearly everything, and need not bring the exponential families along
    from ..families.base import AbstractFamily as Product


class AbstractTarget(eqx.Module):
    """Something with named values that we want to know the distribution of.

    An ability, below, is a subclass with a name (`ability`) and a word on where it comes from
    (`offered_by`).
    """

    ability: ClassVar[str]
    offered_by: ClassVar[str]

    @property
    @abc.abstractmethod
    def coordinate_names(self) -> tuple[str, ...]:
        """One name per unconstrained coordinate, such as `beta[0]`, for messages and tables."""

    @abc.abstractmethod
    def constrain(self, z: Float[Array, "dim"]) -> PyTree:
        """The user's named values (derived ones included) at one unconstrained point."""

    @abc.abstractmethod
    def unconstrain(self, values: PyTree) -> Float[Array, "dim"]:
        """The unconstrained point of the user's named values: the inverse of `constrain`."""


class Density(AbstractTarget):
    """Ability: a log density on R^dim, where all values are continuous."""

    ability: ClassVar[str] = "density"
    offered_by: ClassVar[str] = "tb.from_log_density, tb.from_rows, tb.from_numpyro"

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Number of unconstrained coordinates."""

    @abc.abstractmethod
    def log_density(self, z: Float[Array, "dim"]) -> Float[Array, ""]:
        """log p(constrain(z), data) + log|det d constrain / dz| at ONE point.

        In nats, up to a constant. JAX traces it: a function of jax.numpy, of which the gradient
        exists.
        """


class Joint(AbstractTarget):
    """Ability: a log joint density on the native values (discrete ones allowed), no Jacobian."""

    ability: ClassVar[str] = "joint"
    offered_by: ClassVar[str] = "tb.from_log_density, tb.from_rows, tb.from_numpyro"

    @abc.abstractmethod
    def log_joint(self, values: PyTree) -> Float[Array, ""]:
        """log p(values, data), in nats, up to a constant."""


class Rows(Density):
    """Ability: independent rows of data.

    log p(z) = log prior(z) + scale * sum over rows of log p(row | z).
    """

    ability: ClassVar[str] = "rows"
    offered_by: ClassVar[str] = (
        "tb.from_rows, and tb.from_numpyro for models with a subsampled plate"
    )

    @property
    @abc.abstractmethod
    def num_rows(self) -> int:
        """N, read from the data itself; a wrong N cannot be stated."""

    @abc.abstractmethod
    def log_prior(self, z: Float[Array, "dim"]) -> Float[Array, ""]:
        """Log prior plus log-Jacobian at one point, in nats."""

    @abc.abstractmethod
    def log_likelihood(self, z: Float[Array, "dim"], rows: PyTree) -> Float[Array, "rows"]:
        """Unscaled log likelihood of each of the given rows, in nats."""

    @abc.abstractmethod
    def rows_at(self, index: Int[Array, "rows"]) -> PyTree:
        """The rows of data at `index`."""

    @abc.abstractmethod
    def take(self, index: Int[Array, "rows"]) -> "Rows":
        """A target on the rows at `index` only, each counted N/B times: an unbiased log density."""


class Observed(AbstractTarget):
    """Ability: data that are known, and the likelihood of each observation.

    What a DataTree keeps beside the draws.
    """

    ability: ClassVar[str] = "observed"
    offered_by: ClassVar[str] = "tb.from_rows, tb.from_numpyro"

    @abc.abstractmethod
    def observed(self) -> dict[str, np.ndarray]:
        """The data by name."""

    @abc.abstractmethod
    def pointwise_log_likelihood(self, values: PyTree) -> dict[str, np.ndarray]:
        """Name -> log likelihood of each observation at draws of the values, `[n, ...]`, nats."""


class Predictive(AbstractTarget):
    """Ability: new data from the model at draws of its values."""

    ability: ClassVar[str] = "predictive"
    offered_by: ClassVar[str] = "tb.from_numpyro"

    @abc.abstractmethod
    def posterior_predictive(self, values: PyTree, key: Key) -> dict[str, np.ndarray]:
        """Data drawn at draws of the values `[n, ...]`: name of the observed site -> `[n, ...]`."""


class Sites(Density):
    """Ability: log p(z) = log prior + a sum of `num_sites` site terms.

    What expectation propagation exploits.
    """

    ability: ClassVar[str] = "sites"
    offered_by: ClassVar[str] = "tb.targets.Clutter"

    @property
    @abc.abstractmethod
    def num_sites(self) -> int:
        """How many site terms there are."""

    @abc.abstractmethod
    def log_site(self, i: Int[Array, ""] | int, z: Float[Array, "dim"]) -> Float[Array, ""]:
        """The term of site `i` at one point, in nats."""


class Sequential(AbstractTarget):
    """Ability: the same model with a Gaussian prior and new data in place of the old.

    What `tb.update` asks for.
    """

    ability: ClassVar[str] = "new data"
    offered_by: ClassVar[str] = "tb.from_rows, tb.targets.Clutter, tb.targets.LinearClutter"

    @abc.abstractmethod
    def after(
        self, mean: Float[np.ndarray, "dim"], cov: Float[np.ndarray, "dim dim"], new_data: PyTree
    ) -> "Sequential":
        """The model with prior N(mean, cov) on the unconstrained scale, and `new_data` alone."""


class Conjugate(AbstractTarget):
    """Ability: the expected log joint as a function of the factors' moments.

    What coordinate ascent derives updates from.
    """

    ability: ClassVar[str] = "conjugate"
    offered_by: ClassVar[str] = (
        "tb.from_expected_log_joint, the models under tb.targets.conjugate, and tb.from_numpyro for"
        " conjugate models"
    )

    @abc.abstractmethod
    def expected_log_joint(
        self, moments: PyTree, rows: PyTree = None, scale: Scalar = 1.0
    ) -> Float[Array, ""]:
        """E_q[log p] under a product q, as a function of its factors' moments alone, in nats.

        Affine in the mean parameters of each factor that coordinate ascent moves. Everything that
        belongs to a row of data (its likelihood, the prior of its local factors) is counted `scale`
        times.

        Arguments:
            moments: by factor, its mean parameters; those of local factors on the given rows only.
            rows: some rows of data, like `data_rows`; None for all of them.
            scale: N / B where B of the N rows are given.
        """

    @abc.abstractmethod
    def start(self, key: Key) -> Product:
        """The product to start from; its factors say names, shapes and supports of the unknowns."""

    @property
    def data_rows(self) -> PyTree:
        """All rows of data, arrays with a leading axis of length N.

        None for a model that has no rows to subsample.
        """
        return None


class Simulator(AbstractTarget):
    """Ability: draws of (parameters, data) from the joint: what forward KL trains on.

    `circular`: which coordinates are angles in [-pi, pi]: mapped to no line, and q must be periodic
    in them.
    """

    circular: eqx.AbstractVar[tuple[bool, ...]]
    ability: ClassVar[str] = "simulator"
    offered_by: ClassVar[str] = "tb.from_simulator, tb.from_simulations"

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Number of unconstrained coordinates."""

    @abc.abstractmethod
    def draw(self, key: jax.Array) -> tuple[Float[Array, "dim"], PyTree]:
        """One draw (z, x) of the joint: z unconstrained, x floating arrays of fixed shapes."""

    @property
    def knows_density(self) -> bool:
        """Whether `at` gives a posterior with a log density."""
        return False

    @property
    def num_simulations(self) -> int | None:
        """How many simulations there are, if they are stored; None where more can be made."""
        return None

    def take(self, index: Int[Array, "n"]) -> tuple[Float[Array, "n dim"], PyTree]:
        """The stored simulations at `index`: z, and x with a leading axis n."""
        raise PairingError(
            f"{type(self).__name__} makes its simulations on the fly; there are no stored ones to"
            " take."
        )

    def at(self, x: PyTree) -> AbstractTarget:
        """The posterior of given data, a `Density` where prior and likelihood are known."""
        raise PairingError(
            f"{type(self).__name__} knows no density, so that data cannot be fixed in it."
        )


# What a target made of a user's function also knows. No part requires it, hence no abilities; and
# not on AbstractTarget, where a default would become that of a field of the same name.


@runtime_checkable
class KnowsPrecision(Protocol):
    """A target that has looked at how its function computes; the others compute in float64."""

    @property
    def returns_float32(self) -> bool:
        """Whether a number on the way to the log density is rounded below float64."""
        ...


@runtime_checkable
class WithExample(Protocol):
    """A target whose user may have given example values."""

    @property
    def example_point(self) -> Float[np.ndarray, "dim"] | None:
        """The example on the unconstrained scale; None where the user gave shapes alone."""
        ...


AbilityT = TypeVar("AbilityT", bound=AbstractTarget)


def require(part: object, target: object, ability: type[AbilityT]) -> AbilityT:
    """`target`, which then has `ability`, one of the classes above.

    Raises:
        PairingError: it has not; the sentence names what `part` needs and where it comes from.
    """
    if isinstance(target, ability):
        return target
    name = part if isinstance(part, str) else type(part).__name__
    raise PairingError(
        f"{name} needs a target with the ability `{ability.ability}`, which {type(target).__name__}"
        f" does not have. Targets that have it come from {ability.offered_by}."
    )
