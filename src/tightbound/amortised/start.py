"""The amortised family for a simulator, chosen by its draws and started at a pilot regression."""

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Bool, Float

from .._numerics import as_key, to_host, x64
from .._types import Array, Key, PyTree, Validated
from ..certify.simulations import Amortised
from ..families.conditional import Conditional, Ensemble, Scaling
from ..results import PairingError, TargetError
from ..targets.base import Simulator
from . import encoders, heads

PILOT = 2048  # draws that the scaling and the regression are taken from
_LEAST_FINITE = 0.1  # share of them
_HEAVY = 20.0  # robust sds beyond which x is squashed
_DECILES = 2.563  # sds between the first and the last decile of a Gaussian
_CONSTANT = 1e-12  # an sd below it is that of a constant, and nothing is divided by it
_RIDGE = 1e-3  # of the regression, in variances of standardised x
_JITTER = 1e-6  # variance of u that is added to that of the residuals, which may be none
_LARGEST_REGRESSION = 1500  # numbers in x; a larger x gets no linear start
_PICTURE = 12  # height and width from which a two-dimensional x is taken for a picture

HeadName: TypeAlias = Literal["gaussian", "diagonal", "mixture", "flow", "spline"]
EncoderName: TypeAlias = Literal["mlp", "deep_sets", "set_transformer", "conv", "images"]
_MakeHead: TypeAlias = Callable[[int], heads.AbstractHead]


