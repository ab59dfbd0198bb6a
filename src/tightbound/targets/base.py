"""What we want to know: an unnormalised log density, and any structure it can show.

A target says what it can do by the ability classes that it inherits; a part (estimator, solver,
check) says which ability it needs, and `require` turns a mismatch into a sentence before anything
is compiled.
"""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import numpy as np

from .._types import Array, Key, PyTree
from ..results import PairingError


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
        """One name per unconstrained coordinate, such as `beta[0]`, used in every message and
        table.
        """

    @abc.abstractmethod
    def constrain(self, z: Array) -> PyTree:
        """The user's named values (derived ones included) at one unconstrained point `[dim]`."""

    @abc.abstractmethod
    def unconstrain(self, values: PyTree) -> Array:
        """The unconstrained point `[dim]` of the user's named values: the inverse of `constrain`."""


class Density(AbstractTarget):
    """Ability: a log density on R^dim, where all values are continuous."""

    ability: ClassVar[str] = "density"
    offered_by: ClassVar[str] = "tb.from_log_density, tb.from_rows, tb.from_numpyro"

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Number of unconstrained coordinates."""

    @abc.abstractmethod
    def log_density(self, z: Array) -> Array:
        """log p(constrain(z), data) + log|det d constrain / dz| at ONE point `[dim]`.

        A scalar in nats, up to a constant.
        """


class Joint(AbstractTarget):
    """Ability: a log joint density on the native values (discrete ones allowed), no Jacobian."""

    ability: ClassVar[str] = "joint"
    offered_by: ClassVar[str] = "tb.from_log_density, tb.from_rows, tb.from_numpyro"

    @abc.abstractmethod
    def log_joint(self, values: PyTree) -> Array:
        """log p(values, data): a scalar in nats, up to a constant."""


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
    def log_prior(self, z: Array) -> Array:
        """Log prior plus log-Jacobian at one point: a scalar in nats."""

    @abc.abstractmethod
    def log_likelihood(self, z: Array, rows: PyTree) -> Array:
        """Unscaled log likelihood of each of the given rows, `[B]`, in nats."""

    @abc.abstractmethod
    def rows_at(self, index: Array) -> PyTree:
        """The rows of data at `index` (integers, `[B]`)."""

    @abc.abstractmethod
    def take(self, index: Array) -> "Rows":
        """A target on the rows at `index` only, each counted N/B times: an unbiased log density."""


class Observed(AbstractTarget):
    """Ability: data that are known, and the likelihood of each observation.

    What a DataTree keeps beside the draws.
    """

    ability: ClassVar[str] = "observed"
    offered_by: ClassVar[str] = "tb.from_rows, tb.from_numpyro"

    @abc.abstractmethod
    def observed(self) -> dict[str, Any]:
        """The data by name, as NumPy arrays."""

    @abc.abstractmethod
    def pointwise_log_likelihood(self, values: dict[str, Any]) -> dict[str, Any]:
        """Log likelihood of each observation at draws of the values `[draw, ...]`.

        Name -> `[draw, ...]`, nats.
        """


class Predictive(AbstractTarget):
    """Ability: new data from the model at draws of its values."""

    ability: ClassVar[str] = "predictive"
    offered_by: ClassVar[str] = "tb.from_numpyro"

    @abc.abstractmethod
    def posterior_predictive(self, values: dict[str, Any], key: Key) -> dict[str, Any]:
        """Data drawn at draws of the values `[draw, ...]`.

        Name of the observed site -> `[draw, ...]`.
        """


class Sites(Density):
    """Ability: log p(z) = log prior + a sum of `num_sites` site terms.

    What expectation propagation exploits.
    """

    ability: ClassVar[str] = "sites"
    offered_by: ClassVar[str] = "tb.targets.Clutter"

    @property
    @abc.abstractmethod
    def num_sites(self) -> int: ...

    @abc.abstractmethod
    def log_site(self, i: jax.Array, z: jax.Array) -> jax.Array: ...


class Sequential(AbstractTarget):
    """Ability: the same model with a Gaussian prior and new data in place of the old.

    What `tb.update` asks for.
    """

    ability: ClassVar[str] = "new data"
    offered_by: ClassVar[str] = "tb.from_rows, tb.targets.Clutter, tb.targets.LinearClutter"

    @abc.abstractmethod
    def after(self, mean: np.ndarray, cov: np.ndarray, new_data: Any) -> "Sequential":
        """The model with prior N(mean `[dim]`, cov `[dim, dim]`) on the unconstrained scale, and
        `new_data` alone.
        """


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
        self, moments: PyTree, rows: Any = None, scale: float = 1.0
    ) -> jax.Array:
        """E_q[log p] under a product q, as a function of its factors' moments alone: a scalar in
        nats.

        Affine in the mean parameters of each factor that coordinate ascent moves. Everything that
        belongs to a row of data (its likelihood, the prior of its local factors) is counted `scale`
        times.

        Arguments:
            moments: by factor, its mean parameters; those of local factors on the given rows only.
            rows: some rows of data, like `data_rows`; None for all of them.
            scale: N / B where B of the N rows are given.
        """

    @abc.abstractmethod
    def start(self, key: Any) -> Any:
        """A tb.families.Product to start from.

        Its factors say the names, shapes and supports of the unknowns.
        """

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

    if TYPE_CHECKING:  # a field, wherever it stands in a subclass
        circular: ClassVar[tuple[bool, ...]]
    else:
        circular: eqx.AbstractVar[tuple[bool, ...]]
    ability: ClassVar[str] = "simulator"
    offered_by: ClassVar[str] = "tb.from_simulator, tb.from_simulations"

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Number of unconstrained coordinates."""

    @abc.abstractmethod
    def draw(self, key: jax.Array) -> tuple[jax.Array, PyTree]:
        """One draw (z, x) of the joint.

        Z `[dim]` unconstrained, x a pytree of floating arrays of fixed shapes.
        """

    @property
    def num_simulations(self) -> int | None:
        """How many simulations there are, where they are stored ones; None where more can be made."""
        return None

    def take(self, index: Array) -> tuple[Array, PyTree]:
        """The stored simulations at `index [B]`: z `[B, dim]` and x with a leading axis B."""
        raise PairingError(
            f"{type(self).__name__} makes its simulations on the fly; there are no stored ones to"
            " take."
        )

    def at(self, x: PyTree) -> AbstractTarget:
        """The posterior of given data, with the ability `density` where the prior and the
        likelihood are known.
        """
        raise PairingError(
            f"{type(self).__name__} knows no density, so that data cannot be fixed in it."
        )


def require(part: Any, target: Any, ability: type[AbstractTarget]) -> None:
    """Raise a PairingError with the way out unless `target` has `ability`, one of the classes
    above.
    """
    if isinstance(target, ability):
        return
    name = part if isinstance(part, str) else type(part).__name__
    raise PairingError(
        f"{name} needs a target with the ability `{ability.ability}`, which {type(target).__name__}"
        f" does not have. Targets that have it come from {ability.offered_by}."
    )
