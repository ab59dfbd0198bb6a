"""The identities that variational inference rests on: ELBO = log Z - KL(q || posterior), hence grad
ELBO = -grad KL.

Both sides are computed apart from each other. The ELBO and its gradient come from the log joint
density alone, by Gauss-Hermite quadrature (exact on the conjugate target, whose log joint is
quadratic); the divergence from the posterior alone: in closed form where it is conjugate, else by
Gauss-Legendre on the line, with the posterior normalised there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._numerics import to_device, x64
from ..estimators.base import frozen
from ..estimators.gauss_hermite import tensor_rule
from ..estimators.quadrature import Quadrature
from ..families.gaussian import Gaussian, kl
from ..objectives.classic import ELBO
from ..targets.zoo import beta_bernoulli, gamma_poisson, linear_regression
from ..targets.zoo.known import Known
from .result import Result, below

SOURCE = "lecture spec, section 1"
RELATIVE = 1e-8  # ibid.
_REACH, _NODES = 14.0, 4000


class Side(NamedTuple):
    """A target with a start, and its divergence KL(q || posterior) and KL(posterior || q) as
    functions of q.
    """

    known: Known
    centre: Gaussian
    nodes: int
    divergence: Callable[[Any], Any]
    reverse: Callable[[Any], Any]


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
    """The posterior is Gaussian.

    Its mean and covariance by the conjugate formula, the divergence in closed form.
    """
    (mean,) = jax.tree.leaves(known.mean)
    posterior = to_device(Gaussian.from_root(mean, np.linalg.cholesky(np.asarray(known.cov))))
    return Side(known, posterior, 4, lambda q: kl(q, posterior), lambda q: kl(posterior, q))


def _on_the_line(known: Known) -> Side:
    """The posterior on a grid of Gauss-Legendre nodes over `_REACH` of its own sds, normalised by
    their sum.
    """
    rough = np.linspace(-30.0, 30.0, 20_001)
    centre, sd = _moments(rough, _log_density(known, rough), 1.0)
    u, w = np.polynomial.legendre.leggauss(400)
    cells = np.linspace(-_REACH, _REACH, _NODES // 400 + 1)
    half = 0.5 * np.diff(cells)
    z = (centre + sd * (0.5 * (cells[1:] + cells[:-1])[:, None] + half[:, None] * u)).ravel()
    weights = sd * (half[:, None] * w).ravel()
    log_joint = _log_density(known, z)
    top = log_joint.max()
    log_posterior = jnp.asarray(log_joint - top - np.log(weights @ np.exp(log_joint - top)))
    grid, weights = jnp.asarray(z)[:, None], jnp.asarray(weights)

    def divergence(q: Any) -> jax.Array:
        log_q = jax.vmap(q._log_prob)(grid)
        return jnp.sum(weights * jnp.exp(log_q) * (log_q - log_posterior))

    def reverse(q: Any) -> jax.Array:
        return jnp.sum(
            weights * jnp.exp(log_posterior) * (log_posterior - jax.vmap(q._log_prob)(grid))
        )

    return Side(
        known,
        to_device(Gaussian.diagonal(1).moved(np.array([centre]), sd)),
        80,
        divergence,
        reverse,
    )


def _log_density(known: Known, z: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(known.target.log_density))(jnp.asarray(z)[:, None]))


def _moments(z: np.ndarray, log_weight: np.ndarray, cell: float) -> tuple[float, float]:
    weight = np.exp(log_weight - log_weight.max()) * cell
    weight /= weight.sum()
    mean = weight @ z
    return float(mean), float(np.sqrt(weight @ (z - mean) ** 2))


def _members(centre: Gaussian, count: int) -> list[Gaussian]:
    """Gaussians about the posterior: means within about one sd, sds between .6 and 1.2 of it."""
    rng = np.random.default_rng(13)
    sd = np.asarray(centre.sd)
    return [
        to_device(
            centre.moved(
                jnp.asarray(centre.mean + sd * rng.standard_normal(len(sd))), jnp.asarray(scale)
            )
        )
        for scale in rng.uniform(0.6, 1.2, (count, len(sd)))
    ]


@eqx.filter_jit
def _sides(
    target: Any, q: Any, divergence: Any, reverse: Any, nodes: int
) -> tuple[Any, Any, Any, Any]:
    def loss(q: Any) -> jax.Array:
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


def _mean_log_q(q: Any) -> jax.Array:
    """E of log q under q held fixed, by quadrature; its gradient, E_q[grad log q], is zero."""
    rule = tensor_rule(6, q.noise_dim, 0.0)
    z = jax.vmap(frozen(q)._from_noise)(jnp.asarray(rule.nodes))
    return jnp.sum(jnp.asarray(rule.weights) * jax.vmap(q._log_prob)(z))


def _claims(name: str, found: list[dict[str, float]]) -> list[dict[str, Any]]:
    def worst(key: str) -> float:
        return max(row[key] for row in found)

    least = min(min(row["KL(q || posterior)"], row["KL(posterior || q)"]) for row in found)
    return [
        below(
            f"relative difference of grad ELBO and -grad KL, {name}",
            SOURCE,
            RELATIVE,
            worst("gradient"),
        ),
        below(
            f"|ELBO + KL(q || posterior) - log Z| in nats, {name}",
            SOURCE,
            RELATIVE,
            worst("identity"),
        ),
        below(f"|E_q grad log q|, {name}", SOURCE, RELATIVE, worst("score")),
        below(f"minus the smallest KL in either direction, nats, {name}", SOURCE, 0.0, -least),
    ]


def _along(side: Side) -> list[dict[str, float]]:
    """ELBO and KL as the mean of q moves by up to 2.5 posterior sds, for the picture."""
    centre = side.centre
    rows = []
    for shift in np.linspace(-2.5, 2.5, 41):
        row = _compare(
            side, to_device(centre.moved(jnp.asarray(centre.mean + shift * centre.sd), 0.9))
        )
        rows.append({"shift": float(shift), **row})
    return rows


def figures(result: Result) -> dict[str, Any]:
    """The gap between the ELBO and log Z, and the gradients of all members against each other."""
    from .drawing import COLOURS, panels

    path, members = result.tables["path"], result.tables["members"]
    with panels(1, 2, width=10.0, height=3.6) as (figure, axes):
        left, right = axes[0]
        shift = [row["shift"] for row in path]
        left.axhline(path[0]["log evidence"], color=COLOURS[6], lw=1.2, label="log Z")
        left.plot(
            shift,
            [row["elbo"] for row in path],
            color=COLOURS[0],
            lw=1.8,
            label="ELBO, from the joint density",
        )
        other = [row["log evidence"] - row["KL(q || posterior)"] for row in path]
        left.plot(
            shift[::2],
            other[::2],
            "o",
            color=COLOURS[1],
            ms=4,
            label="log Z - KL, from the posterior",
        )
        left.set_xlabel("mean of q, in posterior sds from the posterior's")
        left.set_ylabel("nats")
        left.set_title("Gamma-Poisson, on the log scale")
        left.legend()
        for colour, name in zip(
            COLOURS, dict.fromkeys(row["target"] for row in members), strict=False
        ):
            mine = [row for row in members if row["target"] == name]
            x, y = (
                [max(row[key], 1e-17) for row in mine] for key in ("KL(q || posterior)", "gradient")
            )
            right.loglog(x, y, "o", color=colour, ms=4, label=name.split("(")[0])
        right.axhline(RELATIVE, color=COLOURS[6], lw=1.2, ls="--", label="claimed bound")
        right.set_xlabel("KL(q || posterior), nats")
        right.set_ylabel("relative difference of the gradients")
        right.set_title("grad ELBO against -grad KL")
        right.legend()
    return {"identity": figure}


__all__ = ["figures", "run"]
