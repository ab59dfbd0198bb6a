"""What conjugate targets share.

Names and bijection from their factors, and a log density with local factors summed out.
"""

from typing import TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ..._numerics import scoped
from ..._types import Array, Key, PyTree, Validated
from ...families.exponential.base import AbstractExponentialFamily, inner
from ...families.exponential.product import Product
from ...families.transported import Transported
from ...results import TargetError
from ..base import AbstractTarget, Conjugate, Density, Joint
from ..layout import Block, Layout, value_names
from ..support import SUPPORTS, ArrayLike, Constraint
from ..tracing import host_unless_traced

MemberT = TypeVar("MemberT", bound=AbstractExponentialFamily)


class AbstractConjugateTarget(Conjugate, Joint):
    """A model written as its expected log joint, a function of the moments of the factors of q.

    Values that are *shown* (in summaries, draws, names) are those of the factors that are neither
    local nor of whole numbers; of the others `fit.q["name"].mean_parameters` is what one looks at.

    Implementing one: the two fields and `expected_log_joint`; `start` where symmetric factors must
    be told apart, and `data_rows` where there are rows to subsample.

    Attributes:
        family: the factors of q at any member (their priors, say): names, shapes and supports of
            the unknowns.
        layout: of the shown values, and their bijection to R^dim: `layout_of(family)`.
    """

    family: eqx.AbstractVar[Product]
    layout: eqx.AbstractVar[Layout]

    def start(self, key: Key) -> Product:
        """The factors to start from."""
        return self.family

    @property
    def hidden(self) -> tuple[str, ...]:
        """The factors that are not shown: local ones, and those of whole numbers."""
        return hidden_factors(self.family)

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return self.layout.coordinate_names

    @property
    def value_names(self) -> tuple[str, ...]:
        """One name per element of what `constrain` returns, in the order of `jax.tree.leaves`."""
        return value_names(self.layout.structs())

    @host_unless_traced
    def constrain(self, z: Validated[Float[Array, "dim"], "Layout"]) -> PyTree:
        return self.layout.constrain(z)

    @host_unless_traced
    def unconstrain(self, values: PyTree) -> Float[Array, "dim"]:
        return self.layout.unconstrain(values)

    @host_unless_traced
    def log_joint(self, values: PyTree) -> Float[Array, ""]:
        """log p(values, data), no Jacobian, in nats.

        Hidden factors without a value are summed out (at most one of them).

        Raises:
            TargetError: a shown value is missing, or more than one hidden one.
        """
        missing = [name for name in self.family.factors if name not in values]
        shown = [name for name in missing if name not in self.hidden]
        if shown or len(missing) > 1:
            raise TargetError(
                f"log_joint: `values` lacks {', '.join(shown or missing)}; only one hidden factor"
                " can be summed out, and no shown one."
            )
        return self._marginal(
            {
                name: jax.tree.map(_float, values[name])
                for name in self.family.factors
                if name in values
            }
        )

    def _marginal(self, values: dict[str, PyTree]) -> Float[Array, ""]:
        """The log joint of the given values.

        A hidden factor without a value is summed out by its own log-partition.
        """
        factors = self.family.factors
        given = {
            name: factors[name].each(lambda f, v: f._statistics(v), values[name]) for name in values
        }
        hidden = {name: factor for name, factor in factors.items() if name not in values}
        if not hidden:
            return self.expected_log_joint(given)
        # The joint is affine in these moments, so its value and gradient at any one point of them
        # give the constant and the natural parameters; the factor's own moments are one.
        start = {
            name: jax.tree.map(jnp.asarray, factor.mean_parameters)
            for name, factor in hidden.items()
        }

        def joint(moments):
            bases = [
                jnp.sum(f.each(lambda f, m: f._expected_log_base(m), moments[n]))
                for n, f in hidden.items()
            ]
            return self.expected_log_joint({**given, **moments}) - sum(bases, jnp.zeros(()))

        value, eta = jax.value_and_grad(joint)(start)
        partitions = [
            jnp.sum(f.each(lambda f, e: f._log_partition(f._cleaned(e)), eta[n]))
            for n, f in hidden.items()
        ]
        return value - inner(eta, start) + sum(partitions, jnp.zeros(()))

    def judged(self, q: Product) -> Transported:
        """The shown factors of q on the unconstrained scale, for draws, summaries, certificate."""
        return judged(self, q)


class AbstractCollapsedTarget(AbstractConjugateTarget, Density):
    """A conjugate target with a log density of its shown values, the others integrated out exactly.

    Given the shown values, the expected log joint is affine in the moments of a hidden factor,
    <eta, m> + c, so that

        log p(shown, data) = c + A(eta),   eta = d/dm (E log p - log h)

    with A the hidden factor's own log-partition (of a Markov chain: the forward algorithm). That
    makes a mixture, a hidden Markov model or a factor analysis a log density like any other, which
    certificates, samplers and gradients take. Not for models in which two hidden factors meet in
    one term (latent Dirichlet allocation).
    """

    @property
    def dim(self) -> int:
        return self.layout.dim

    @host_unless_traced
    def log_density(self, z: Validated[Float[Array, "dim"], "Layout"]) -> Float[Array, ""]:
        values, log_det = self.layout.constrain_with_log_det(z)
        return self._marginal(values) + log_det


