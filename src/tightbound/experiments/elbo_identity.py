"""The identities of variational inference: ELBO = log Z - KL(q || posterior), and its gradient.

Since log Z does not depend on q, grad ELBO = -grad KL. Both sides are computed apart from each
other. The ELBO and its gradient come from the log joint density alone, by Gauss-Hermite quadrature
(exact on the conjugate target, whose log joint is quadratic); the divergence from the posterior
alone: in closed form where it is conjugate, else by Gauss-Legendre on the line, with the posterior
normalised there.

Source: Blei, Kucukelbir & McAuliffe 2017, "Variational inference: a review for statisticians",
section 2.2.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from .._numerics import to_device, x64
from .._types import Scalar
from ..estimators.base import frozen
from ..estimators.gauss_hermite import tensor_rule
from ..estimators.quadrature import Quadrature
from ..families.gaussian import Gaussian, kl
from ..objectives.classic import ELBO
from ..targets.base import Density
from ..targets.zoo import beta_bernoulli, gamma_poisson, linear_regression
from ..targets.zoo.known import Known
from .result import Claim, Result, Table, below, number, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE = "an identity; Blei et al. 2017, section 2.2"
RELATIVE = 1e-8  # a bound for rounding and quadrature: both sides are computed in float64
_REACH = 14.0  # posterior sds on either side of the mean that the grid covers
_NODES = 4000  # of the grid
_CELL = 400  # nodes of one Gauss-Legendre rule; the grid is a row of them

Divergence: TypeAlias = Callable[[Gaussian], Scalar]
"""A divergence between q and the posterior, nats, as a function of q."""


class Side(NamedTuple):
    """A target with a start, the nodes of its quadrature, and both divergences.

    `divergence` is KL(q || posterior), `reverse` is KL(posterior || q).
    """

    known: Known
    centre: Gaussian
    nodes: int
    divergence: Divergence
    reverse: Divergence


def run(fast: bool = True) -> Result:
    """Random members of q for one conjugate target in three dimensions and two on the line.

    Arguments:
        fast: 20 members of q for each target; else 500.
    """
    claims, rows = [], []
    with x64():
        shown = _on_the_line(gamma_poisson())
        for side in (_conjugate(linear_regression()), shown, _on_the_line(beta_bernoulli())):
            found = [_compare(side, q) for q in _members(side.centre, 20 if fast else 500)]
            claims += _claims(side.known.name, found)
            rows += [{"target": side.known.name, **row} for row in found]
        path = _along(shown)
    return Result("elbo-identity", claims, {"members": rows, "path": path})


def _conjugate(known: Known) -> Side:
    """A Gaussian posterior, by the conjugate formula; the divergences in closed form.

    Four nodes make the quadrature exact: the log joint is a polynomial of second order.
    """
    (mean,) = jax.tree.leaves(known.mean)
    posterior = to_device(Gaussian.from_root(mean, np.linalg.cholesky(np.asarray(known.cov))))
    return Side(known, posterior, 4, lambda q: kl(q, posterior), lambda q: kl(posterior, q))


def _on_the_line(known: Known) -> Side:
    """The posterior on a grid of Gauss-Legendre nodes, normalised by their sum."""
    rough = np.linspace(-30.0, 30.0, 20_001)
    centre, sd = _moments(rough, _log_density(known, rough), 1.0)
    u, w = np.polynomial.legendre.leggauss(_CELL)
    cells = np.linspace(-_REACH, _REACH, _NODES // _CELL + 1)
    half = 0.5 * np.diff(cells)
    z = (centre + sd * (0.5 * (cells[1:] + cells[:-1])[:, None] + half[:, None] * u)).ravel()
    weights = sd * (half[:, None] * w).ravel()
    log_joint = _log_density(known, z)
    top = log_joint.max()
    log_posterior = jnp.asarray(log_joint - top - np.log(weights @ np.exp(log_joint - top)))
    grid, weights = jnp.asarray(z)[:, None], jnp.asarray(weights)

    def divergence(q: Gaussian) -> Float[jax.Array, ""]:
        log_q = jax.vmap(q._log_prob)(grid)
        return jnp.sum(weights * jnp.exp(log_q) * (log_q - log_posterior))

    def reverse(q: Gaussian) -> Float[jax.Array, ""]:
        log_q = jax.vmap(q._log_prob)(grid)
        return jnp.sum(weights * jnp.exp(log_posterior) * (log_posterior - log_q))

    start = to_device(Gaussian.diagonal(1).moved(np.array([centre]), sd))
    # Eighty nodes: the log joint is no polynomial here
    return Side(known, start, 80, divergence, reverse)


def _log_density(known: Known, z: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The log joint at points of the line."""
    return np.asarray(jax.jit(jax.vmap(known.target.log_density))(jnp.asarray(z)[:, None]))


def _moments(
    z: Float[np.ndarray, "n"], log_weight: Float[np.ndarray, "n"], cell: float
) -> tuple[float, float]:
    """Mean and sd of the law with those weights."""
    weight = np.exp(log_weight - log_weight.max()) * cell
    weight /= weight.sum()
    mean = weight @ z
    return float(mean), float(np.sqrt(weight @ (z - mean) ** 2))


