"""From a point of R^d to named values and back.

Names, shapes, supports and log-Jacobians, written once.
"""

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike

from .._types import Array, PyTree, Validated
from ..results import TargetError
from .support import (
    ArrayLike,
    Constraint,
    Support,
    as_constraint,
    bijection,
    describe,
    flat_supports,
    free_shape,
    holds,
    known,
)

if TYPE_CHECKING:
    # JAX re-exports the class as a variable, which a type checker refuses in annotations
    from jaxlib._jax.pytree import PyTreeDef
else:
    from jax.tree_util import PyTreeDef


class Block(eqx.Module):
    """One named value: where its coordinates go, and what they cost.

    Attributes:
        name: what the user calls it.
        shape: shape of the constrained value.
        free_shape: shape of its unconstrained coordinates (a simplex of K has K - 1).
        bounds: what the constraint holds: Python floats, or arrays, which are traced under jit.
        form: the constraint without its bounds.
    """

    name: str = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    free_shape: tuple[int, ...] = eqx.field(static=True)
    # Taken apart, because NumPyro's constraints cannot be hashed, and jax.jit(target.log_density)
    # hashes the target.
    bounds: tuple[Array | float, ...]
    form: PyTreeDef = eqx.field(static=True)

    def __init__(self, name: str, shape: tuple[int, ...], constraint: Constraint | None = None):
        self.name = name
        self.shape = shape
        self.free_shape = free_shape(constraint, name, shape)
        leaves, self.form = jax.tree.flatten(constraint)
        self.bounds = tuple(leaves)

    @property
    def constraint(self) -> Constraint | None:
        """The NumPyro constraint; None for the whole real line."""
        return jax.tree.unflatten(self.form, self.bounds)

    @property
    def size(self) -> int:
        """Number of unconstrained coordinates."""
        return math.prod(self.free_shape)

    def constrain(
        self, u: Float[jax.Array, "size"]
    ) -> tuple[Float[jax.Array, "..."], Float[jax.Array, ""] | float]:
        """The value behind the coordinates `u`, and log|det of the Jacobian|, nats."""
        u = u.reshape(self.free_shape)
        constraint = self.constraint
        if constraint is None:
            return u, 0.0
        transform = bijection(constraint)
        value = transform(u)
        return value, jnp.sum(transform.log_abs_det_jacobian(u, value))

    def unconstrain(self, value: ArrayLike) -> Float[jax.Array, "size"]:
        """The coordinates of `value`: the inverse of `constrain`."""
        array = _floating(value)
        if array.shape != self.shape:
            raise TargetError(
                f"values[{self.name!r}] has shape {array.shape}, but the target's has {self.shape}."
            )
        constraint = self.constraint
        if constraint is not None:
            array = bijection(constraint).inv(array)
        return array.reshape(-1)


class Example:
    """The example's values, for a search that finds no other start.

    All compare equal: a layout is static under jit, and no program depends on where a search
    starts.
    """

    def __init__(self, values: PyTree = None):
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Example)

    def __hash__(self) -> int:
        return 0


