"""The conjugate form of a target: its own, or the one that is found in a NumPyro model."""

import weakref

import equinox as eqx
import jax
from jaxtyping import Bool

from .._numerics import to_device, to_host, x64
from ..families.exponential.product import Product
from ..targets.base import AbstractTarget, Conjugate, require
from ..targets.conjugate.base import AbstractConjugateTarget
from ..targets.conjugate.discovery import FoundModel, find, tabulated
from ..targets.numpyro_model import AbstractNumPyroTarget
from .factor_rule import order, sweep, valid

_SWEEPS = 30  # of the first solution, around which the tables are made anew
_ROUNDS = 2  # the first solution is of tables around a guess, the second around the first

# By identity, as equal targets may hold different data; the weak reference tells whether the id
# still belongs to the same target.
_found: dict[int, tuple[weakref.ref, FoundModel]] = {}


def as_conjugate(target: AbstractTarget) -> AbstractConjugateTarget:
    """`target` itself where it is conjugate, else the conjugate form of its NumPyro model.

    The form is found once per target.

    Raises:
        PairingError: there is none; for a NumPyro model the message says which site is not
            conjugate, and why.
    """
    if not isinstance(target, AbstractNumPyroTarget):
        return require("CoordinateAscent", target, AbstractConjugateTarget)
    entry = _found.get(id(target))
    if entry is not None and entry[0]() is target:
        return entry[1]
    key = id(target)
    with x64():
        found = find(target)
        # Anchors far from the posterior lose digits: they move to where it is
        for _ in range(_ROUNDS):
            q, inside = _settled(to_device(found), to_device(found.family))
            if not bool(inside):
                break
            found = tabulated(target, to_host(q).factors)
    _found[key] = (weakref.ref(target, lambda _: _found.pop(key, None)), found)
    return found


@eqx.filter_jit
def _settled(target: Conjugate, q: Product) -> tuple[Product, Bool[jax.Array, ""]]:
    """q after the sweeps of the first solution, and whether it is inside its domain."""
    q = jax.lax.fori_loop(0, _SWEEPS, lambda _, q: sweep(target, q, order(q)), q)
    return q, valid(q)


__all__ = ["as_conjugate"]
