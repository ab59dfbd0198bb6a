"""The amortised family for a simulator, chosen from what its draws look like and started at a pilot
regression.
"""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._numerics import as_key, to_host, x64
from ..families.conditional import Conditional, Ensemble, Scaling
from ..results import PairingError, TargetError
from . import encoders, heads

PILOT = 2048
_HEAVY = 20.0  # robust sds beyond which x is squashed
_RIDGE = 1e-3
_LARGEST_REGRESSION = 1500  # numbers in x; a larger x gets no linear start

HeadName = Literal["gaussian", "diagonal", "mixture", "flow", "spline"]
EncoderName = Literal["mlp", "deep_sets", "set_transformer", "conv", "images"]


def amortised(
    target: Any,
    head: Any = None,
    encoder: Any = None,
    *,
    key: Any = 0,
    seeds: int = 1,
    width: int = 64,
    depth: int = 2,
    standardise: bool = True,
    dtype: Any = "float64",
) -> Any:
    """q(z | x) for a simulator: a head, an encoder, and their scaling, started where a linear
    regression would end.

    Arguments:
        target: with the ability `simulator`.
        head: "gaussian" (full; the default), "diagonal", "mixture", "flow" or "spline"; or a head
            from tb.amortised.heads. Angles (support "circular") get a von Mises head beside it,
            convex too, with "mixture" a mixture of these, with "flow" a circular spline flow.
        encoder: "mlp", "deep_sets", "set_transformer", "conv" or "images" (a stack of independent
            ones); or an encoder from tb.amortised.encoders that returns as many numbers as the head
            takes. By default ConvNet for two-dimensional x of at least 12 x 12, else MLP: that rows
            are exchangeable is for you to say.
        key: of the networks' weights and the pilot draws.
        seeds: number of networks, trained side by side; more than one makes an Ensemble.
        width: of hidden layers.
        depth: number of hidden layers.
        standardise: x and z by means and sds under the prior.
        dtype: "float64" or "float32".

    Raises:
        PairingError: the target has no simulator.
        TargetError: too few draws of the simulator are finite.
        ValueError: an unknown name, or a head of another dimension than the target.
    """
    # families stand below targets, and know abilities by what they need of them
    if not hasattr(target, "circular"):
        raise PairingError(
            f"amortised: `target` must have the ability `simulator`, which {type(target).__name__}"
            " does not have; make one with tb.from_simulator or tb.from_simulations."
        )
    with x64():
        key = as_key(key)
        z, x = pilot(target, jr.fold_in(key, 0), PILOT)
        scaling = _scaling(z, x, np.array(target.circular), standardise, np.dtype(dtype))
        head = _head(head, target.circular, jr.fold_in(key, 1))
        if head.dim != z.shape[1]:
            raise ValueError(
                f"amortised: `head` has {head.dim} coordinates, the target {z.shape[1]}."
            )
        networks = [
            Conditional(
                _encoder(encoder, head, scaling, z, x, jr.fold_in(key, 2 + i), width, depth),
                head,
                scaling,
            )
            for i in range(seeds)
        ]
        networks = [_cast(network, np.dtype(dtype)) for network in networks]
    return networks[0] if seeds == 1 else Ensemble.stack(networks)


def pilot(target: Any, key: Any, n: int) -> tuple[np.ndarray, Any]:
    """`n` draws of (z, x) from the model on the host, those with NaN or infinity left out.

    Call in `x64()`.

    Raises:
        TargetError: when fewer than a tenth of them are finite.
    """
    z, x = to_host(_many(target, key, n))
    good = np.isfinite(z).all(axis=1)
    for leaf in jax.tree.leaves(x):
        good &= np.isfinite(leaf).reshape(n, -1).all(axis=1)
    if good.mean() < 0.1:
        raise TargetError(
            f"Of {n} simulations only {int(good.sum())} are finite, which is too few to learn from:"
            " `simulate` returns NaN or infinity. Narrow the prior, or return finite summaries"
            " where the simulation breaks down."
        )
    return z[good], jax.tree.map(lambda leaf: leaf[good], x)


def _many(target: Any, key: Any, n: int) -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jax.jit(jax.vmap(target.draw))(jr.split(key, n))


def _scaling(z: np.ndarray, x: Any, circular: np.ndarray, standardise: bool, dtype: Any) -> Scaling:
    low = jax.tree.map(lambda leaf: leaf.min(axis=0).astype(dtype), x)
    high = jax.tree.map(lambda leaf: leaf.max(axis=0).astype(dtype), x)
    none = Scaling.none(jax.tree.map(lambda leaf: leaf[0], x), z.shape[1], dtype)
    if not standardise:
        return Scaling(none.x_shift, none.x_scale, low, high, none.z_shift, none.z_scale)
    heavy = any(bool(np.any(_tails(leaf) > _HEAVY)) for leaf in jax.tree.leaves(x))
    middle = (lambda a: np.median(a, axis=0)) if heavy else (lambda a: a.mean(axis=0))
    spread = (lambda a: _robust_sd(a)) if heavy else (lambda a: a.std(axis=0))
    x_shift = jax.tree.map(lambda leaf: middle(leaf).astype(dtype), x)
    x_scale = jax.tree.map(lambda leaf: _positive(spread(leaf)).astype(dtype), x)
    z_shift = np.where(circular, 0.0, z.mean(axis=0)).astype(dtype)
    z_scale = np.where(circular, 1.0, _positive(z.std(axis=0))).astype(dtype)
    return Scaling(x_shift, x_scale, low, high, z_shift, z_scale, heavy)


