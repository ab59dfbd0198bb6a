"""Other optima: dispersed short searches, and what each end that q does not cover is worth.

k-hat cannot see a mode six sds away, because no draw of q lands there. The check climbs the log
density itself from at least 16 starts, half of them anywhere plausible and half around q at several
times its scale. A mode that no start reaches is the stated limit of this finding.
"""

import dataclasses
from typing import cast

import numpy as np
from jaxtyping import Float

from ..._numerics import host_rng, logmeanexp
from ...estimators.fixed_design import moment_matched
from ...search.conditionals import Knot, refit
from ...search.lbfgs import Evaluate, Path, ascend
from ...starts.paths import LocalGaussian, broad_start, dispersed_points, local_gaussians
from ...targets.base import Density
from ..draws import WHITENED_UP_TO, FreshDraws, Whitening
from ..finding import (
    About,
    Case,
    Finding,
    MissedMass,
    Rival,
    Stage,
    Verdict,
    register,
)
from ..standards import Effort, Standards

_MANY = 300  # dimensions up to which the ELBO is climbed from far out as well: it costs d a step
_MAX_NUMBERS = 4_000_000  # curvature pairs x starts x dim held by the searches
_MEMORY = (2, 8)  # curvature pairs of each search, at least and at most
_GTOL = 1e-3  # nats, squared: ends are only told apart, not reported
_NONE_HELD = np.empty(0, dtype=int)
# Every second start anywhere is five times as wide as uniform(-2, 2); those around q lie at these
# multiples of its sds, so that some leave its basin whatever the shape of it is.
_WIDER = 5.0
_INFLATION = (2.0, 4.0, 8.0, 16.0)
_DESIGN = 32  # draws, or as many as there are dimensions, that the ELBO at an end is taken from
_SCALES = (1.0, 0.5)  # of the curvature's Gaussian: on a skewed end the smaller one is better
_APART = 2.0  # rms sds of one Gaussian beyond which another is centred outside it
# Evaluations that a search takes on ordinary posteriors, and designs of the climb from far out:
# with both the median cost is met. What a budget allows is enforced besides.
_PER_START, _DESIGNS = 20, 22


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimaDetail(MissedMass):
    """`starts`: how many searches there were; `ends`: where they ended away from q's mean."""

    starts: int
    ends: tuple[Float[np.ndarray, "dim"], ...]


def cost_of_searches(dim: int, effort: Effort) -> int:
    """Searches, the climb from far out, and the curvature and the ELBO at one end."""
    searches, design = _PER_START * (effort.starts + 1), 2 * max(dim, _DESIGN)
    climb = _DESIGNS * design if dim <= _MANY else 0
    return searches + climb + (4 * dim + 2 * design if dim <= WHITENED_UP_TO else 0)


