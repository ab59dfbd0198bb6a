"""The battery of families that are the draws which they hold, and have no density."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from .._numerics import as_key, scoped, to_device, to_host
from .._types import Array, Key
from ..families.empirical import Empirical
from ..results import PairingError
from .comparisons import LEAST_P, close, refuses


@scoped
def check_empirical(q: Empirical, key: Key, *, draws: int = 4000) -> None:
    """Every draw that is held comes equally often, moments are theirs, and there is no density.

    Arguments:
        q: a member, without two equal draws.
        key: of all draws.
        draws: single ones, whose frequencies are compared.
    """
    name, key, held = type(q).__name__, as_key(key), np.asarray(q.flat)
    for rounds in (1, 3):
        z, log_q = q.draw(rounds * len(held), key)
        counts = _counts(held, z, name)
        assert np.all(counts == rounds), (
            f"{name}: `draw` of {rounds} times as many as there are gives one"
            f" {counts.max()} times and another {counts.min()} times."
        )
        assert np.all(np.isnan(log_q)), f"{name}: `draw` tells a log density that is not known."
    single = np.asarray(q.sample(jr.fold_in(key, 1), shape=(draws,)))
    p = scipy.stats.chisquare(_counts(held, single, name)).pvalue
    assert p > LEAST_P, f"{name}: `sample` prefers some of the draws (p-value {p:.1e})."
    moments = {"mean": held.mean(0), "sd": held.std(0), "cov": np.cov(held.T, bias=True)}
    for field, truth in moments.items():
        close(
            np.asarray(getattr(q, field)).reshape(truth.shape),
            truth,
            1e-12,
            f"{name}: `{field}` is not that of the draws.",
        )
    assert not q.has_density, f"{name} says that it has a density."
    refuses(lambda: q.log_prob(held[0]), PairingError, f"{name}: `log_prob` does not refuse.")
    refuses(lambda: q.log_prob_on_host(held), PairingError, f"{name}: `log_prob_on_host` answers.")
    _check_round_trips(q, name, key)


def _counts(
    held: Float[np.ndarray, "held dim"], z: Float[np.ndarray, "n dim"], name: str
) -> Int[np.ndarray, "held"]:
    """How often each of the draws that are held is among `z`."""
    same = np.all(z[:, None] == held[None], axis=2)
    assert np.all(same.sum(axis=1) == 1), f"{name}: a draw is none of those that it holds."
    return same.sum(axis=0)


def _check_round_trips(q: Empirical, name: str, key: jax.Array) -> None:
    """Flattening, host and device, jit and vmap over members change no draw."""
    expected, device = np.asarray(q.sample(key)), to_device(q, q.dtype)
    leaves, structure = jax.tree.flatten(q)
    sample = jax.jit(lambda q, key: q._sample(key))
    for trip, other in {
        "flattening": jax.tree.unflatten(structure, leaves),
        "moving to the device": device,
        "moving to the host": to_host(device),
    }.items():
        close(sample(other, key), expected, 0.0, f"{name}: {trip} (or jit) changes a draw.")
    members: Array = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), device)
    both = jax.vmap(lambda q: q._sample(key))(members)
    close(both, np.stack([expected] * 2), 0.0, f"{name}: vmap over members changes a draw.")