@scoped
def judged(target: AbstractTarget, q: Product) -> Transported:
    """The shown factors of a product, on the unconstrained scale of `target`'s layout."""
    # Conjugate models and NumPyro models, which products approximate, both have a layout
    layout = cast(AbstractConjugateTarget, target).layout
    names = {block.name.split(".")[0] for block in layout.blocks}
    shown = {name: f for name, f in q.factors.items() if name in names}
    return Transported(Product(local=(), **shown), layout)


def hidden_factors(q: Product) -> tuple[str, ...]:
    """The factors that are local, or of whole numbers."""
    return tuple(
        name for name, factor in q.factors.items() if name in q.local or factor.support is None
    )


def layout_of(q: Product) -> Layout:
    """The layout of the values of the shown factors.

    Nested where a value has parts, as in `components.mean`.
    """
    hidden, blocks, tree = hidden_factors(q), [], {}
    for name, factor in q.factors.items():
        if name in hidden:
            continue
        event, support = factor.event, factor.support
        if isinstance(event, dict) and isinstance(support, dict):
            parts = {f"{name}.{part}": (event[part], support[part]) for part in sorted(event)}
            tree[name] = dict.fromkeys(event, 0)
        else:
            # A value without parts; only hidden factors have no support
            parts = {name: (cast(tuple[int, ...], event), cast(str, support))}
            tree[name] = 0
        blocks += [
            Block(label, (*factor.plate, *shape), _constraint(kind))
            for label, (shape, kind) in parts.items()
        ]
    if not blocks:
        raise TargetError(
            "All factors are local or of whole numbers, so there is no value to show or to judge."
        )
    return Layout(tuple(blocks), jax.tree.structure(tree))


def _float(leaf: ArrayLike) -> Float[jax.Array, "..."]:
    array = jnp.asarray(leaf)
    return (
        array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.result_type(float))
    )


def _constraint(support: str) -> Constraint | None:
    if support == "real":
        return None
    from numpyro.distributions import constraints

    return getattr(constraints, SUPPORTS.get(support, support))


def check_rows(target: str, **arrays: ArrayLike) -> int:
    """N, the common length of the given arrays.

    Raises:
        TargetError: naming the array that differs, or holds NaN.
    """
    lengths = {}
    for name, array in arrays.items():
        if np.ndim(array) == 0 or np.size(array) == 0:
            raise TargetError(f"{target}: `{name}` has no rows (shape {np.shape(array)}).")
        if np.asarray(array).dtype == object:
            raise TargetError(
                f"{target}: `{name}` is ragged (its rows differ in length); pad them to one length."
            )
        if np.issubdtype(np.asarray(array).dtype, np.floating) and not np.all(np.isfinite(array)):
            raise TargetError(
                f"{target}: `{name}` holds NaN or infinite numbers; drop or impute those rows."
            )
        lengths[name] = np.shape(array)[0]
    if len(set(lengths.values())) > 1:
        raise TargetError(f"{target}: the data differ in their number of rows: {lengths}.")
    return next(iter(lengths.values()))


def check_categories(
    target: str, name: str, values: ArrayLike, count: int, lowest: int = 0
) -> Int[np.ndarray, "..."]:
    """Whole numbers in lowest, ..., count - 1 as an integer array.

    Raises:
        TargetError: saying where one is not.
    """
    array = np.asarray(values)
    if not np.all(array == np.round(array)):
        raise TargetError(
            f"{target}: `{name}` must hold whole numbers (categories 0, ..., {count - 1})."
        )
    outside = np.argwhere((array < lowest) | (array >= count))
    if len(outside):
        where = tuple(outside[0].tolist())
        raise TargetError(
            f"{target}: `{name}` must lie in {lowest}, ..., {count - 1}, but holds {array[where]}"
            f" at index {where} ({len(outside)} such). Renumber the categories from 0, or state a"
            " larger number of them."
        )
    return array.astype(np.int64)


def broadcast(member: MemberT, plate: tuple[int, ...]) -> MemberT:
    """A plate of equal members."""
    lead = tuple(plate)
    return jax.tree.map(
        lambda leaf: np.broadcast_to(np.asarray(leaf), lead + np.shape(leaf)).copy(), member
    )


__all__ = [
    "AbstractCollapsedTarget",
    "AbstractConjugateTarget",
    "broadcast",
    "check_categories",
    "check_rows",
    "hidden_factors",
    "judged",
    "layout_of",
]
