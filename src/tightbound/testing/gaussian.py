"""The target against which closed forms are taken."""

from jaxtyping import Float

from .._types import Array, PyTree
from ..families.gaussian import Gaussian
from ..targets.base import Density


class GaussianTarget(Density):
    """exp(log_evidence) times the density of `gaussian`, a known truth for every closed form."""

    gaussian: Gaussian
    log_evidence: float = 0.0

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return tuple(f"z[{i}]" for i in range(self.dim))

    @property
    def dim(self) -> int:
        return self.gaussian.dim

    def constrain(self, z: Float[Array, "dim"]) -> PyTree:
        return {"z": z}

    def unconstrain(self, values: PyTree) -> Float[Array, "dim"]:
        return values["z"]

    def log_density(self, z: Float[Array, "dim"]) -> Float[Array, ""]:
        return self.gaussian._log_prob(z) + self.log_evidence
