"""The same model after some data were seen.

Yesterday's Gaussian as the prior, today's rows as the data.
"""

from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Array, PyTree
from .base import Rows, Sequential
from .sites import log_normal
from .tracing import host_unless_traced


@final
class UpdatedRows(Rows, Sequential):
    """log p(z) = log N(z.

    Mean, root root') + scale * sum over the new rows of log_likelihood(z, row); by `tb.update`.

    The prior is on the unconstrained scale, where yesterday's q lives. Make it with `tb.update(fit,
    new_data)`, not by hand.

    Attributes:
        rows: the target that says what a row's likelihood is, holding the new rows; its own prior
            is not used.
        mean: `[d]`, and `root` `[d, d]` of the Gaussian prior.
    """

    rows: Any
    mean: Array
    root: Array

    @property
    def dim(self) -> int:
        return self.rows.dim

    @property
    def num_rows(self) -> int:
        return self.rows.num_rows

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return self.rows.coordinate_names

    @property
    def value_names(self) -> tuple[str, ...]:
        return self.rows.value_names

    def constrain(self, z: Array) -> PyTree:
        return self.rows.constrain(z)

    def unconstrain(self, values: PyTree) -> Array:
        return self.rows.unconstrain(values)

    @host_unless_traced
    def log_density(self, z: Array) -> Array:
        likelihood = self.rows.scale * jnp.sum(
            self.rows.log_likelihood(z, jax.tree.map(jnp.asarray, self.rows.data))
        )
        return self.log_prior(z) + likelihood

    @host_unless_traced
    def log_prior(self, z: Array) -> Array:
        return log_normal(z, self.mean, self.root)

    def log_likelihood(self, z: Array, rows: PyTree) -> Array:
        return self.rows.log_likelihood(z, rows)

    def rows_at(self, index: Array) -> PyTree:
        return self.rows.rows_at(index)

    def take(self, index: Array) -> "UpdatedRows":
        return UpdatedRows(self.rows.take(index), self.mean, self.root)

    def after(self, mean: np.ndarray, cov: np.ndarray, new_data: Any) -> "UpdatedRows":
        return self.rows.after(mean, cov, new_data)


__all__ = ["UpdatedRows"]