def amortised(
    target: Validated[Simulator, "this function"],
    head: Validated[HeadName | heads.AbstractHead | None, "_head"] = None,
    encoder: Validated[EncoderName | encoders.AbstractEncoder | None, "_encoder"] = None,
    *,
    key: Key = 0,
    seeds: int = 1,
    width: int = 64,
    depth: int = 2,
    standardise: bool = True,
    dtype: np.dtype | type | str = "float64",
) -> Amortised:
    """q(z | x) for a simulator, started where a linear regression would end.

    It consists of a head, an encoder, and their scaling.

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
    if not isinstance(target, Simulator):
        raise PairingError(
            f"amortised: `target` must have the ability `simulator`, which {type(target).__name__}"
            " does not have; make one with tb.from_simulator or tb.from_simulations."
        )
    with x64():
        key = as_key(key)
        z, x = pilot(target, jr.fold_in(key, 0), PILOT)
        scaling = _scaling(z, x, np.array(target.circular), standardise, np.dtype(dtype))
        made = _head(head, target.circular, jr.fold_in(key, 1))
        if made.dim != z.shape[1]:
            raise ValueError(
                f"amortised: `head` has {made.dim} coordinates, the target {z.shape[1]}."
            )
        size = _Size(width, depth)
        networks = [
            _network(encoder, made, scaling, z, x, jr.fold_in(key, 2 + i), size)
            for i in range(seeds)
        ]
    return networks[0] if seeds == 1 else Ensemble.stack(networks)


@dataclasses.dataclass(frozen=True)
class _Size:
    """Width of hidden layers, and how many there are."""

    width: int
    depth: int


def _network(
    encoder: Validated[EncoderName | encoders.AbstractEncoder | None, "_encoder"],
    head: heads.AbstractHead,
    scaling: Scaling,
    z: Float[np.ndarray, "n dim"],
    x: PyTree,
    key: jax.Array,
    size: _Size,
) -> Conditional:
    network = Conditional(_encoder(encoder, head, scaling, z, x, key, size), head, scaling)
    return _cast(network, scaling.z_shift.dtype)


def pilot(
    target: Simulator, key: jax.Array, n: int
) -> tuple[Float[np.ndarray, "finite dim"], PyTree]:
    """`n` draws of (z, x) from the model on the host, those with NaN or infinity left out.

    Call in `x64()`.

    Raises:
        TargetError: when fewer than a tenth of them are finite.
    """
    drawn, x = to_host(_many(target, key, n))
    z = np.asarray(drawn)
    good = np.isfinite(z).all(axis=1)
    for leaf in jax.tree.leaves(x):
        good &= np.isfinite(leaf).reshape(n, -1).all(axis=1)
    if good.mean() < _LEAST_FINITE:
        raise TargetError(
            f"Of {n} simulations only {int(good.sum())} are finite, which is too few to learn from:"
            " `simulate` returns NaN or infinity. Narrow the prior, or return finite summaries"
            " where the simulation breaks down."
        )
    return z[good], jax.tree.map(lambda leaf: leaf[good], x)


def _many(target: Simulator, key: jax.Array, n: int) -> tuple[Float[Array, "n dim"], PyTree]:
    # The user's code promotes as it likes.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jax.jit(jax.vmap(target.draw))(jr.split(key, n))


def _scaling(
    z: Float[np.ndarray, "n dim"],
    x: PyTree,
    circular: Bool[np.ndarray, "dim"],
    standardise: bool,
    dtype: np.dtype,
) -> Scaling:
    low = jax.tree.map(lambda leaf: leaf.min(axis=0).astype(dtype), x)
    high = jax.tree.map(lambda leaf: leaf.max(axis=0).astype(dtype), x)
    none = Scaling.none(jax.tree.map(lambda leaf: leaf[0], x), z.shape[1], dtype)
    if not standardise:
        return Scaling(none.x_shift, none.x_scale, low, high, none.z_shift, none.z_scale)
    # Means and sds of heavy tails are those of a few draws.
    heavy = any(bool(np.any(_tails(leaf) > _HEAVY)) for leaf in jax.tree.leaves(x))
    middle = (lambda a: np.median(a, axis=0)) if heavy else (lambda a: a.mean(axis=0))
    spread = (lambda a: _robust_sd(a)) if heavy else (lambda a: a.std(axis=0))
    x_shift = jax.tree.map(lambda leaf: middle(leaf).astype(dtype), x)
    x_scale = jax.tree.map(lambda leaf: _positive(spread(leaf)).astype(dtype), x)
    z_shift = np.where(circular, 0.0, z.mean(axis=0)).astype(dtype)
    z_scale = np.where(circular, 1.0, _positive(z.std(axis=0))).astype(dtype)
    return Scaling(x_shift, x_scale, low, high, z_shift, z_scale, heavy)


def _robust_sd(a: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "*shape"]:
    low, high = np.quantile(a, [0.1, 0.9], axis=0)
    # A number that is nearly always the same has equal deciles, and still an sd.
    return np.where(high > low, (high - low) / _DECILES, a.std(axis=0))


def _tails(a: Float[np.ndarray, "n *shape"]) -> Float[np.ndarray, "*shape"]:
    """How far the farthest draw lies from the median, in robust sds."""
    return np.abs(a - np.median(a, axis=0)).max(axis=0) / _positive(_robust_sd(a))


def _positive(sd: Float[Array, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.where(np.asarray(sd) > _CONSTANT, sd, 1.0)


def _head(
    head: Validated[HeadName | heads.AbstractHead | None, "this function"],
    circular: tuple[bool, ...],
    key: jax.Array,
) -> heads.AbstractHead:
    """The head of this name for numbers on the line, beside one of its kind for each angle."""
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
    makers: dict[str, _MakeHead] = {
        "gaussian": lambda d: heads.Gaussian(d),
        "diagonal": lambda d: heads.Gaussian(d, "diagonal"),
        "mixture": lambda d: heads.Mixture(d),
        "flow": lambda d: heads.Flow.spline(d, key),
        "spline": lambda d: heads.Spline(d),
    }
    round_makers: dict[str, Callable[[], heads.AbstractHead]] = {
        "mixture": heads.VonMisesMixture,
        "flow": heads.CircularFlow,
        "spline": lambda: heads.Spline(1, periodic=True),
    }
    round_head = round_makers.get(name, heads.VonMises)
    factors = ([makers[name](len(line))] if line else []) + [round_head() for _ in angles]
    places = ([line] if line else []) + [(i,) for i in angles]
    return factors[0] if len(factors) == 1 else heads.Product(tuple(factors), tuple(places))


def _encoder(
    encoder: Validated[EncoderName | encoders.AbstractEncoder | None, "this function"],
    head: heads.AbstractHead,
    scaling: Scaling,
    z: Float[np.ndarray, "n dim"],
    x: PyTree,
    key: jax.Array,
    size: _Size,
) -> encoders.AbstractEncoder:
    """The encoder of this name for x as it is, at its start."""
    if isinstance(encoder, encoders.AbstractEncoder):
        return encoder
    leaves = jax.tree.leaves(x)
    shape = leaves[0].shape[1:]
    count = sum(int(np.prod(leaf.shape[1:])) for leaf in leaves)
    picture = len(leaves) == 1 and len(shape) in (2, 3) and min(shape[-2:]) >= _PICTURE
    name = ("conv" if picture else "mlp") if encoder is None else encoder
    how: dict[str, int | bool] = {"width": size.width, "depth": size.depth}
    weight, bias = np.zeros((head.size, count)), head.start()
    if name == "mlp":
        if count <= _LARGEST_REGRESSION and len(z) > 2 * z.shape[1]:
            weight, bias = head.linear_start(*_regression(scaling, z, x))
        return _made(encoders.MLP.make, count, head.size, key, how).starting_at(weight, bias)
    features = 1 if len(shape) == 1 else shape[-1] if shape else 1
    makers: dict[str, tuple[Make, int | tuple[int, ...], dict[str, int | bool]]] = {
        "deep_sets": (encoders.DeepSets.make, features, how),
        "set_transformer": (encoders.SetTransformer.make, features, {"width": size.width}),
        "conv": (encoders.ConvNet.make, shape, how),
        "images": (encoders.ConvNet.make, shape, {**how, "images": True}),
    }
    if name not in makers:
        raise ValueError(
            f"amortised: `encoder` must be one of mlp, {', '.join(makers)}, or an encoder from"
            f" tb.amortised.encoders; got {encoder!r}."
        )
    make, inputs, options = makers[name]
    return with_bias(_made(make, inputs, head.size, key, options), bias)


@runtime_checkable
class EndsLinear(Protocol):
    """An encoder whose last step is a linear layer."""

    @property
    def last(self) -> eqx.nn.Linear:
        """That layer."""
        ...

    def __call__(self, x: PyTree) -> Float[Array, "size"]:
        """The output for one x."""
        ...


Make: TypeAlias = Callable[..., encoders.DeepSets | encoders.SetTransformer | encoders.ConvNet]
"""(what it takes, how many numbers it returns, key, width and the like) -> a network."""

EncoderT = TypeVar("EncoderT", bound=encoders.AbstractEncoder)
LastT = TypeVar("LastT", bound=EndsLinear)


@eqx.filter_jit
def _made(
    make: Callable[..., EncoderT],
    inputs: int | tuple[int, ...],
    size: int,
    key: jax.Array,
    options: dict[str, int | bool],
) -> EncoderT:
    """A network at its start.

    In one program, as op by op the compiler would be called dozens of times.
    """
    return make(inputs, size, key, **options)


def with_bias(encoder: LastT, bias: Float[np.ndarray, "size"]) -> LastT:
    """The encoder whose last layer has this bias, so that q starts at about the prior."""
    return eqx.tree_at(lambda e: e.last.bias, encoder, np.asarray(bias, encoder.last.weight.dtype))


def _regression(
    scaling: Scaling, z: Float[np.ndarray, "n dim"], x: PyTree
) -> tuple[Float[np.ndarray, "dim p"], Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
    """Ridge regression of standardised z on standardised x.

    Slope, intercept, and covariance of the residuals.
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
    cov = np.cov(rest.T).reshape(len(level), len(level)) + _JITTER * np.eye(len(level))
    return slope, level - slope @ centre, cov


def _cast(network: Conditional, dtype: np.dtype) -> Conditional:
    return jax.tree.map(
        lambda leaf: np.asarray(leaf).astype(dtype) if eqx.is_inexact_array(leaf) else leaf,
        network,
    )


__all__ = ["PILOT", "EncoderName", "HeadName", "amortised", "pilot", "with_bias"]