def _robust_sd(a: np.ndarray) -> np.ndarray:
    low, high = np.quantile(a, [0.1, 0.9], axis=0)
    return np.where(high > low, (high - low) / 2.563, a.std(axis=0))


def _tails(a: np.ndarray) -> np.ndarray:
    return np.abs(a - np.median(a, axis=0)).max(axis=0) / _positive(_robust_sd(a))


def _positive(sd: Any) -> np.ndarray:
    return np.where(np.asarray(sd) > 1e-12, sd, 1.0)


def _head(head: Any, circular: tuple[bool, ...], key: Any) -> heads.AbstractHead:
    if isinstance(head, heads.AbstractHead):
        return head
    name = "gaussian" if head is None else head
    line = tuple(i for i, angle in enumerate(circular) if not angle)
    angles = tuple(i for i, angle in enumerate(circular) if angle)
    known = ("gaussian", "diagonal", "mixture", "flow", "spline")
    if name not in known:
        raise ValueError(
            f"amortised: `head` must be one of {', '.join(known)}, or a head from"
            f" tb.amortised.heads; got {head!r}."
        )
    makers = {
        "gaussian": lambda d: heads.Gaussian(d),
        "diagonal": lambda d: heads.Gaussian(d, "diagonal"),
        "mixture": lambda d: heads.Mixture(d),
        "flow": lambda d: heads.Flow.spline(d, key),
        "spline": lambda d: heads.Spline(d),
    }
    round_makers: dict[str, Any] = {
        "mixture": heads.VonMisesMixture,
        "flow": heads.CircularFlow,
        "spline": lambda: heads.Spline(1, periodic=True),
    }
    round_head = round_makers.get(name, heads.VonMises)
    factors = ([makers[name](len(line))] if line else []) + [round_head() for _ in angles]
    places = ([line] if line else []) + [(i,) for i in angles]
    return factors[0] if len(factors) == 1 else heads.Product(tuple(factors), tuple(places))


def _encoder(
    encoder: Any,
    head: heads.AbstractHead,
    scaling: Scaling,
    z: np.ndarray,
    x: Any,
    key: Any,
    width: int,
    depth: int,
) -> encoders.AbstractEncoder:
    if isinstance(encoder, encoders.AbstractEncoder):
        return encoder
    leaves = jax.tree.leaves(x)
    shape = leaves[0].shape[1:]
    count = sum(int(np.prod(leaf.shape[1:])) for leaf in leaves)
    picture = len(leaves) == 1 and len(shape) in (2, 3) and min(shape[-2:]) >= 12
    name = ("conv" if picture else "mlp") if encoder is None else encoder
    how: dict[str, Any] = {"width": width, "depth": depth}
    features = 1 if len(shape) == 1 else shape[-1] if shape else 1
    makers: dict[str, Any] = {
        "mlp": (encoders.MLP.make, count, how),
        "deep_sets": (encoders.DeepSets.make, features, how),
        "set_transformer": (encoders.SetTransformer.make, features, {"width": width}),
        "conv": (encoders.ConvNet.make, shape, how),
        "images": (encoders.ConvNet.make, shape, {**how, "images": True}),
    }
    if name not in makers:
        raise ValueError(
            f"amortised: `encoder` must be one of {', '.join(makers)}, or an encoder from"
            f" tb.amortised.encoders; got {encoder!r}."
        )
    make, inputs, options = makers[name]
    made = _made(make, inputs, head.size, key, options)
    weight, bias = np.zeros((head.size, count)), head.start()
    if isinstance(made, encoders.MLP):
        if count <= _LARGEST_REGRESSION and len(z) > 2 * z.shape[1]:
            weight, bias = head.linear_start(*_regression(scaling, z, x))
        return made.starting_at(weight, bias)
    return with_bias(made, bias)


@eqx.filter_jit
def _made(make: Any, inputs: Any, size: int, key: Any, options: dict[str, Any]) -> Any:
    """A network at its start.

    In one program, as op by op the compiler would be called dozens of times.
    """
    return make(inputs, size, key, **options)


def with_bias(encoder: Any, bias: np.ndarray) -> Any:
    """The encoder whose last layer has this bias, so that q starts at about the prior."""
    return eqx.tree_at(lambda e: e.last.bias, encoder, np.asarray(bias, encoder.last.bias.dtype))


def _regression(
    scaling: Scaling, z: np.ndarray, x: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ridge regression of standardised z on standardised x.

    Slope `[d, p]`, intercept `[d]`, residual covariance.
    """
    with jax.numpy_rank_promotion("raise"):
        standard = jax.jit(jax.vmap(scaling.standardise))(jax.tree.map(jnp.asarray, x))
    a = np.concatenate(
        [np.asarray(leaf, np.float64).reshape(len(z), -1) for leaf in jax.tree.leaves(standard)],
        axis=1,
    )
    u = (z - scaling.z_shift) / scaling.z_scale
    centre, level = a.mean(axis=0), u.mean(axis=0)
    centred = a - centre
    gram = centred.T @ centred + _RIDGE * len(z) * np.eye(a.shape[1])
    slope = np.linalg.solve(gram, centred.T @ (u - level)).T
    rest = u - level - centred @ slope.T
    cov = np.cov(rest.T).reshape(len(level), len(level)) + 1e-6 * np.eye(len(level))
    return slope, level - slope @ centre, cov


def _cast(network: Conditional, dtype: Any) -> Any:
    return jax.tree.map(
        lambda leaf: np.asarray(leaf).astype(dtype) if _is_floating(leaf) else leaf, network
    )


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray)) and jnp.issubdtype(leaf.dtype, jnp.floating)


__all__ = ["PILOT", "EncoderName", "HeadName", "amortised", "pilot", "with_bias"]
