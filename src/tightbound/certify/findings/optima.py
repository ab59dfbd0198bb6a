"""Other optima: dispersed short searches of the target, and what each end that q does not cover is
worth.

k-hat cannot see a mode six sds away, because no draw of q lands there. The check climbs the log
density itself from at least 16 starts, half of them anywhere plausible and half around q at several
times its scale. A mode that no start reaches is the stated limit of this finding.
"""

import dataclasses

import numpy as np

from ..._numerics import host_rng, logmeanexp
from ...estimators.fixed_design import moment_matched
from ...families.base import AbstractFamily
from ...search.conditional_refit import Knot, refit
from ...search.lbfgs import Evaluate, Path, ascend
from ...starts.from_far import broad_start
from ...starts.paths import LocalGaussian, dispersed_points, local_gaussians
from ...targets.batched import batched
from ..draws import FreshDraws
from ..finding import Finding, Verdict

_NEARBY = 1.0  # whitened distance within which two ends are one optimum
_RIVAL = 4.0  # nats of ELBO: a rival this close to q's ELBO holds at least exp(-4) of its mass
# nats of KL(rival || q), where q has no density of its own: two unit Gaussians four sds apart
_FAR = 8.0
_UNCOVERED = np.log(20.0)  # log p / (q Z) from which on q has next to no density
_LOOKS = 32  # mirrored pairs of draws at each rival that tell
# nats of KL that sampling error in the whitening and unfinished searches add per dimension
_PER_DIMENSION = 0.05
# nats by which a rival's ELBO must exceed q's to say that q sits on the wrong optimum
_BETTER = 2.0
_MAX_RIVALS = 4
_MOST_BROAD = 300  # dimensions up to which the ELBO is climbed from far out as well
_MOST_DIMENSIONS = 500  # up to which the curvature at an end is looked at
_MAX_NUMBERS = 4_000_000  # curvature pairs x starts x dim held by the searches
_NONE_HELD = np.empty(0, dtype=int)
_INFLATION = (2.0, 4.0, 8.0, 16.0)


