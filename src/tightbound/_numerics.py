"""Precision and thread scopes, keys and small numerical helpers.

Nothing here knows what a posterior is.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import warnings
import zlib
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import threadpoolctl
from jax.typing import DTypeLike
from jaxtyping import Float

if TYPE_CHECKING:
    from ._types import Key
else:  # `key_words` refuses a wrong key with a sentence of its own
    Key = object

F = TypeVar("F", bound=Callable)
T = TypeVar("T")
C = TypeVar("C")

# jaxlib 0.10.2 and 0.11.0 add up wrongly on a CPU: sum(y * (x @ b)) over some 20,000 rows, for a
# few b at a time, is off by hundreds (https://github.com/jax-ml/jax/issues/39103). This turns off
# the fusion that does it: for what we compile ahead of time as an option, and for all else in the
# process, a user's own code included, where nothing was computed before the import.
SOUND_SUMS = {"xla_cpu_experimental_ynn_fusion_type": ""}


def _jax_has_started() -> bool:
    """Whether JAX has read XLA_FLAGS already; False where this version of it does not tell."""
    try:
        from jax._src.xla_bridge import backends_are_initialized  # not public; no public name says
    except ImportError:
        return False
    return backends_are_initialized()


def _ask_for_sound_sums() -> None:
    """Put SOUND_SUMS into XLA_FLAGS, and say so where that comes too late."""
    version, flags = importlib.metadata.version("jaxlib"), os.environ.get("XLA_FLAGS", "")
    missing = [f"--{name}={value}" for name, value in SOUND_SUMS.items() if name not in flags]
    if version not in ("0.10.2", "0.11.0") or not missing:
        return
    os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()
    if _jax_has_started():
        warnings.warn(
            f"JAX computed before tightbound was imported, and jaxlib {version} can add up wrongly"
            " on a CPU. The default fit is safe, since it compiles its log density without the"
            " fault; other solvers and your own functions may lose digits, and the same key may"
            " give other bits. Import tightbound before JAX computes anything, or set XLA_FLAGS="
            f"'{' '.join(missing)}' before Python starts.",
            RuntimeWarning,
            stacklevel=2,
        )


_ask_for_sound_sums()


def x64():
    """The scope in which every fit runs: float64, without touching the user's global flags."""
    return jax.enable_x64(True)


@contextlib.contextmanager
def standard_promotion():
    """The scope of a library that mixes dtypes and ranks, whatever the user's rules are."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def scoped(method: F) -> F:
    """Run a public method inside `x64()`.

    Outside the scope `+`, `mean` and `vmap` silently turn float64 leaves into float32, so each
    public method that computes with JAX re-enters it.
    """

    @functools.wraps(method)
    def wrapper(*args, **kwargs):
        with x64():
            return method(*args, **kwargs)

    return wrapper  # pyright: ignore[reportReturnType]


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


@contextlib.contextmanager
def host_algebra():
    """The scope of NumPy algebra on d x d matrices: one BLAS thread, and no warnings of overflow.

    BLAS threads that spin beside XLA's slow matrices of a few dozen rows down thirty to sixty times
    (measured). Values that overflow are normal far from the posterior: they are looked for and
    stepped back from, not warned of.
    """
    with _blas().limit(limits=1, user_api="blas"), np.errstate(all="ignore"):
        yield


def key_words(key: Key) -> tuple[int, ...]:
    """The integer words of a key: of an int, a typed JAX key, or a legacy `PRNGKey` array.

    Raises:
        TypeError: for anything else, with the three accepted kinds.
    """
    if isinstance(key, (int, np.integer)) and not isinstance(key, (bool, np.bool_)):
        seed = int(key) % 2**64
        # What `jax.random.key(seed)` holds, without a compilation
        return (seed >> 32, seed & 0xFFFFFFFF)
    if (
        isinstance(key, jax.Array)
        and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        and key.shape == ()
    ):
        key = jr.key_data(key)
    if (
        isinstance(key, (jax.Array, np.ndarray))
        and key.dtype == np.uint32
        and key.shape in ((2,), (4,))
    ):
        return tuple(int(word) for word in np.asarray(key))
    raise TypeError(
        "`key` must be an int, a key from jax.random.key(seed), or a legacy jax.random.PRNGKey"
        f" array; got {_describe(key)}. Pass for instance key=0; split a batch of keys and pass one"
        " of them."
    )


def as_key(key: Key) -> jax.Array:
    """A typed JAX key from whatever a user may pass as `key`.

    A key that is being traced passes through.
    """
    if isinstance(key, jax.core.Tracer):
        return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jr.wrap_key_data(key)
    words = key_words(key)
    return jr.wrap_key_data(
        jnp.asarray(words, jnp.uint32), impl="threefry2x32" if len(words) == 2 else "rbg"
    )


def host_rng(key: Key, stream: str) -> np.random.Generator:
    """A NumPy generator that is a pure function of `key` and the name of its purpose.

    Host-side draws need no compilation, which is most of what a user waits for on small models.
    """
    entropy = [*key_words(key), zlib.crc32(stream.encode())]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def _describe(value: object) -> str:
    shape = getattr(value, "shape", None)
    dtype = getattr(value, "dtype", None)
    return f"{type(value).__name__}" + (
        f" of dtype {dtype} and shape {shape}" if dtype is not None else f" {value!r}"
    )


def to_device(tree: T, dtype: DTypeLike | None = None) -> T:
    """NumPy and JAX array leaves as JAX arrays, floating ones in `dtype` (float64 unless told).

    Call in `x64()`.
    """
    dtype = np.float64 if dtype is None else dtype

    def convert(leaf):
        if not eqx.is_array_like(leaf) or isinstance(leaf, (bool, int, float, complex)):
            return leaf
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return jnp.asarray(leaf, dtype)
        return jnp.asarray(leaf)

    return jax.tree.map(convert, tree)


def to_host(tree: T) -> T:
    """JAX array leaves as NumPy arrays: immune to the user's precision flags, plain to look at."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) if _is_numeric_array(leaf) else leaf, tree)


def _is_numeric_array(leaf: object) -> bool:
    return isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def pytree(cls: type[C]) -> type[C]:
    """Make a frozen dataclass a pytree, all of whose fields are children.

    It is rebuilt without its `__init__`: JAX fills pytrees with shapes, with None and with batches,
    which the annotations of the fields, checked in the tests, need not allow.
    """
    names = tuple(field.name for field in dataclasses.fields(cls))  # pyright: ignore[reportArgumentType]

    def children(node: C) -> tuple[tuple[object, ...], None]:
        return tuple(getattr(node, name) for name in names), None

    def rebuilt(_: None, values: Iterable[object]) -> C:
        node = object.__new__(cls)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_node(cls, children, rebuilt)
    return cls


def namespace(*arrays: object) -> ModuleType:
    """numpy when no array is JAX's, else jax.numpy: for code that runs on the host and compiled."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def logmeanexp(log_values: Float[np.ndarray, "n"]) -> float:
    """log of the mean of exp(log_values), on the host, safe for any finite or -inf input."""
    top = np.max(log_values)
    if not np.isfinite(top):
        return float(top)
    return float(top + np.log(np.mean(np.exp(log_values - top))))
