"""Linear response: the covariance that a mean-field fit has but does not show.

It is seen in how the answer moves when pushed. Tilt the target a little, log p + t f: the means of
a variational answer move by d E_q[g] / dt = Cov(g, f) to first order, were q exact. With lambda at
the optimum of the ELBO F the implicit function theorem gives that derivative as J_g' (-F'')^-1 J_f,
J the gradients in lambda of E_q[f] and E_q[g]: one solve by conjugate gradients for each f, from
Hessian-vector products of the log density; no Hessian is ever built.

Source: Giordano, Broderick & Jordan 2018, theorem 1; Giordano, Ingram & Broderick 2024, section 3
(fixed draws).
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Bool, Float

from .._numerics import host_rng, to_device, x64
from .._types import Array, Key, PyTree, Scalar
from ..families.base import AbstractFamily
from ..results import PairingError
from ..targets.base import Density, require
from ..targets.batched import chunk_size, compiled, hoisted
from ..targets.layout import value_names
from .fitted import Fitted

if TYPE_CHECKING:
    import pandas  # half a second that `import tightbound` does without

_MOST_VALUES = 200  # that are taken without being asked for: each takes a solve of its own
_TOGETHER = 8  # solves at a time: they share the draws, and what is computed there once


@dataclasses.dataclass(frozen=True)
class LinearResponse:
    """Means under q with linear-response standard deviations, one entry per value asked for.

    Attributes:
        names: of the values.
        mean: E_q of each value, over the draws.
        sd_q: q's own sds: too small where q is mean-field and the posterior is correlated.
        cov: linear-response covariance of the values.
        spread: sd over antithetic pairs of draws of what one pair contributes to the answer, see
            `sampling_error`.
        solved: which solves reached their tolerance. A solve fails where q is not at a maximum of
            its ELBO.
        residual: how far the ELBO on these draws wants to move q, in q's sds (rms); far above the
            design's error, q is not at its optimum and the response is one of something else.
    """

    names: tuple[str, ...]
    mean: Float[np.ndarray, "p"]
    sd_q: Float[np.ndarray, "p"]
    cov: Float[np.ndarray, "p p"]
    spread: Float[np.ndarray, "p"]
    solved: Bool[np.ndarray, "p"]
    residual: float

    @property
    def sd(self) -> Float[np.ndarray, "p"]:
        """Linear-response sds; NaN where the variance came out negative."""
        variance = np.diagonal(self.cov)
        return np.where(variance >= 0, np.sqrt(np.abs(variance)), np.nan)

    def sampling_error(self, pairs: int) -> Float[np.ndarray, "p"]:
        """How far each mean would move had the fit been made on `pairs` other pairs of draws.

        The standard error, by the sandwich estimate: a pair's own pull on lambda, through
        (-F'')^-1, and its own share in E_q[f]. For antithetic pairs with unit second moments; where
        all columns of the draws are orthogonal too, as in `FixedDesign`, it is an upper one.
        """
        return self.spread / np.sqrt(pairs)

    def table(self, pairs: int = 128) -> "pandas.DataFrame":
        """Mean, sd (linear response), sd_q, and sampling error of the mean for `pairs` pairs."""
        import xarray as xr

        columns = {
            "mean": self.mean,
            "sd": self.sd,
            "sd_q": self.sd_q,
            "sampling_error": self.sampling_error(pairs),
        }
        data = {name: ("parameter", values) for name, values in columns.items()}
        return xr.Dataset(data, coords={"parameter": list(self.names)}).to_dataframe()


def linear_response(
    fitted: Fitted,
    function: Callable[[PyTree], PyTree] | None = None,
    *,
    key: Key = 0,
    pairs: int = 128,
    rtol: float = 1e-6,
    max_steps: int = 1000,
) -> LinearResponse:
    """Linear-response covariance of functions of the parameters, for a q at its optimum.

    The optimum is that of its ELBO. Exact where the posterior is Gaussian and q a mean-field
    Gaussian; for mild departures it repairs most of what mean-field loses in the sds. Not for q far
    from its optimum (`residual` tells), for several modes, or for the tails: importance weights,
    where they work, correct more. Cost: for each value some tens of products with the Hessian at 2
    `pairs` draws, each worth about two gradients.

    Arguments:
        fitted: anything with `.q` (reparameterised, with smooth draws of normal noise) and
            `.target`.
        function: from the named values of one draw to a pytree of numbers, such as `lambda p:
            {"first": p["beta"][0]}`; None takes all named values, up to 200.
        key: of the draws.
        pairs: antithetic pairs of draws; more than the dimension of q's noise are only needed for
            curved posteriors.
        rtol: relative tolerance of the conjugate gradients.
        max_steps: most of their iterations.

    Raises:
        PairingError: q cannot be differentiated through its draws, or the target has no log
            density.
        ValueError: too many values for the default.
    """
    q = fitted.q
    require("linear_response", fitted.target, Density)
    if not (
        isinstance(q, AbstractFamily)
        and q.reparameterised
        and q.noise_dim is not None
        and q.entropy() is not None
    ):
        raise PairingError(
            "linear_response differentiates through draws of q and its entropy, which"
            f" {type(q).__name__} does not allow; use it on a Gaussian fit, or importance weights:"
            " fit.summary()."
        )
    with x64():
        target = cast(Density, fitted.target)  # as required above
        problem = _Problem(target, function or (lambda values: values), q)
        if function is None and len(problem.names) > _MOST_VALUES:
            raise ValueError(
                f"linear_response: the target has {len(problem.names)} values, and each takes a"
                " solve. Pass `function`, from the named values to those that matter."
            )
        half = host_rng(key, "linear response").standard_normal((pairs, q.noise_dim))
        half /= np.sqrt(np.mean(half**2, axis=0))
        return problem.solved(np.concatenate([half, -half]), rtol, max_steps)


class _Problem:
    """The ELBO and the values as functions of a small step of q, in q's own scale."""

    def __init__(self, target: Density, function: Callable[[PyTree], PyTree], q: AbstractFamily):
        self.q = to_device(q)
        step, self.static = eqx.partition(
            jax.tree.map(jnp.zeros_like, self.q), eqx.is_inexact_array
        )
        self.zero, self.unravel = ravel_pytree(step)
        self.of_density, jaxpr, self.density = hoisted(
            target, lambda t, z: t.log_density(z).astype(jnp.float64)
        )
        of_values = lambda t, z: function(t.constrain(z))  # noqa: E731
        self.of_values, _, self.values = hoisted(target, of_values)
        self.names = value_names(
            jax.eval_shape(self.values, self.of_values, jax.ShapeDtypeStruct((q.dim,), jnp.float64))
        )
        self.chunk = chunk_size(jaxpr.jaxpr)

    def solved(
        self, noise: Float[np.ndarray, "n noise"], rtol: float, max_steps: int
    ) -> LinearResponse:
        """The response, from draws of this noise, in antithetic pairs."""
        chunks = noise.reshape(*_split(len(noise), self.chunk), noise.shape[1])
        arguments = (
            self.of_density,
            self.of_values,
            eqx.filter(self.q, eqx.is_array),
            jnp.asarray(chunks),
        )
        other = eqx.filter(self.q, eqx.is_array, inverse=True)

        def program(
            of_density: PyTree, of_values: PyTree, arrays: PyTree, chunks: Float[Array, "c m noise"]
        ) -> tuple[Array, ...]:
            q = eqx.combine(arrays, other)
            return self._response(of_density, of_values, q, chunks, rtol, max_steps)

        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
        # The text of a program does not show arguments that were dropped, see `compiled`
        out = compiled(jax.jit(program, keep_unused=True).lower(*shapes))(*arguments)
        f, jacobian, x, pull, gradient, ended = (np.asarray(leaf) for leaf in out)
        pairs = len(noise) // 2
        pulled = 0.5 * ((pull + f)[:pairs] + (pull + f)[pairs:])
        cov = jacobian @ x.T
        residual = float(np.sqrt(np.mean(gradient**2)))
        return LinearResponse(
            self.names,
            f.mean(axis=0),
            f.std(axis=0),
            0.5 * (cov + cov.T),
            pulled.std(axis=0),
            ended,
            residual,
        )

    def _response(
        self,
        of_density: PyTree,
        of_values: PyTree,
        q: AbstractFamily,
        chunks: Float[Array, "c m noise"],
        rtol: float,
        max_steps: int,
    ) -> tuple[Array, ...]:
        """What a LinearResponse is made of, for p values, n draws and l numbers in q.

        Values `[n, p]`, J `[p, l]`, (-F'')^-1 J `[p, l]`, pulls `[n, p]`, the gradient of the ELBO
        `[l]`, and which solves ended well `[p]`.
        """

        def moved(step: Float[jax.Array, "l"]) -> AbstractFamily:
            return q.retract(eqx.combine(self.unravel(step), self.static))

        def draw(step: Float[jax.Array, "l"], noise: Float[Array, "noise"]) -> jax.Array:
            return jnp.asarray(moved(step)._from_noise(noise))

        def log_p(step: Float[jax.Array, "l"], noise: Float[Array, "noise"]) -> Float[Array, ""]:
            return self.density(of_density, draw(step, noise))

        def entropy(step: Float[jax.Array, "l"]) -> Scalar:
            value = moved(step).entropy()
            assert value is not None  # a family without one was refused
            return value

        def value(step: Float[jax.Array, "l"], noise: Float[Array, "noise"]) -> Float[Array, "p"]:
            named = self.values(of_values, draw(step, noise))
            return ravel_pytree(named)[0].astype(jnp.float64)

        jacobian = _mean_over(chunks, lambda noise: jax.jacrev(value)(self.zero, noise))

        def curved(v: Float[jax.Array, "l"]) -> Float[jax.Array, "l"]:  # -F'' v
            def along(noise: Float[Array, "noise"]) -> Float[jax.Array, "l"]:
                score = lambda step: jax.grad(log_p)(step, noise)  # noqa: E731
                return jax.jvp(score, (self.zero,), (v,))[1]

            return -_mean_over(chunks, along) - jax.jvp(jax.grad(entropy), (self.zero,), (v,))[1]

        x, ended = _solutions(curved, self.zero, jacobian, rtol, max_steps)
        at_draws = lambda one: jax.lax.map(jax.vmap(one), chunks).reshape(-1, len(x))  # noqa: E731
        f = at_draws(lambda noise: value(self.zero, noise))
        pull = at_draws(lambda noise: x @ jax.grad(log_p)(self.zero, noise))
        gradient = _mean_over(chunks, lambda noise: jax.grad(log_p)(self.zero, noise))
        return f, jacobian, x, pull, gradient + jax.grad(entropy)(self.zero), ended


