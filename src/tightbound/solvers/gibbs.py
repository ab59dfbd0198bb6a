"""Gibbs sampling from the exact conditionals that a conjugate target has."""

from typing import cast

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Float, Int

from .._numerics import to_device
from .._types import Array, Key, PyTree
from ..families.base import AbstractFamily
from ..families.exponential.product import Product
from ..results import PairingError
from ..search.chain_statistics import MixingLimits
from ..search.conjugate_form import as_conjugate
from ..search.factor_rule import best_natural, check_product, curved_factors, order
from ..starts.coordinate_ascent import best_start
from ..targets.base import AbstractTarget
from ..targets.conjugate.base import AbstractConjugateTarget
from .sampling import AbstractSampler, Moves


class _Chains(eqx.Module):
    """All chains.

    Attributes:
        found: the conjugate form where it had to be found; None where the target has it itself.
        values: of every factor, hidden ones too, `[chains, ...]`.
    """

    found: AbstractConjugateTarget | None
    values: dict[str, PyTree]


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
        chains: independent ones, from draws of q.
        warmup: sweeps thrown away.
        draws: sweeps kept of each chain.
        limits: of R-hat and effective draws, by which the run ends as mixed or unmixed.

    Source: Geman & Geman 1984; Gelfand & Smith 1990.
    """

    chains: int = 4
    warmup: int = 500
    draws: int = 1000
    limits: MixingLimits = eqx.field(default=MixingLimits(), static=True)

    def own_start(
        self, target: AbstractTarget, key: Key, starts: int | None
    ) -> AbstractFamily | None:
        """Where coordinate ascent starts."""
        return best_start(as_conjugate(target), key, starts)

    def supports(self, target: AbstractTarget, q: AbstractFamily) -> None:
        conjugate = as_conjugate(target)
        product = check_product("Gibbs", conjugate, q)
        curved = curved_factors(to_device(conjugate), to_device(product), jr.key(0))
        if curved:
            raise PairingError(
                f"Gibbs: the model is not conjugate in the factor {curved[0]!r}, so its conditional"
                f" is not a {type(product[curved[0]]).__name__}; use tb.solvers.NUTS() on a target"
                " with a log density."
            )

    def start(
        self, target: AbstractTarget, q: AbstractFamily, key: jax.Array
    ) -> tuple[PyTree, int, bool]:
        product = cast(Product, q)  # `supports` has refused all else
        points = jax.vmap(product._sample)(jr.split(key, self.chains))
        conjugate = as_conjugate(target)
        found = None if conjugate is target else to_device(conjugate)
        return _Chains(found, jax.vmap(product.values)(points)), 0, True

    def sweep(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        chains: _Chains,
        count: Int[jax.Array, ""],
        key: jax.Array,
    ) -> tuple[PyTree, Moves]:
        # Under jit the target is rebuilt from its leaves, and a form found for the original would
        # be looked for again: so the chains carry it.
        conjugate = as_conjugate(target) if chains.found is None else chains.found
        product = cast(Product, q)  # `supports` has refused all else
        values, log_joint = jax.vmap(lambda v, k: _swept(conjugate, product, v, k))(
            chains.values, jr.split(key, self.chains)
        )
        names = {block.name.split(".")[0] for block in conjugate.layout.blocks}
        shown = {name: value for name, value in values.items() if name in names}
        positions = jax.vmap(conjugate.layout.unconstrain)(shown)
        moves = Moves(positions, {"lp": log_joint}, float(self.chains), float("nan"))
        return _Chains(chains.found, values), moves


def _swept(
    target: AbstractConjugateTarget, q: Product, values: dict[str, PyTree], key: jax.Array
) -> tuple[dict[str, PyTree], Float[Array, ""]]:
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
