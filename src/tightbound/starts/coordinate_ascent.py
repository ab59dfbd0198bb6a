"""Where coordinate ascent starts: the best of a few short runs."""

import jax
import numpy as np

from .._numerics import key_words, to_device, to_host
from .._types import Key
from ..families.exponential.product import Product
from ..search.factor_rule import swept
from ..targets.base import Conjugate

_STARTS = 4  # 40 sweeps in all, about as many as one run to the end takes


def best_start(target: Conjugate, key: Key, starts: int | None, sweeps: int = 10) -> Product:
    """The best by ELBO of `sweeps` sweeps from `starts` starts.

    Where the target's start is the same for every key, that start itself, without a sweep.

    Arguments:
        target: whose `start` gives the starts.
        key: of the starts.
        starts: how many; None is 4.
        sweeps: from each.
    """
    given = [
        target.start(np.random.SeedSequence([*key_words(key), i]).generate_state(1)[0].item())
        for i in range(starts or _STARTS)
    ]
    if all(_same(q, given[0]) for q in given[1:]):
        return given[0]
    on_device = to_device(target)
    ends = [_climbed(on_device, to_device(start), sweeps) for start in given]
    # The first of the best: where no start leads anywhere, some q must be handed back all the same
    return to_host(max(ends, key=lambda end: end[1])[0])


def _climbed(target: Conjugate, q: Product, sweeps: int) -> tuple[Product, float]:
    """q after the sweeps, and its ELBO; -inf where a factor has left its domain."""
    value = -np.inf
    for _ in range(sweeps):
        q, elbo, _, inside = swept(target, q)
        value = float(elbo)
        if not (inside and np.isfinite(value)):
            return q, -np.inf
    return q, value


def _same(a: Product, b: Product) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


__all__ = ["best_start"]