@dataclasses.dataclass(frozen=True)
class Whitening:
    """z = mean + root u, so that draws of q have mean 0 and covariance I in u."""

    mean: np.ndarray
    root: np.ndarray

    @classmethod
    def of(cls, z: np.ndarray) -> "Whitening":
        """From draws; only the scales where there are too few draws for a covariance."""
        mean, dim = z.mean(axis=0), z.shape[1]
        sd = np.maximum(z.std(axis=0), 1e-300)
        if len(z) < 4 * dim or dim > _MOST_DIMENSIONS:
            return cls(mean, np.diag(sd) if dim <= 2000 else sd)
        u = (z - mean) / sd
        return cls(mean, sd[:, None] * np.linalg.cholesky(u.T @ u / len(u) + 1e-12 * np.eye(dim)))

    def evaluate(self, density: Evaluate) -> Evaluate:
        """The log density and its score as functions of u."""

        def of_u(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if self.root.ndim == 1:
                values, scores = density(self.mean + u * self.root)
                return values, scores * self.root
            values, scores = density(self.mean + u @ self.root.T)
            return values, scores @ self.root

        return of_u

    def to_u(self, z: np.ndarray) -> np.ndarray:
        if self.root.ndim == 1:
            return (z - self.mean) / self.root
        return np.linalg.solve(self.root, (z - self.mean).T).T

    @property
    def log_det(self) -> float:
        return float(
            np.log(self.root).sum() if self.root.ndim == 1 else np.linalg.slogdet(self.root)[1]
        )


def optima(
    draws: FreshDraws, key, *, q: AbstractFamily | None = None, starts: int = 32, evaluate=None
) -> Finding:
    """Search from `starts` dispersed points (and from q's mean) and judge every end that q does not
    cover.

    A rival is an end whose local Gaussian has an ELBO within 4 nats of q's, and most of whose mass
    lies where q has less than 1/20 of the posterior's density; without a `q` (draws of a chain),
    one more than 8 nats of KL from the draws.
    """
    rng = host_rng(key, "dispersed starts")
    white = (
        Whitening.of(draws.z[draws.finite]) if draws.finite.sum() > 10 else Whitening.of(draws.z)
    )
    density = white.evaluate(batched(draws.target) if evaluate is None else evaluate)
    memory = int(np.clip(_MAX_NUMBERS // ((starts + 1) * draws.z.shape[1]), 2, 8))
    points = _starts(rng, draws, white, starts)
    paths = ascend(density, points, max_iterations=60, gtol=1e-3, memory=memory, keep_points=False)
    elbo = draws.elbo
    if draws.z.shape[1] > _MOST_DIMENSIONS:
        return _of_many_dimensions(paths, white, draws.target.coordinate_names)
    ends = _distinct(paths)
    found = _local_rivals(density, ends[:_MAX_RIVALS], white, rng, elbo.value - _RIVAL)
    if evaluate is None and len(white.mean) <= _MOST_BROAD:
        found += [
            g for g in _broad_rival(draws, white, key) if all(_another(g, other) for other in found)
        ]
    close = [
        g
        for g in found
        if g.elbo > elbo.value - _RIVAL and not _is_covered(g, q, draws, white, density, rng)
    ]
    best = max((g.elbo for g in close), default=-np.inf)
    better = best > elbo.value + _BETTER + 3 * np.nan_to_num(elbo.stderr)
    verdict = Verdict.PASS if not close else Verdict.FAIL if better else Verdict.CAUTION
    why = _sentence(verdict, len(paths), len(close), best - elbo.value)
    where = _where(close, white, draws.target.coordinate_names)
    rivals = [(g.elbo, white.mean + _unwhiten(white, g.mean), white.root @ g.root) for g in close]
    detail = {
        "rivals": rivals,
        "starts": len(paths),
        "ends": [white.mean + _unwhiten(white, end) for end in ends],
    }
    return Finding(
        "optima",
        float(len(close)),
        np.nan,
        0.0,
        verdict,
        why,
        "docs/certificate.md, optima",
        where,
        detail,
    )


def _of_many_dimensions(paths: list[Path], white: Whitening, names: tuple[str, ...]) -> Finding:
    """Without curvatures (d x d): an end far from q's own that is as high, or nearly, is another
    optimum.

    In a Gaussian posterior a point at whitened distance r is r^2 / 2 nats lower, so no end can be
    both.
    """
    home, rivals = paths[0], []
    for path in paths[1:]:
        far = 0.5 * float(np.sum((path.points[-1] - home.points[-1]) ** 2))
        if (
            far > _FAR + _PER_DIMENSION * len(white.mean)
            and path.values[-1] > home.values[-1] - _RIVAL
        ):
            rivals.append(path)
    verdict = Verdict.CAUTION if rivals else Verdict.PASS
    gap = max((path.values[-1] for path in rivals), default=home.values[-1]) - home.values[-1]
    why = _sentence(verdict, len(paths), len(rivals), float(gap)).replace(
        "q's ELBO", "the log density of q's own"
    )
    best = max(rivals, key=lambda path: path.values[-1], default=home)
    where = (
        tuple(names[j] for j in np.argsort(-np.abs(best.points[-1] - home.points[-1]))[:3])
        if rivals
        else ()
    )
    ends = [white.mean + _unwhiten(white, path.points[-1]) for path in (home, *rivals)]
    detail = {"rivals": [], "starts": len(paths), "ends": ends}
    return Finding(
        "optima",
        float(len(rivals)),
        np.nan,
        0.0,
        verdict,
        why,
        "docs/certificate.md, optima",
        where,
        detail,
    )


def _starts(
    rng: np.random.Generator, draws: FreshDraws, white: Whitening, starts: int
) -> np.ndarray:
    """q's mean.

    Half of the rest anywhere (uniform(-2, 2), every second one five times as wide), half around q.
    """
    dim, half = draws.z.shape[1], starts // 2
    anywhere = (
        dispersed_points(rng, half, dim) * np.where(np.arange(half) % 2 == 1, 5.0, 1.0)[:, None]
    )
    around = (
        rng.standard_normal((starts - half, dim)) * np.resize(_INFLATION, starts - half)[:, None]
    )
    return np.concatenate([np.zeros((1, dim)), white.to_u(anywhere), around])


def _distinct(paths: list[Path]) -> list[np.ndarray]:
    """Distinct ends, highest log density first, but for the end that the search from q's mean (the
    first) reaches nearby.
    """
    if not paths:
        return []
    home = paths[0].points[-1]
    ends: list[np.ndarray] = []
    for path in sorted(paths[1:], key=lambda p: (-p.converged, -p.values[-1])):
        end = path.points[-1]
        if all(np.linalg.norm(end - other) > _NEARBY for other in [home, *ends]):
            ends.append(end)
    return [home, *ends] if np.linalg.norm(home) > _NEARBY else ends


def _local_rivals(
    density: Evaluate,
    ends: list[np.ndarray],
    white: Whitening,
    rng: np.random.Generator,
    least: float,
) -> list[LocalGaussian]:
    """The Gaussian at each end, refitted by natural gradients where it is not worth `least` nats
    but Laplace's evidence is.

    On a bent ridge the curvature at its end makes a Gaussian that leaves the ridge, and looks like
    nothing.
    """
    if not ends:
        return []
    dim = len(white.mean)
    design = moment_matched(rng, max(dim, 32), dim)
    found = local_gaussians(density, np.stack(ends), design, (1.0, 0.5))
    best: dict[bytes, LocalGaussian] = {}
    for g in found:
        g = dataclasses.replace(g, elbo=g.elbo + white.log_det)
        if g.mean.tobytes() not in best or best[g.mean.tobytes()].elbo < g.elbo:
            best[g.mean.tobytes()] = g
    return [_refitted(density, g, design, white, least) for g in best.values()]


def _refitted(
    density: Evaluate, g: LocalGaussian, design: np.ndarray, white: Whitening, least: float
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


def _broad_rival(draws: FreshDraws, white: Whitening, key) -> list[LocalGaussian]:
    """Where the ELBO itself leads from far out, in whitened coordinates.

    Searches up the density end where a scale collapses to zero, if it can; that end is no place for
    q, and hides the rest.
    """
    found = broad_start(draws.target, key)
    if found is None:
        return []
    root = np.linalg.solve(white.root, found.root)
    return [dataclasses.replace(found, mean=white.to_u(found.mean[None])[0], root=root)]


def _another(new: LocalGaussian, old: LocalGaussian) -> bool:
    """Whether `new` is centred outside `old`.

    Farther than two of its sds in the rms over directions.
    """
    return bool(
        np.linalg.norm(np.linalg.solve(old.root, new.mean - old.mean))
        > 2.0 * np.sqrt(len(new.mean))
    )


def _is_covered(
    g: LocalGaussian,
    q: AbstractFamily | None,
    draws: FreshDraws,
    white: Whitening,
    density: Evaluate,
    rng: np.random.Generator,
) -> bool:
    """Whether q has density where most of the rival's share of the posterior lies.

    A q that is too narrow misses no mode.
    """
    slack = _PER_DIMENSION * len(g.mean)
    if q is None or not q.has_density:
        return _kl_to_standard(g) <= _FAR + slack
    noise = rng.standard_normal((_LOOKS, len(g.mean)))
    noise = np.concatenate([noise, -noise])
    u = g.mean + noise @ g.root.T
    log_p = density(u)[0]
    log_p = np.where(np.isfinite(log_p), log_p, -np.inf)
    log_w = log_p + 0.5 * np.sum(noise**2, axis=1)
    weights = np.exp(log_w - np.max(log_w)) if np.any(np.isfinite(log_w)) else np.zeros(len(log_w))
    z = white.mean + (u * white.root if white.root.ndim == 1 else u @ white.root.T)
    outside = log_p - q.log_prob_on_host(z) - logmeanexp(draws.log_w) > _UNCOVERED + slack
    return bool(weights @ outside <= 0.5 * weights.sum())


def _kl_to_standard(g: LocalGaussian) -> float:
    """KL(N(mean, root root') || N(0, I)), nats: the rival against q, both in whitened coordinates."""
    return float(
        0.5 * (np.sum(g.root**2) + g.mean @ g.mean - len(g.mean)) - np.linalg.slogdet(g.root)[1]
    )


def _unwhiten(white: Whitening, u: np.ndarray) -> np.ndarray:
    return white.root * u if white.root.ndim == 1 else white.root @ u


def _where(close: list[LocalGaussian], white: Whitening, names: tuple[str, ...]) -> tuple[str, ...]:
    """The coordinates in which the best rival lies farthest from q, in q's sds."""
    if not close:
        return ()
    best = max(close, key=lambda g: g.elbo)
    sd = white.root if white.root.ndim == 1 else np.sqrt(np.sum(white.root**2, axis=1))
    return tuple(names[j] for j in np.argsort(-np.abs(_unwhiten(white, best.mean) / sd))[:3])


def _sentence(verdict: Verdict, starts: int, count: int, gap: float) -> str:
    if verdict is Verdict.PASS:
        return (
            f"{starts} dispersed searches found no other optimum that holds mass outside q "
            "(a mode that none reached stays unseen)."
        )
    if verdict is Verdict.FAIL:
        return (
            f"A dispersed search found an optimum that q misses and whose ELBO is {gap:.3g} nats"
            " higher: q sits on the wrong one. Fit again from it (see this finding's"
            ' `detail["rivals"]`: ELBO, mean, root), or with more `starts`.'
        )
    return (
        f"{starts} dispersed searches found {count} other optimum(s) outside q, the best {gap:+.1f}"
        " nats from q's ELBO: q misses a mode."
    )