@register("optima", place=200, stage=Stage.SEARCH, cost=cost_of_searches)
def optima(case: Case) -> Finding:
    """Search from dispersed points (and from q's mean) and judge every end that q does not cover.

    A rival is an end whose local Gaussian has an ELBO within 4 nats of q's, and most of whose mass
    lies where q has less than 1/20 of the posterior's density; without a density of q (draws of a
    chain), one more than 8 nats of KL from the draws.
    """
    draws, standards, effort = case.sample, case.standards, case.effort
    rng = host_rng(case.key, "dispersed starts")
    white = (
        Whitening.of(draws.z[draws.finite]) if draws.finite.sum() > 10 else Whitening.of(draws.z)
    )
    density, (_, dim), starts = white.evaluate(draws.density), draws.z.shape, effort.starts
    paths = ascend(
        density,
        _starts(rng, draws, white, starts),
        max_iterations=effort.iterations,
        gtol=_GTOL,
        memory=int(np.clip(_MAX_NUMBERS // ((starts + 1) * dim), *_MEMORY)),
        keep_points=False,
    )
    if dim > WHITENED_UP_TO:
        return _of_many_dimensions(paths, white, draws.target.coordinate_names, standards)
    elbo, ends = draws.elbo, _distinct(paths, standards)
    least = elbo.value - standards.rival
    found = _local_rivals(density, ends[: effort.rivals], white, rng, least)
    if dim <= _MANY:
        found += [
            g for g in _broad_rival(case, white) if all(_another(g, other) for other in found)
        ]
    close = [g for g in found if g.elbo > least and not _is_covered(g, case, white, density, rng)]
    best = max((g.elbo for g in close), default=-np.inf)
    error = standards.optima_errors * np.nan_to_num(elbo.stderr)
    better = best > elbo.value + standards.optima_fail + error
    verdict = Verdict.PASS if not close else Verdict.FAIL if better else Verdict.CAUTION
    rivals = tuple(
        Rival(g.elbo, white.mean + white.move(g.mean), white.root @ g.root) for g in close
    )
    detail = OptimaDetail(
        rivals=rivals,
        missed=tuple(rival.elbo + standards.rival_slack for rival in rivals),
        starts=len(paths),
        ends=tuple(white.mean + white.move(end) for end in ends),
    )
    why = _sentence(verdict, len(paths), len(close), best - elbo.value)
    where = _where(close, white, draws.target.coordinate_names)
    return _finding(len(close), verdict, why, where, detail)


def _finding(
    count: int, verdict: Verdict, why: str, where: tuple[str, ...], detail: OptimaDetail
) -> Finding:
    return Finding(
        "optima",
        float(count),
        np.nan,
        0.0,
        verdict,
        why,
        "docs/certificate.md, optima",
        where,
        detail,
        About.ELSEWHERE,
    )


def _of_many_dimensions(
    paths: list[Path], white: Whitening, names: tuple[str, ...], standards: Standards
) -> Finding:
    """The finding without curvatures (d x d): an end far off and about as high is another optimum.

    In a Gaussian posterior a point at whitened distance r from q's own end is r^2 / 2 nats lower,
    so no end can be both.
    """
    home, rivals = paths[0], []
    for path in paths[1:]:
        far = 0.5 * float(np.sum((path.points[-1] - home.points[-1]) ** 2))
        if (
            far > standards.far + standards.per_dimension * len(white.mean)
            and path.values[-1] > home.values[-1] - standards.rival
        ):
            rivals.append(path)
    verdict = Verdict.CAUTION if rivals else Verdict.PASS
    gap = max((path.values[-1] for path in rivals), default=home.values[-1]) - home.values[-1]
    why = _sentence(verdict, len(paths), len(rivals), float(gap)).replace(
        "q's ELBO", "the log density of q's own"
    )
    best = max(rivals, key=lambda path: path.values[-1], default=home)
    apart = np.abs(best.points[-1] - home.points[-1])
    where = tuple(names[j] for j in np.argsort(-apart)[:3]) if rivals else ()
    ends = tuple(white.mean + white.move(path.points[-1]) for path in (home, *rivals))
    return _finding(len(rivals), verdict, why, where, OptimaDetail(starts=len(paths), ends=ends))


def _starts(
    rng: np.random.Generator, draws: FreshDraws, white: Whitening, starts: int
) -> Float[np.ndarray, "starts dim"]:
    """q's mean; half of the rest anywhere, half around q."""
    dim, half = draws.z.shape[1], starts // 2
    anywhere = (
        dispersed_points(rng, half, dim) * np.where(np.arange(half) % 2 == 1, _WIDER, 1.0)[:, None]
    )
    around = (
        rng.standard_normal((starts - half, dim)) * np.resize(_INFLATION, starts - half)[:, None]
    )
    return np.concatenate([np.zeros((1, dim)), white.to_u(anywhere), around])


def _distinct(paths: list[Path], standards: Standards) -> list[Float[np.ndarray, "dim"]]:
    """Distinct ends, those of searches that converged first, of these the highest first.

    The end of the search from q's mean (the first) comes before all, unless it is nearby.
    """
    if not paths:
        return []
    near, home = standards.same_end, paths[0].points[-1]
    ends: list[np.ndarray] = []
    for path in sorted(paths[1:], key=lambda p: (-p.converged, -p.values[-1])):
        end = path.points[-1]
        if all(np.linalg.norm(end - other) > near for other in [home, *ends]):
            ends.append(end)
    return [home, *ends] if np.linalg.norm(home) > near else ends


def _local_rivals(
    density: Evaluate,
    ends: list[Float[np.ndarray, "dim"]],
    white: Whitening,
    rng: np.random.Generator,
    least: float,
) -> list[LocalGaussian]:
    """The Gaussian at each end; refitted where its ELBO is below `least` nats but might not be.

    It might where Laplace's evidence is above. On a bent ridge the curvature at its end makes a
    Gaussian that leaves the ridge, and looks like nothing.
    """
    if not ends:
        return []
    dim = len(white.mean)
    design = moment_matched(rng, max(dim, _DESIGN), dim)
    best: dict[bytes, LocalGaussian] = {}
    for g in local_gaussians(density, np.stack(ends), design, _SCALES):
        g = dataclasses.replace(g, elbo=g.elbo + white.log_det)
        if g.mean.tobytes() not in best or best[g.mean.tobytes()].elbo < g.elbo:
            best[g.mean.tobytes()] = g
    return [_refitted(density, g, design, white, least) for g in best.values()]


def _refitted(
    density: Evaluate,
    g: LocalGaussian,
    design: Float[np.ndarray, "m dim"],
    white: Whitening,
    least: float,
) -> LocalGaussian:
    at_mode = float(density(g.mean[None])[0][0])
    laplace = (
        at_mode
        + 0.5 * len(g.mean) * np.log(2.0 * np.pi)
        + np.linalg.slogdet(g.root)[1]
        + white.log_det
    )
    if g.elbo >= least or not laplace > least:
        return g
    (knot,) = refit(density, _NONE_HELD, [Knot(np.empty(0), g.mean, g.root, -np.inf)], design)
    return dataclasses.replace(g, mean=knot.mean, root=knot.root, elbo=knot.elbo + white.log_det)


def _broad_rival(case: Case, white: Whitening) -> list[LocalGaussian]:
    """Where the ELBO itself leads from far out, in whitened coordinates.

    Searches up the density end where a scale collapses to zero, if it can; that end is no place for
    q, and hides the rest.
    """
    # The finding is registered for targets with a density
    found = broad_start(cast(Density, case.sample.target), case.key)
    if found is None:
        return []
    root = np.linalg.solve(white.root, found.root)
    return [dataclasses.replace(found, mean=white.to_u(found.mean[None])[0], root=root)]


def _another(new: LocalGaussian, old: LocalGaussian) -> bool:
    """Whether `new` is centred outside `old`."""
    distance = np.linalg.norm(np.linalg.solve(old.root, new.mean - old.mean))
    return bool(distance > _APART * np.sqrt(len(new.mean)))


def _is_covered(
    g: LocalGaussian,
    case: Case,
    white: Whitening,
    density: Evaluate,
    rng: np.random.Generator,
) -> bool:
    """Whether q has density where most of the rival's share of the posterior lies.

    Its mode alone does not tell: a q that is too narrow has next to no density at many points of a
    mode that it sits on.
    """
    standards, looks = case.standards, case.effort.looks
    slack = standards.per_dimension * len(g.mean)
    if not case.q.has_density:
        return _kl_to_standard(g) <= standards.far + slack
    noise = rng.standard_normal((looks, len(g.mean)))
    noise = np.concatenate([noise, -noise])
    u = g.mean + noise @ g.root.T
    log_p = density(u)[0]
    log_p = np.where(np.isfinite(log_p), log_p, -np.inf)
    log_w = log_p + 0.5 * np.sum(noise**2, axis=1)
    weights = np.exp(log_w - np.max(log_w)) if np.any(np.isfinite(log_w)) else np.zeros(len(log_w))
    z = white.mean + (u * white.root if white.root.ndim == 1 else u @ white.root.T)
    log_q, log_z = case.q.log_prob_on_host(z), logmeanexp(case.sample.log_w)
    outside = log_p - log_q - log_z > np.log(standards.uncovered) + slack
    return bool(weights @ outside <= standards.rival_outside * weights.sum())


def _kl_to_standard(g: LocalGaussian) -> float:
    """KL(N(mean, root root') || N(0, I)), nats: the rival against q in whitened coordinates."""
    return float(
        0.5 * (np.sum(g.root**2) + g.mean @ g.mean - len(g.mean)) - np.linalg.slogdet(g.root)[1]
    )


def _where(close: list[LocalGaussian], white: Whitening, names: tuple[str, ...]) -> tuple[str, ...]:
    """The coordinates in which the best rival lies farthest from q, in q's sds."""
    if not close:
        return ()
    best = max(close, key=lambda g: g.elbo)
    sd = white.root if white.root.ndim == 1 else np.sqrt(np.sum(white.root**2, axis=1))
    return tuple(names[j] for j in np.argsort(-np.abs(white.move(best.mean) / sd))[:3])


def _sentence(verdict: Verdict, starts: int, count: int, gap: float) -> str:
    if verdict is Verdict.PASS:
        return (
            f"{starts} dispersed searches found no other optimum that holds mass outside q "
            "(a mode that none reached stays unseen)."
        )
    if verdict is Verdict.FAIL:
        return (
            f"A dispersed search found an optimum that q misses and whose ELBO is {gap:.3g} nats"
            " higher: q sits on the wrong one. Fit again from it (certificate.rivals: ELBO, mean,"
            " root), or with more `starts`."
        )
    return (
        f"{starts} dispersed searches found {count} other optimum(s) outside q, the best {gap:+.1f}"
        " nats from q's ELBO: q misses a mode."
    )


__all__ = ["OptimaDetail", "cost_of_searches", "optima"]
