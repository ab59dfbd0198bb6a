"""Whether the posterior is one at all: does the log density fall off far out, so that it can be
integrated?

An improper posterior has no mean, no sd and no evidence, and whatever a search returns for it is an
accident. Weights at draws of q cannot see this: q widens (or runs away) along the direction, and
looks good on its own draws.
"""

from typing import Any

import numpy as np

from ...targets.batched import batched
from ..finding import Finding, Verdict

# sds of q at which a ray is looked at
_DISTANCES = np.array([3.0, 10.0, 30.0, 100.0, 1e3, 1e4, 1e5, 1e6])
_NEAR = 3  # of them, for directions that are only known to within the error of q's draws
# d log p / d log distance that can still be integrated in one dimension is below -1
_SLOWEST = -1.02
# nats: a density that has fallen by so much is as good as proper, whatever rounding does to it
# farther out
_FELL = 50.0
_MOST_AXES = 50
_BLOWN_UP = 1e4  # times the narrowest sd: principal directions worth a look
_DRAWS = 4000


def improper(fitted: Any, key: Any = 0) -> Finding | None:
    """A finding that fails and names the parameters along which the log density does not fall off.

    None where it does.

    Looks from the median of q's draws along the coordinates (the 50 widest) and q's widest
    principal directions, up to a million sds out, for a ray on which the log density falls more
    slowly than -log(distance). The rest is held fixed, so an improper direction that bends is not
    seen. Cost: 16 evaluations per direction.
    """
    z, _ = fitted.q.draw(_DRAWS, key)
    centre, directions, reach = _rays(z)
    rays = (centre + directions[:, None, :] * _DISTANCES[:, None]).reshape(-1, len(centre))
    values, _ = batched(fitted.target)(np.concatenate([centre[None], rays]))
    base, values = values[0], values[1:].reshape(len(directions), len(_DISTANCES))
    gains = np.array([_gain(base, ray[:known]) for ray, known in zip(values, reach, strict=True)])
    if not np.any(gains > -_FELL):
        return None
    # one parameter, where one explains it
    along_axis = np.where(np.array(reach) == len(_DISTANCES), gains, -np.inf)
    worst = directions[int(np.argmax(along_axis if np.any(along_axis > -_FELL) else gains))]
    return finding(fitted.target.coordinate_names, worst / np.maximum(z.std(axis=0), 1e-300))


def widest(fitted: Any, key: Any = 0) -> Finding:
    """The same finding, naming q's widest direction.

    For a search that ran away where no straight ray shows why.
    """
    z, _ = fitted.q.draw(_DRAWS, key)
    deviations = z - np.median(z, axis=0)
    return finding(fitted.target.coordinate_names, np.abs(deviations).max(axis=0))


def finding(names: tuple[str, ...], loadings: np.ndarray) -> Finding:
    """Fails.

    `where` are the coordinates that take part in the direction `loadings [d]`, most first.
    """
    size = np.abs(loadings)
    where = tuple(names[j] for j in np.argsort(-size)[:3] if size[j] > 0.3 * size.max())
    listed = " and ".join(f"`{name}`" for name in where)
    along = listed if len(where) == 1 else f"a combination of {listed}"
    why = (
        f"The log density does not fall off along {along}: the posterior is improper, so it has no"
        f" mean, no sd and no evidence. Give {listed} a proper prior, or fix"
        f" {'it' if len(where) == 1 else 'one of them'}."
    )
    return Finding(
        "proper", 1.0, np.nan, 0.0, Verdict.FAIL, why, "docs/certificate.md, proper", where
    )


def _rays(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Centre `[d]`, directions of one sd each `[rays, d]`, both ways, and how many distances each
    can be trusted for.
    """
    centre, sd = np.median(z, axis=0), z.std(axis=0)
    unit = np.maximum(np.maximum(sd, 1e-3 * np.abs(centre)), 1e-300)
    widest = np.argsort(-sd)[:_MOST_AXES]
    directions = [unit[j] * np.eye(len(unit))[j] for j in widest]
    reach = [len(_DISTANCES)] * len(directions)
    if 1 < len(unit) <= 300 and np.all(np.isfinite(z)):
        _, sizes, vectors = np.linalg.svd(
            (z - z.mean(axis=0)) / np.sqrt(len(z)), full_matrices=False
        )
        blown = [
            v * s for s, v in zip(sizes[:3], vectors[:3], strict=False) if s > _BLOWN_UP * sizes[-1]
        ]
        directions += blown
        reach += [_NEAR] * len(blown)
    return centre, np.concatenate([np.stack(directions), -np.stack(directions)]), reach * 2


def _gain(base: float, values: np.ndarray) -> float:
    """What the log density gains at the end of a ray that does not fall off, in nats.

    -inf for one that does.
    """
    known = int(np.cumprod(np.isfinite(values)).sum())  # beyond the first overflow nothing is known
    # at the edge of its support, declared or not
    ends = known < len(values) and values[known] == -np.inf
    if ends or known < 2 or not np.isfinite(base):
        return -np.inf
    slope = (values[known - 1] - values[known - 2]) / np.log(
        _DISTANCES[known - 1] / _DISTANCES[known - 2]
    )
    return float(values[known - 1] - base) if slope > _SLOWEST else -np.inf


__all__ = ["improper", "widest"]
