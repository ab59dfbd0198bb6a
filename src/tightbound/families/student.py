"""Student's t in many dimensions: a Gaussian with heavy tails."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp
import numpy as np
import scipy.special
from jaxtyping import Float

from .._numerics import host_rng, namespace, scoped
from .._types import Array, Key, PyTree, Scalar, Validated
from .base import AbstractFamily, on_one_thread, standard_normals
from .gaussian import Gaussian
from .scales import AbstractScale, Diagonal, Full, as_floating

# Exact to rounding for every shape from 0.05 (df = 0.1) up, where six do; one is to spare.
_NEWTON_STEPS = 7
_ROUNDING = 1e-9  # of a logarithm: by how much a step that has arrived may leave its bracket
_WIDEST = 80.0  # log of how far below its mean a gamma variate is looked for
_START = 10.0  # degrees of freedom: tails that are visibly heavy, with four moments


def _scalar(value: Validated[Scalar, "nobody: placeholders pass"]) -> Validated[Array, "nobody"]:
    """A 0-d array: NumPy's own scalars count as Python floats, which nothing moves to a device."""
    if isinstance(value, (int, float, np.generic)):
        return np.asarray(value, np.float64)
    return value


class StudentT(AbstractFamily):
    """z = loc + root e sqrt(df / g), e ~ N(0, I), g ~ chi^2_df: the multivariate t distribution.

    log q(z) = log Gamma((df + d)/2) - log Gamma(df/2) - d/2 log(df pi) - log |root|
               - (df + d)/2 log(1 + |root^-1 (z - loc)|^2 / df)

    Make one with `StudentT.full(dim)` or `.diagonal(dim)` (no correlations, though the coordinates
    share their g), or from a Gaussian with `StudentT.around(q, df)`. For posteriors with heavy
    tails, robust regressions say. Not for skewed ones (Warped), nor where only some coordinates
    have heavy tails: all share one number of degrees of freedom.

    Draws are smooth in all parameters: g is its own quantile function at a normal's distribution
    function, differentiated in df implicitly (dg/da = -(dF/da) / (dF/dg)).

    Source: Kotz & Nadarajah 2004, eq. 1.1; Figurnov, Mohamed & Mnih 2018, eq. 5 (implicit
    reparameterisation).

    Attributes:
        loc: the centre; the mean where df > 1.
        shape: a square root of the scale matrix; the covariance is df / (df - 2) times its square
            where df > 2.
        log_df: log of the degrees of freedom.
    """

    loc: Float[Array, "dim"] = eqx.field(converter=as_floating)
    shape: AbstractScale
    log_df: Float[Array, ""] = eqx.field(converter=_scalar)

    def __check_init__(self) -> None:
        if np.shape(self.loc) != (self.shape.dim,):
            raise ValueError(
                f"StudentT: `loc` must have shape [{self.shape.dim}] as its `shape` has, got"
                f" {np.shape(self.loc)}."
            )

    @staticmethod
    def full(dim: int, df: float = _START) -> "StudentT":
        """Centred, with unit scales and room for any correlation."""
        return StudentT(np.zeros(dim), Full(np.zeros((dim, dim))), np.log(_positive(df)))

    @staticmethod
    def diagonal(dim: int, df: float = _START) -> "StudentT":
        """Centred, with unit scales and no correlations."""
        return StudentT(np.zeros(dim), Diagonal(np.zeros(dim)), np.log(_positive(df)))

    @staticmethod
    def around(q: Gaussian, df: float = _START) -> "StudentT":
        """The mean and the scale of a Gaussian, with heavier tails."""
        return StudentT(q.mean, q.scale, np.log(_positive(df)))

    @property
    def dim(self) -> int:
        return self.loc.shape[0]

    @property
    def noise_dim(self) -> int:
        """The shape's normals, and one more that decides how far out the draw lies."""
        return self.shape.noise_dim + 1

    @property
    @scoped
    def df(self) -> Float[Array, ""]:
        """Degrees of freedom."""
        return namespace(self.log_df).exp(self.log_df)

    @property
    @scoped
    def mean(self) -> Float[Array, "dim"]:
        """`loc` where df > 1, else NaN."""
        return namespace(self.loc).where(self.df > 1, self.loc, np.nan)

    @property
    @scoped
    def sd(self) -> Float[Array, "dim"]:
        """Marginal standard deviations; infinite where df <= 2."""
        xp = namespace(self.loc)
        widen = xp.where(self.df > 2, self.df / xp.where(self.df > 2, self.df - 2, 1.0), np.inf)
        return xp.sqrt(widen) * self.shape.sd

    @scoped
    def entropy(self) -> Scalar:
        """Exact, nats.

        Less the constant of the log density it is (df + dim)/2 (psi((df + dim)/2) - psi(df/2)).
        """
        psi = scipy.special.digamma if namespace(self.log_df) is np else jsp.digamma
        half, both = 0.5 * self.df, 0.5 * (self.df + self.dim)
        constant = self._log_constant(self.shape.half_log_det())
        return -constant + both * (psi(both) - psi(half))

    def retract(self, step: "StudentT") -> "StudentT":
        """The Gaussian's retraction of centre and scale; log df moves by the step."""
        loc = self.loc + self.shape.unwhiten(step.loc)
        return StudentT(loc, self.shape.retract(step.shape), self.log_df + step.log_df)

    def monitored(self) -> tuple[Float[Array, "groups m"], Float[Array, "groups m"]]:
        """Centres and scales in units of the scales, 1 / df in units of itself or of 0.1."""
        xp, sd = namespace(self.loc), self.shape.sd
        tail = xp.broadcast_to(xp.exp(-self.log_df), sd.shape)
        return xp.stack([self.loc, sd, tail]), xp.stack([sd, sd, xp.maximum(tail, 0.1)])

    @on_one_thread
    def draw(self, n: int, key: Key) -> tuple[Float[np.ndarray, "n dim"], Float[np.ndarray, "n"]]:
        """`n` draws in mirrored pairs, as far out as each other, and log densities.

        Nothing to compile.
        """
        q = self.on_host()
        half = -(-n // 2)
        normals = standard_normals(n, q.shape.noise_dim, key, "student")
        uniform = host_rng(key, "student tails").permutation(
            (np.arange(half) + host_rng(key, "strata").random(half)) / half
        )
        # Quantiles of chi^2 / df at stratified uniforms; importing scipy.stats takes .3 s.
        tails = np.concatenate([uniform, uniform])[:n]
        reach = np.sqrt(q.df / (2.0 * scipy.special.gammaincinv(0.5 * q.df, tails)))
        delta = q.shape.displace(normals) * reach[:, None]
        return np.asarray(q.loc + delta), np.asarray(q._log_prob_of(delta))

    @on_one_thread
    def log_prob_on_host(self, z: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n"]:
        q = self.on_host()
        return np.asarray(q._log_prob_of(z - q.loc))

    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        # JAX's own gamma draws are differentiated implicitly too; their rejections make them no
        # smooth function of noise
        normal, far = jr.split(key)
        half = 0.5 * jnp.exp(self.log_df)
        noise = jr.normal(normal, (self.shape.noise_dim,), self.dtype)
        return self.loc + self.shape.displace(noise) * jnp.sqrt(
            half / jr.gamma(far, half, dtype=self.dtype)
        )

    def _from_noise(self, noise: Float[Array, "noise"], x: PyTree = None) -> Float[Array, "dim"]:
        half = 0.5 * jnp.exp(self.log_df)
        reach = jnp.sqrt(half / gamma_of_normal(half, noise[-1]))
        return self.loc + self.shape.displace(noise[:-1]) * reach

    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        return self._log_prob_of(z - self.loc)

    def _log_prob_of(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        """Log density at loc + delta."""
        xp, df = namespace(self.log_df), namespace(self.log_df).exp(self.log_df)
        half_log_det, quadratic = self.shape.half_log_det_and_quadratic(delta)
        constant = self._log_constant(half_log_det)
        return constant - 0.5 * (df + self.dim) * xp.log1p(quadratic / df)

    def _log_constant(self, half_log_det: Scalar) -> Scalar:
        """Log density at the centre."""
        xp, dim = namespace(self.log_df), self.dim
        gammaln = scipy.special.gammaln if xp is np else jsp.gammaln
        df = xp.exp(self.log_df)
        constant = (
            gammaln(0.5 * (df + dim))
            - gammaln(0.5 * df)
            - 0.5 * dim * (self.log_df + math.log(math.pi))
        )
        return constant - half_log_det


@jax.custom_jvp
def gamma_of_normal(
    a: Float[Array, "*shape"], noise: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """The g with P(Gamma(a, 1) <= g) = Phi(noise): a gamma variate, smooth in a normal one.

    By Newton steps in log g on the log of whichever tail is the smaller, so that both ends keep
    their digits, from Wilson & Hilferty's cube; a step that leaves the bracket halves it instead.
    """
    lower = noise < 0
    log_tail = jsp.log_ndtr(-jnp.abs(noise))

    def refine(_: int | jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        low, high, middle = state
        g = jnp.exp(middle)
        log_here = jnp.log(jnp.where(lower, jsp.gammainc(a, g), jsp.gammaincc(a, g)))
        below = jnp.where(lower, log_here < log_tail, log_here > log_tail)
        low, high = jnp.where(below, middle, low), jnp.where(below, high, middle)
        # Of the log tail in log g, up to its sign
        slope = jnp.exp(a * middle - g - jsp.gammaln(a) - log_here)
        step = jnp.where(lower, -1.0, 1.0) * (log_here - log_tail) / slope
        new = middle + step
        # Arrived, the step may cross an end by rounding
        inside = (new >= low - _ROUNDING) & (new <= high + _ROUNDING)
        return low, high, jnp.where(inside, new, 0.5 * (low + high))

    low = jnp.log(a) - _WIDEST / jnp.minimum(a, 1.0) + 0.0 * noise
    high = jnp.log(a) + jnp.log1p(20.0 / jnp.sqrt(a) + 60.0 / a) + 0.0 * noise
    cube = 1.0 - 1.0 / (9.0 * a) + noise / (3.0 * jnp.sqrt(a))
    small = (log_tail + jsp.gammaln(a + 1.0)) / a  # F(g) ~ g^a / Gamma(a + 1) far below the mean
    start = jnp.where(
        lower & (cube < 0.3), small, jnp.log(a) + 3.0 * jnp.log(jnp.maximum(cube, 0.1))
    )
    start = jnp.clip(start, low, high)
    return jnp.exp(jax.lax.fori_loop(0, _NEWTON_STEPS, refine, (low, high, start))[2])


@gamma_of_normal.defjvp
def _implicit(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[Array, jax.Array]:
    """dg/da = -(dF/da)/(dF/dg), dg/dnoise = phi(noise) / (dF/dg)."""
    a, noise = primals
    g = gamma_of_normal(a, noise)
    log_density = (a - 1.0) * jnp.log(g) - g - jsp.gammaln(a)
    in_noise = jnp.exp(-0.5 * noise**2 - 0.5 * math.log(2 * math.pi) - log_density)
    # JAX's stub asks for a dtype that the function itself works out.
    in_a = jax.lax.random_gamma_grad(*jnp.broadcast_arrays(a, g))  # pyright: ignore[reportCallIssue]
    return g, in_a * tangents[0] + in_noise * tangents[1]


def _positive(df: float) -> float:
    if not df > 0:
        raise ValueError(f"StudentT: `df` must be positive, got {df!r}.")
    return float(df)


__all__ = ["StudentT"]
