"""Whether the posterior is one at all: does the log density fall off, so that it has a mass?

An improper posterior has no mean, no sd and no evidence, and whatever a search returns for it is an
accident. Weights at draws of q cannot see this: q widens (or runs away) along the direction, and
looks good on its own draws.
"""

import numpy as np
from jaxtyping import Float

from ..finding import About, Case, Finding, Stage, Verdict, register
from ..standards import Effort

# Sds of q at which a ray is looked at, and how many of these distances count for a direction that
# is only known to within the error of q's draws.
_DISTANCES = np.array([3.0, 10.0, 30.0, 100.0, 1e3, 1e4, 1e5, 1e6])
_NEAR = 3
_MOST_AXES = 50  # coordinates that are looked along, the widest first
_MOST_DIRECTIONS = 3  # principal directions of q, the widest first
_PRINCIPAL_UP_TO = 300  # dimensions in which these can be had from some thousand draws
# Times the narrowest sd: principal directions worth a look
_BLOWN_UP = 1e4
_TAKES_PART = 0.3  # of the largest loading of a direction: coordinates that are named


def _cost(dim: int, effort: Effort) -> int:
    directions = min(dim, _MOST_AXES) + (_MOST_DIRECTIONS if dim <= _PRINCIPAL_UP_TO else 0)
    return 1 + 2 * len(_DISTANCES) * directions


@register("proper", place=0, stage=Stage.DOUBT, cost=_cost)
def proper(case: Case) -> Finding | None:
    """Fails, and names the parameters along which the log density does not fall off; else None.

    Looks from the median of q's draws along the coordinates (the 50 widest) and q's widest
    principal directions, up to a million sds out, for a ray on which the log density falls more
    slowly than -log(distance). The rest is held fixed, so an improper direction that bends is not
    seen: where the search ran away and no straight ray shows why, q's widest direction is named.
    Cost: 16 evaluations per direction.
    """
    z, names = case.sample.z, case.sample.target.coordinate_names
    loadings = _improper_direction(case, z)
    if loadings is not None:
        return _finding(names, loadings / np.maximum(z.std(axis=0), 1e-300))
    if not case.ran_away:
        return None
    return _finding(names, np.abs(z - np.median(z, axis=0)).max(axis=0))


def _improper_direction(
    case: Case, z: Float[np.ndarray, "n dim"]
) -> Float[np.ndarray, "dim"] | None:
    """The direction along which the log density gains most without falling off, if there is one."""
    centre, directions, reach = _rays(z)
    rays = (centre + directions[:, None, :] * _DISTANCES[:, None]).reshape(-1, len(centre))
    values, _ = case.sample.density(np.concatenate([centre[None], rays]))
    base, values = values[0], values[1:].reshape(len(directions), len(_DISTANCES))
    slope, fall = case.standards.proper_slope, case.standards.proper_fall
    gains = np.array(
        [_gain(base, ray[:known], slope) for ray, known in zip(values, reach, strict=True)]
    )
    if not np.any(gains > -fall):
        return None
    # One parameter, where one explains it
    along_axis = np.where(np.array(reach) == len(_DISTANCES), gains, -np.inf)
    return directions[int(np.argmax(along_axis if np.any(along_axis > -fall) else gains))]


def _finding(names: tuple[str, ...], loadings: Float[np.ndarray, "dim"]) -> Finding:
    """`where` are the coordinates that take part in the direction, most first."""
    size = np.abs(loadings)
    most = size.max()
    where = tuple(names[j] for j in np.argsort(-size)[:3] if size[j] > _TAKES_PART * most)
    listed = " and ".join(f"`{name}`" for name in where)
    along = listed if len(where) == 1 else f"a combination of {listed}"
    why = (
        f"The log density does not fall off along {along}: the posterior is improper, so it has no"
        f" mean, no sd and no evidence. Give {listed} a proper prior, or fix"
        f" {'it' if len(where) == 1 else 'one of them'}."
    )
    return Finding(
        "proper",
        1.0,
        np.nan,
        0.0,
        Verdict.FAIL,
        why,
        "docs/certificate.md, proper",
        where,
        about=About.DENSITY,
    )


def _rays(
    z: Float[np.ndarray, "n dim"],
) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "rays dim"], list[int]]:
    """Centre, directions of one sd each, both ways, and how many distances each is known for."""
    centre, sd = np.median(z, axis=0), z.std(axis=0)
    unit = np.maximum(np.maximum(sd, 1e-3 * np.abs(centre)), 1e-300)
    widest = np.argsort(-sd)[:_MOST_AXES]
    directions = [unit[j] * np.eye(len(unit))[j] for j in widest]
    reach = [len(_DISTANCES)] * len(directions)
    if 1 < len(unit) <= _PRINCIPAL_UP_TO and np.all(np.isfinite(z)):
        _, sizes, vectors = np.linalg.svd(
            (z - z.mean(axis=0)) / np.sqrt(len(z)), full_matrices=False
        )
        principal = zip(sizes[:_MOST_DIRECTIONS], vectors[:_MOST_DIRECTIONS], strict=False)
        blown = [v * s for s, v in principal if s > _BLOWN_UP * sizes[-1]]
        directions += blown
        reach += [_NEAR] * len(blown)
    return centre, np.concatenate([np.stack(directions), -np.stack(directions)]), reach * 2


def _gain(base: float, values: Float[np.ndarray, "known"], slowest: float) -> float:
    """What the log density gains at the end of a ray that does not fall off, in nats.

    -inf for one that does.
    """
    known = int(np.cumprod(np.isfinite(values)).sum())  # beyond the first overflow nothing is known
    # At the edge of its support, declared or not
    ends = known < len(values) and values[known] == -np.inf
    if ends or known < 2 or not np.isfinite(base):
        return -np.inf
    slope = (values[known - 1] - values[known - 2]) / np.log(
        _DISTANCES[known - 1] / _DISTANCES[known - 2]
    )
    return float(values[known - 1] - base) if slope > slowest else -np.inf


__all__ = ["proper"]