class Layout(eqx.Module):
    """The bijection between R^dim and a pytree of named, constrained values.

    Constraints on vectors and matrices (simplex, ordered, Cholesky factors) hold for the last axes
    of a value; the axes before them are a batch. The log-Jacobian of a value with fewer degrees of
    freedom than elements is with respect to NumPyro's reference measure: the first K - 1 entries of
    a simplex, the lower triangle of a Cholesky factor.

    Use `Layout.from_example` where values exist, `Layout.from_blocks` where only shapes and
    constraints do.
    """

    blocks: tuple[Block, ...]
    treedef: PyTreeDef = eqx.field(static=True)
    example: Example = eqx.field(static=True, default=Example())

    @staticmethod
    def from_example(
        example: PyTree, support: Validated[Mapping[str, Support] | None, "flat_supports"] = None
    ) -> "Layout":
        """The layout of values like `example`.

        Arguments:
            example: a pytree, usually a dict, of named values: floats or arrays inside their
                support. It gives structure, names and shapes; its numbers are only used where a
                search finds no other start. Integers count as floats.
            support: name -> support (see `support.as_constraint`) for the values that are not on
                the whole real line. A value inside nested dicts is called "outer.inner"; nested
                dicts work too.

        Raises:
            TargetError: for a name without a value, a value that is not a finite real number or
                lies outside its support, or no values at all; the message names the value and the
                way out.
        """
        leaves = named_leaves(example, "example")
        if not leaves:
            raise TargetError(
                "`example` has no values, so there is nothing to infer. Pass for instance "
                "example={'mu': 0.0, 'beta': np.zeros(3)}."
            )
        values = {name: _example_value(name, leaf) for name, leaf in leaves.items()}
        supports = flat_supports(support, values)
        blocks = tuple(
            _example_block(name, values[name], supports.get(name, "real")) for name in values
        )
        structure = jax.tree.structure(example)
        kept = Example(jax.tree.unflatten(structure, list(values.values())))
        return Layout(blocks, structure, kept)._checked()

    @staticmethod
    def from_blocks(blocks: Mapping[str, Block]) -> "Layout":
        """The layout of a dict of values, one per block."""
        treedef = jax.tree.structure(dict.fromkeys(blocks, 0))
        return Layout(tuple(blocks[name] for name in sorted(blocks)), treedef)._checked()

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates, d."""
        return sum(block.size for block in self.blocks)

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        """One name per coordinate of R^dim: `mu`, `beta[0]`, `A[0, 1]`.

        Of a simplex the free coordinates only.
        """
        return tuple(
            name for block in self.blocks for name in indexed_names(block.name, block.free_shape)
        )

    @property
    def value_names(self) -> tuple[str, ...]:
        """One name per element of the constrained values, in the order of `jax.tree.leaves`."""
        return tuple(
            name for block in self.blocks for name in indexed_names(block.name, block.shape)
        )

    def constrain(self, z: Validated[Float[Array, "dim"], "constrain_with_log_det"]) -> PyTree:
        """The values at the point `z`."""
        return self.constrain_with_log_det(z)[0]

    def constrain_with_log_det(
        self, z: Validated[Float[Array, "dim"], "this method"]
    ) -> tuple[PyTree, Float[jax.Array, ""]]:
        """The values at the point `z`, and log|det d constrain / dz| in nats.

        Raises:
            ValueError: when `z` is not one point of R^dim.
        """
        z = _floating(z)
        if z.shape != (self.dim,):
            raise ValueError(
                f"`z` must be one point of shape ({self.dim},), got {z.shape}; use jax.vmap for a"
                " batch."
            )
        # One split, because its transpose is one concatenation; the transpose of n slices is n
        # padded copies of z.
        ends = np.cumsum([block.size for block in self.blocks])[:-1].tolist()
        pieces = jnp.split(z, ends) if ends else [z]
        pairs = [block.constrain(piece) for block, piece in zip(self.blocks, pieces, strict=True)]
        log_det = jnp.asarray(sum(log_det for _, log_det in pairs), z.dtype)
        return jax.tree.unflatten(self.treedef, [value for value, _ in pairs]), log_det

    def unconstrain(self, values: PyTree) -> Float[jax.Array, "dim"]:
        """The point of `values`, of which further entries, such as derived ones, are ignored.

        A value on the boundary of its support has infinite coordinates, one outside it NaN.

        Raises:
            TargetError: when a value is missing or has another shape.
        """
        leaves = self._leaves(values)
        return jnp.concatenate(
            [block.unconstrain(leaf) for block, leaf in zip(self.blocks, leaves, strict=True)]
        )

    def restrict(self, values: PyTree) -> PyTree:
        """`values` in the structure of the example, as floating arrays, without derived ones."""
        return jax.tree.unflatten(self.treedef, [_floating(leaf) for leaf in self._leaves(values)])

    def structs(self, dtype: DTypeLike = np.float64) -> PyTree:
        """The shapes of the values as `jax.ShapeDtypeStruct`.

        To trace a function of the values without computing anything.
        """
        return jax.tree.unflatten(
            self.treedef, [jax.ShapeDtypeStruct(block.shape, dtype) for block in self.blocks]
        )

    def _leaves(self, values: PyTree) -> list[ArrayLike]:
        found = named_leaves(values, "values")
        missing = [block.name for block in self.blocks if block.name not in found]
        if missing:
            raise TargetError(f"`values` lacks {missing[0]!r}; it has {known(found, missing[0])}")
        return [found[block.name] for block in self.blocks]

    def _checked(self) -> "Layout":
        if self.dim == 0:
            raise TargetError(
                f"The values {', '.join(block.name for block in self.blocks)} have no free"
                " coordinate (a simplex of one element is always 1), so there is nothing to infer."
            )
        return self


def _floating(value: ArrayLike) -> Float[jax.Array, "..."]:
    array = jnp.asarray(value)
    return (
        array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.result_type(float))
    )


def _example_value(name: str, leaf: object) -> Float[np.ndarray, "..."]:
    """The example's leaf as a float64 array, or a TargetError that says why it cannot be one."""
    where = f"`example[{name!r}]`"
    # np.asarray would make a string or None an array, of which the refusal below says less
    if leaf is None or isinstance(leaf, (str, bytes)):
        raise TargetError(f"{where} is {leaf!r}, but a value is a float or an array of floats.")
    try:
        array = np.asarray(leaf)
    except Exception as error:
        raise TargetError(f"{where} cannot become an array: {error}") from error
    if array.dtype == bool or jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TargetError(
            f"{where} has dtype {array.dtype}, but values must be real numbers on a continuous"
            " scale. Sum discrete values out of the log density; write a complex one as two real"
            " ones."
        )
    if not jnp.issubdtype(array.dtype, jnp.number):
        raise TargetError(
            f"{where} is {type(leaf).__name__} of dtype {array.dtype}, not a float or an array of"
            " floats."
        )
    if array.size == 0:
        raise TargetError(f"{where} has shape {array.shape}, that is, no elements; leave it out.")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise TargetError(
            f"{where} contains {array[~np.isfinite(array)][0]}; give it any finite value in its"
            " support."
        )
    return array


