"""Linear response: the covariance that a mean-field fit has but does not show, from how its answer
moves when pushed.

Tilt the target a little, log p + t f: the means of a variational answer move by d E_q[g] / dt =
Cov(g, f) to first order, were q exact. With lambda at the optimum of the ELBO F the implicit
function theorem gives that derivative as J_g' (-F'')^-1 J_f, J the gradients in lambda of E_q[f]
and E_q[g]: one solve by conjugate gradients for each f, from Hessian-vector products of the log
density; no Hessian is ever built.

Source: Giordano, Broderick & Jordan 2018, theorem 1; Giordano, Ingram & Broderick 2024, section 3
(fixed draws).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree

from .._numerics import host_rng, to_device, x64
from .._types import PyTree
from ..families.base import AbstractFamily
from ..results import PairingError
from ..targets.base import Density, require
from ..targets.batched import chunk_size, compiled, hoisted
from ..targets.layout import value_names
from .fitted import Fitted

_MOST_VALUES = 200  # by default; each takes a solve of its own
_TOGETHER = 8  # solves at a time: they share the draws, and what is computed there once


@dataclasses.dataclass(frozen=True)
class LinearResponse:
    """Means under q with linear-response standard deviations.

    All `[P]`, one entry per value asked for.

    Attributes:
        names: of the values.
        mean: E_q of each value, over the draws.
        sd_q: q's own sds: too small where q is mean-field and the posterior is correlated.
        cov: linear-response covariance of the values, `[P, P]`.
        spread: sd over antithetic pairs of draws of what one pair contributes to the answer, see
            `sampling_error`.
        solved: which solves reached their tolerance. A solve fails where q is not at a maximum of
            its ELBO.
        residual: how far the ELBO on these draws wants to move q, in q's sds (rms); far above the
            design's error, q is not at its optimum and the response is one of something else.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    sd_q: np.ndarray
    cov: np.ndarray
    spread: np.ndarray
    solved: np.ndarray
    residual: float

    @property
    def sd(self) -> np.ndarray:
        """Linear-response sds; NaN where the variance came out negative."""
        variance = np.diagonal(self.cov)
        return np.where(variance >= 0, np.sqrt(np.abs(variance)), np.nan)

    def sampling_error(self, pairs: int) -> np.ndarray:
        """How far each mean would move (standard error) had the fit been made on `pairs` other
        antithetic pairs of draws.

        The sandwich estimate: a pair's own pull on lambda, through (-F'')^-1, and its own share in
            E_q[f]. For pairs with
        unit second moments; where all columns of the draws are orthogonal too, as in `FixedDesign`,
        it is an upper one.
        """
        return self.spread / np.sqrt(pairs)

    def table(self, pairs: int = 128) -> Any:
        """A pandas.DataFrame.

        Mean, sd (linear response), sd_q, and the sampling error of the mean with `pairs` pairs.
        """
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
    key: Any = 0,
    pairs: int = 128,
    rtol: float = 1e-6,
    max_steps: int = 1000,
) -> LinearResponse:
    """Linear-response covariance of functions of the parameters, for a q at the optimum of its
    ELBO.

    Exact where the posterior is Gaussian and q a mean-field Gaussian; for mild departures it
    repairs most of what mean-field loses in the sds. Not for q far from its optimum (`residual`
    tells), for several modes, or for the tails: importance weights, where they work, correct more.
    Cost: for each value some tens of products with the Hessian at 2 `pairs` draws, each worth about
    two gradients.

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
        problem = _Problem(fitted.target, function or (lambda values: values), q)
        if function is None and len(problem.names) > _MOST_VALUES:
            raise ValueError(
                f"linear_response: the target has {len(problem.names)} values, and each takes a"
                " solve. Pass `function`, from the named values to those that matter."
            )
        half = host_rng(key, "linear response").standard_normal((pairs, q.noise_dim))
        half /= np.sqrt(np.mean(half**2, axis=0))
        return problem.solved(np.concatenate([half, -half]), rtol, max_steps)


class _Problem:
    """The ELBO as a function of a small step of q, in q's own scale, and the values as functions of
    the same step.
    """

    def __init__(self, target: Density, function: Callable[[PyTree], PyTree], q: AbstractFamily):
        self.q = to_device(q)
        step, self.static = eqx.partition(
            jax.tree.map(jnp.zeros_like, self.q), eqx.is_inexact_array
        )
        self.zero, self.unravel = ravel_pytree(step)
        self.of_density, jaxpr, self.density = hoisted(
            target, lambda t, z: t.log_density(z).astype(jnp.float64)
        )
        named = lambda t, z: function(t.constrain(z))  # noqa: E731
        self.of_values, _, self.values = hoisted(target, named)
        self.names = value_names(
            jax.eval_shape(self.values, self.of_values, jax.ShapeDtypeStruct((q.dim,), jnp.float64))
        )
        self.chunk = chunk_size(jaxpr.jaxpr)

    def solved(self, noise: np.ndarray, rtol: float, max_steps: int) -> LinearResponse:
        chunks = noise.reshape(*_split(len(noise), self.chunk), noise.shape[1])
        arguments = (
            self.of_density,
            self.of_values,
            eqx.filter(self.q, eqx.is_array),
            jnp.asarray(chunks),
        )
        other = eqx.filter(self.q, eqx.is_array, inverse=True)

        def program(of_density, of_values, arrays, chunks):
            return self._response(
                of_density, of_values, eqx.combine(arrays, other), chunks, rtol, max_steps
            )

        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
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
        self, of_density: Any, of_values: Any, q: Any, chunks: Any, rtol: float, max_steps: int
    ) -> tuple:
        """(values `[n, P]`, J `[P, L]`, (-F'')^-1 J `[P, L]`, pulls `[n, P]`, gradient of the ELBO
        `[L]`, solved `[P]`).
        """
        moved = lambda step: q.retract(eqx.combine(self.unravel(step), self.static))  # noqa: E731
        log_p = lambda step, noise: self.density(of_density, moved(step)._from_noise(noise))  # noqa: E731
        entropy = lambda step: moved(step).entropy()  # noqa: E731

        def value(step, noise):
            return ravel_pytree(self.values(of_values, moved(step)._from_noise(noise)))[0].astype(
                jnp.float64
            )

        def over_draws(one):  # the mean over all draws, a chunk of them at a time
            def add(total, noise):
                return (
                    jax.tree.map(lambda t, v: t + v.sum(axis=0), total, jax.vmap(one)(noise)),
                    None,
                )

            empty = jax.tree.map(
                lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, chunks[0, 0])
            )
            total, _ = jax.lax.scan(add, empty, chunks)
            return jax.tree.map(lambda t: t / (chunks.shape[0] * chunks.shape[1]), total)

        def curved(v):  # -F'' v
            along = lambda noise: jax.jvp(lambda s: jax.grad(log_p)(s, noise), (self.zero,), (v,))[  # noqa: E731
                1
            ]
            return -over_draws(along) - jax.jvp(jax.grad(entropy), (self.zero,), (v,))[1]

        jacobian = over_draws(lambda noise: jax.jacrev(value)(self.zero, noise))
        operator = lx.FunctionLinearOperator(
            curved, jax.eval_shape(lambda: self.zero), lx.positive_semidefinite_tag
        )

        def solve(right):
            size = jnp.max(jnp.abs(right)) + 1e-300
            solution = lx.linear_solve(
                operator, right / size, lx.CG(rtol, rtol, max_steps=max_steps), throw=False
            )
            return solution.value * size, solution.result == lx.RESULTS.successful

        x, ended = jax.lax.map(solve, jacobian, batch_size=_TOGETHER)
        at_draws = lambda one: jax.lax.map(jax.vmap(one), chunks).reshape(-1, len(x))  # noqa: E731
        f = at_draws(lambda noise: value(self.zero, noise))
        pull = at_draws(lambda noise: x @ jax.grad(log_p)(self.zero, noise))
        gradient = over_draws(lambda noise: jax.grad(log_p)(self.zero, noise)) + jax.grad(entropy)(
            self.zero
        )
        return f, jacobian, x, pull, gradient, ended


def _split(n: int, most: int) -> tuple[int, int]:
    """n as (chunks, chunk size), the size the largest divisor of n up to `most`."""
    size = next(size for size in range(min(n, max(most, 1)), 0, -1) if n % size == 0)
    return n // size, size


__all__ = ["LinearResponse", "linear_response"]