def _solutions(
    matrix: Callable[[Float[jax.Array, "l"]], Float[jax.Array, "l"]],
    like: Float[jax.Array, "l"],
    rights: Float[Array, "p l"],
    rtol: float,
    max_steps: int,
) -> tuple[Float[Array, "p l"], Bool[Array, "p"]]:
    """The solutions of `matrix(x) = right` for each row, and which of the solves ended well."""
    operator = lx.FunctionLinearOperator(
        matrix, jax.eval_shape(lambda: like), lx.positive_semidefinite_tag
    )

    def solve(right: Float[jax.Array, "l"]) -> tuple[Float[Array, "l"], Bool[Array, ""]]:
        # Scaled, so that the tolerance is relative whatever the unit of the value
        size = jnp.max(jnp.abs(right)) + 1e-300
        solution = lx.linear_solve(
            operator, right / size, lx.CG(rtol, rtol, max_steps=max_steps), throw=False
        )
        return solution.value * size, solution.result == lx.RESULTS.successful

    return jax.lax.map(solve, rights, batch_size=_TOGETHER)


def _mean_over(
    chunks: Float[Array, "c m noise"], one: Callable[[Float[Array, "noise"]], Array]
) -> Array:
    """The mean of `one` over all draws, a chunk of them at a time."""

    def add(
        total: Float[Array, "..."], noise: Float[Array, "m noise"]
    ) -> tuple[Float[Array, "..."], None]:
        return total + jax.vmap(one)(noise).sum(axis=0), None

    shape = jax.eval_shape(one, chunks[0, 0])
    total, _ = jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), chunks)
    return total / (chunks.shape[0] * chunks.shape[1])


def _split(n: int, most: int) -> tuple[int, int]:
    """n as (chunks, chunk size), the size the largest divisor of n up to `most`."""
    size = next(size for size in range(min(n, max(most, 1)), 0, -1) if n % size == 0)
    return n // size, size


__all__ = ["LinearResponse", "linear_response"]