def _members(centre: Gaussian, count: int) -> list[Gaussian]:
    """Gaussians about the posterior: means within about one sd, sds between .6 and 1.2 of it."""
    rng = np.random.default_rng(13)
    sd, members = np.asarray(centre.sd), []
    for scale in rng.uniform(0.6, 1.2, (count, len(sd))):
        mean = centre.mean + sd * rng.standard_normal(len(sd))
        members.append(to_device(centre.moved(jnp.asarray(mean), jnp.asarray(scale))))
    return members


@eqx.filter_jit
def _sides(
    target: Density, q: Gaussian, divergence: Divergence, reverse: Divergence, nodes: int
) -> tuple[tuple[Scalar, Gaussian], tuple[Scalar, Gaussian], Scalar, Gaussian]:
    """Loss and divergence with their gradients, the other divergence, and E_q[grad log q].

    A gradient has the structure of q.
    """

    def loss(q: Gaussian) -> Scalar:
        return Quadrature(nodes).surrogate(ELBO(), target, q, None, jr.key(0))[0]

    both = eqx.filter_value_and_grad(loss)(q), eqx.filter_value_and_grad(divergence)(q)
    return *both, reverse(q), eqx.filter_grad(_mean_log_q)(q)


def _compare(side: Side, q: Gaussian) -> dict[str, float]:
    """One member: both sides of both identities."""
    (loss, descent), (divergence, slope), reverse, score = _sides(
        side.known.target, q, side.divergence, side.reverse, side.nodes
    )
    first, second = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (descent, slope)
    )
    return {
        "elbo": -float(loss),
        "log evidence": side.known.log_evidence,
        "KL(q || posterior)": float(divergence),
        "KL(posterior || q)": float(reverse),
        "identity": abs(float(divergence) - float(loss) - side.known.log_evidence),
        "gradient": float(np.linalg.norm(first - second) / np.linalg.norm(second)),
        "score": float(max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(score))),
    }


def _mean_log_q(q: Gaussian) -> Float[jax.Array, ""]:
    """E of log q under q held fixed, by quadrature; its gradient, E_q[grad log q], is zero."""
    rule = tensor_rule(6, q.noise_dim, 0.0)
    z = jax.vmap(frozen(q)._from_noise)(jnp.asarray(rule.nodes))
    return jnp.sum(jnp.asarray(rule.weights) * jax.vmap(q._log_prob)(z))


def _claims(name: str, found: list[dict[str, float]]) -> list[Claim]:
    def worst(key: str) -> float:
        return max(row[key] for row in found)

    least = min(min(row["KL(q || posterior)"], row["KL(posterior || q)"]) for row in found)
    named = {
        "gradient": f"relative difference of grad ELBO and -grad KL, {name}",
        "identity": f"|ELBO + KL(q || posterior) - log Z| in nats, {name}",
        "score": f"|E_q grad log q|, {name}",
    }
    return [
        *(below(what, SOURCE, RELATIVE, worst(key)) for key, what in named.items()),
        below(f"minus the smallest KL in either direction, nats, {name}", SOURCE, 0.0, -least),
    ]


def _along(side: Side) -> list[dict[str, float]]:
    """ELBO and KL as the mean of q moves by up to 2.5 posterior sds, for the picture."""
    centre = side.centre
    rows = []
    for shift in np.linspace(-2.5, 2.5, 41):
        mean = jnp.asarray(centre.mean + shift * centre.sd)
        row = _compare(side, to_device(centre.moved(mean, 0.9)))
        rows.append({"shift": float(shift), **row})
    return rows


def figures(result: Result) -> "dict[str, Figure]":
    """The gap between the ELBO and log Z, and the gradients of all members against each other."""
    from .drawing import panels

    with panels(1, 2, width=10.0, height=3.6) as (figure, axes):
        _gap(axes[0, 0], result.tables["path"])
        _gradients(axes[0, 1], result.tables["members"])
    return {"identity": figure}


def _gap(axes: "Axes", path: Table) -> None:
    from .drawing import COLOURS

    shift, log_z = numbers(path, "shift"), numbers(path, "log evidence")
    elbo, other = numbers(path, "elbo"), log_z - numbers(path, "KL(q || posterior)")
    axes.axhline(log_z[0], color=COLOURS[6], lw=1.2, label="log Z")
    axes.plot(shift, elbo, color=COLOURS[0], lw=1.8, label="ELBO, from the joint density")
    label = "log Z - KL, from the posterior"
    axes.plot(shift[::2], other[::2], "o", color=COLOURS[1], ms=4, label=label)
    axes.set_xlabel("mean of q, in posterior sds from the posterior's")
    axes.set_ylabel("nats")
    axes.set_title("Gamma-Poisson, on the log scale")
    axes.legend()


def _gradients(axes: "Axes", members: Table) -> None:
    from .drawing import COLOURS

    names = dict.fromkeys(str(row["target"]) for row in members)
    for colour, name in zip(COLOURS, names, strict=False):
        mine = [row for row in members if row["target"] == name]
        # A difference of zero has no place on a log axis
        x, y = (
            [max(number(row, key), 1e-17) for row in mine]
            for key in ("KL(q || posterior)", "gradient")
        )
        axes.loglog(x, y, "o", color=colour, ms=4, label=name.split("(")[0])
    axes.axhline(RELATIVE, color=COLOURS[6], lw=1.2, ls="--", label="claimed bound")
    axes.set_xlabel("KL(q || posterior), nats")
    axes.set_ylabel("relative difference of the gradients")
    axes.set_title("grad ELBO against -grad KL")
    axes.legend()


__all__ = ["figures", "run"]
