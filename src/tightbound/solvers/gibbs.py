"""Gibbs sampling from the exact conditionals that a conjugate target has."""

from typing import Any

import equinox as eqx
import jax
import jax.random as jr

from .._numerics import to_device
from .._types import PyTree
from ..families.exponential.product import Product
from ..results import PairingError
from ..search.conjugate_form import as_conjugate
from ..search.factor_rule import best_natural, check_product, curved_factors, order
from ..targets.base import Conjugate
from .coordinate_ascent import best_start
from .sampling import AbstractSampler, Moves


class _Chains(eqx.Module):
    """Every factor's values `[C, ...]`, those of hidden factors too.

    And the conjugate form where it had to be found.
    """

    found: Any
    values: dict[str, Any]


class Gibbs(AbstractSampler):
    """Draws each factor from its exact conditional given all others, one after the other.

        z_d ~ q_d(. | eta_d),   eta_d = d/dm_d (E log p - log h_d)  with the others' moments
        replaced by their statistics

    which is the update of coordinate ascent at values in place of moments (Blei et al. 2017,
    section 2.4), from the same one function. No tuning, no rejections; hidden values (indicators,
    states) are drawn too and not kept. The referee of CoordinateAscent. Slow where factors are
    strongly correlated (mean and scale of a hierarchy); chains of a mixture stay in the mode that
    they start in.

    Arguments:
        chains: C, independent ones, from draws of q.
        warmup: sweeps thrown away.
        draws: sweeps kept of each chain.

    Source: Geman & Geman 1984; Gelfand & Smith 1990.
    """

    chains: int = 4
    warmup: int = 500
    draws: int = 1000

    def own_start(self, target: Any, key: Any, starts: int | None) -> Any:
        """Where coordinate ascent starts."""
        return best_start(as_conjugate(target), key, starts)

    def supports(self, target: Any, q: Any) -> None:
        conjugate = as_conjugate(target)
        check_product("Gibbs", conjugate, q)
        curved = curved_factors(to_device(conjugate), to_device(q), jr.key(0))
        if curved:
            raise PairingError(
                f"Gibbs: the model is not conjugate in the factor {curved[0]!r}, so its conditional"
                f" is not a {type(q[curved[0]]).__name__}; use tb.solvers.NUTS() on a target with a"
                " log density."
            )

    def start(self, target: Any, q: Any, key: jax.Array) -> tuple[PyTree, int, bool]:
        points = jax.vmap(q._sample)(jr.split(key, self.chains))
        found = None if isinstance(target, Conjugate) else to_device(as_conjugate(target))
        return _Chains(found, jax.vmap(q.values)(points)), 0, True

    def sweep(
        self, target: Any, q: Any, chains: Any, count: jax.Array, key: jax.Array
    ) -> tuple[PyTree, Moves]:
        conjugate = target if chains.found is None else chains.found
        values, log_joint = jax.vmap(lambda v, k: _swept(conjugate, q, v, k))(
            chains.values, jr.split(key, self.chains)
        )
        names = {block.name.split(".")[0] for block in conjugate.layout.blocks}
        shown = {name: value for name, value in values.items() if name in names}
        positions = jax.vmap(conjugate.layout.unconstrain)(shown)
        moves = Moves(positions, {"lp": log_joint}, float(self.chains), float("nan"))
        return _Chains(chains.found, values), moves


def _swept(
    target: Any, q: Product, values: dict[str, Any], key: jax.Array
) -> tuple[dict[str, Any], jax.Array]:
    """One chain after one sweep, and the log joint of all its values, hidden ones too."""
    statistics = q.statistics(values)
    for i, name in enumerate(order(q)):
        factor = q.factors[name]
        eta = best_natural(target, q, name, statistics)
        conditional = factor.each(lambda f, e: f._of_natural(e), eta)
        z = conditional._sample(jr.fold_in(key, i))
        values = {**values, name: factor.values(z)}
        statistics = {**statistics, name: factor.each(lambda f, v: f._statistics(v), values[name])}
    return values, target.expected_log_joint(statistics)


__all__ = ["Gibbs"]