def _example_block(name: str, value: Float[np.ndarray, "..."], support: Support) -> Block:
    constraint = as_constraint(support, name, value.shape)
    block = Block(name, value.shape, constraint)
    if not holds(constraint, value):
        shown = np.array2string(value, precision=4, threshold=8)
        raise TargetError(
            f"`example[{name!r}]` = {shown} is not inside its support {describe(constraint)}. Give"
            " it a value inside (not on the boundary), or correct the support."
        )
    return block


def named_leaves(tree: PyTree, argument: str = "values") -> dict[str, PyTree]:
    """The leaves of a pytree by name, in the order of `jax.tree.leaves`.

    Names are "beta", "outer.inner", "layers.0". A leaf that is None counts too.

    Raises:
        TargetError: when two leaves have the same name, or the keys of a dict cannot be sorted.
    """
    try:
        pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)
    except (ValueError, TypeError) as error:
        raise TargetError(
            f"`{argument}` is not a pytree that JAX can flatten: {error}. Use strings as names."
        ) from error
    names = [path_name(path) for path, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TargetError(f"`{argument}` has two values called {twice!r}; rename one.")
    return {name: leaf for name, (_, leaf) in zip(names, pairs, strict=True)}


def value_names(values: PyTree) -> tuple[str, ...]:
    """One name per element of a pytree of arrays, or of shapes, in `jax.tree.leaves` order."""
    return tuple(
        n
        for name, leaf in named_leaves(values).items()
        for n in indexed_names(name, np.shape(leaf))
    )


def flatten_values(values: PyTree) -> tuple[tuple[str, ...], Float[np.ndarray, "n p"]]:
    """Names such as `beta[0]`, and a column for each, of arrays that share a leading axis n.

    Integer and boolean values become floats; values without elements are left out.
    """
    names: list[str] = []
    columns: list[np.ndarray] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        leaf = np.asarray(leaf)
        names += indexed_names(path_name(path), leaf.shape[1:])
        columns.append(leaf.reshape(len(leaf), -1).astype(np.float64))
    return tuple(names), np.concatenate(columns, axis=1) if columns else np.empty((0, 0))


def path_name(path: tuple[object, ...]) -> str:
    """The user's name of a leaf: dict keys, attributes and indices joined by dots."""
    parts = [
        str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))))
        for entry in path
    ]
    return ".".join(parts) or "z"


# A fit asks for the names of the same few shapes many times; those of 10^4 elements take 5 ms.
@functools.lru_cache(maxsize=256)
def _indices(shape: tuple[int, ...]) -> tuple[str, ...]:
    return tuple("[" + ", ".join(map(str, index)) + "]" for index in np.ndindex(*shape))


def indexed_names(name: str, shape: tuple[int, ...]) -> list[str]:
    """`name` for a scalar, else `name[0]`, `name[1]`, ... in row-major order."""
    return [name] if shape == () else [name + index for index in _indices(shape)]
