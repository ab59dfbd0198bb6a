"""Limited-memory BFGS on many starts in lockstep, on the host.

SciPy's runs one start at a time and calls the density once per point; a batch of starts costs
little more than one (the compiled density is vectorised), and the whole path of each is wanted. So
the two-loop recursion is written here for arrays `[lanes, dim]`. Line search: the bisection for the
weak Wolfe conditions of Lewis & Overton (2013, Algorithm 2.6), which needs no smoothness and takes
a non-finite value as "too far".
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

# Of the gain that the slope promises, and of the slope, as in Nocedal & Wright 2006, section 3.1
_ARMIJO, _WOLFE = 1e-4, 0.9
_MAX_BISECTIONS = 30  # by then the bracket is 1e-9 of the step
_ROUNDING = 1e-13  # of the loss: differences below it are noise
_LEAST_CURVATURE = 1e-12  # cosine of a move and the change of gradient: less is no curvature

Evaluate: TypeAlias = Callable[
    [Float[np.ndarray, "n dim"]], tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n dim"]]
]
"""Log densities and their gradients at a batch of points."""

_Lanes: TypeAlias = Int[np.ndarray, "some"]  # indices of lanes


@dataclasses.dataclass
class Path:
    """The accepted iterates of one start, and how it ended.

    Attributes:
        points: the iterates; only the last where they were not kept.
        values: their log densities.
        gradient: of the log density at the last.
        converged: whether the search ended at an optimum.
        inverse_hessian_diagonal: a positive guess of the variances there.
    """

    points: Float[np.ndarray, "iterates dim"]
    values: Float[np.ndarray, "iterates"]
    gradient: Float[np.ndarray, "dim"]
    converged: bool
    inverse_hessian_diagonal: Float[np.ndarray, "dim"]


def ascend(
    evaluate: Evaluate,
    starts: Float[np.ndarray, "lanes dim"],
    *,
    max_iterations: int = 300,
    memory: int = 20,
    gtol: float = 1e-5,
    keep_points: bool = True,
) -> list[Path]:
    """Climb the log density from each start: one Path per start that is finite.

    A lane ends when its gain predicted by the quasi-Newton model falls below `gtol` nats
    squared-root-wise (g' H g <= gtol^2), when its line search finds no better point, or after
    `max_iterations`. Not for stochastic densities: the curvature pairs assume that the same point
    gives the same value.
    """
    search = LockstepSearch(evaluate, np.array(starts, dtype=np.float64), memory, gtol, keep_points)
    for _ in range(max_iterations * 3):  # a step takes one or two evaluations; three are patience
        if not search.advance(max_iterations):
            break
    return search.paths()


class LockstepSearch:
    """The state of all lanes; each call of `advance` spends one evaluation on each active lane.

    Arguments:
        evaluate: the log density.
        x: the starts; those that are not finite are left out.
        memory: curvature pairs.
        gtol: square root of the nats at which a lane has converged.
        keep_points: whether all iterates are kept, or only the last.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        x: Float[np.ndarray, "lanes dim"],
        memory: int,
        gtol: float,
        keep_points: bool = False,
    ):
        self.evaluate, self.memory = evaluate, memory
        self.gtol, self.keep_points = gtol, keep_points
        f, g = _loss(evaluate, x)
        keep = np.isfinite(f)
        self.x, self.f, self.g = x[keep], f[keep], g[keep]
        lanes, dim = self.x.shape
        self.s, self.y = np.zeros((memory, lanes, dim)), np.zeros((memory, lanes, dim))
        # 0 marks an empty slot: it contributes nothing to the recursion
        self.rho = np.zeros((memory, lanes))
        self.gamma = 1.0 / np.maximum(np.linalg.norm(self.g, axis=1), 1.0)
        self.active = np.ones(lanes, dtype=bool)
        self.converged = np.zeros(lanes, dtype=bool)
        self.iterations = np.zeros(lanes, dtype=int)
        self.next = np.zeros(lanes, dtype=int)  # slot of each lane's next curvature pair
        self.history = [
            [(self.x[i].copy(), self.f[i])] if keep_points else [] for i in range(lanes)
        ]
        self.low, self.high = np.zeros(lanes), np.full(lanes, np.inf)
        self.tries = np.zeros(lanes, dtype=int)
        self.t, self.p, self.slope = np.ones(lanes), np.zeros_like(self.x), np.zeros(lanes)
        self._aim(np.arange(lanes))

    def advance(self, max_iterations: int) -> bool:
        """Try the current step of each active lane; False when no lane is active."""
        lanes = np.flatnonzero(self.active)
        if len(lanes) == 0:
            return False
        trial = self.x[lanes] + self.t[lanes, None] * self.p[lanes]
        f, g = _loss(self.evaluate, trial)
        armijo = f <= self.f[lanes] + _ARMIJO * self.t[lanes] * self.slope[lanes]
        # Rounding hides the decrease near the optimum: there, a smaller slope at an equal value is
        # progress.
        flat = np.abs(f - self.f[lanes]) <= _ROUNDING * np.abs(self.f[lanes])
        slope = np.einsum("ij,ij->i", g, self.p[lanes])
        armijo |= flat & (np.abs(slope) < np.abs(self.slope[lanes]))
        wolfe = slope >= _WOLFE * self.slope[lanes]
        self._accept(
            lanes[armijo & wolfe],
            trial[armijo & wolfe],
            f[armijo & wolfe],
            g[armijo & wolfe],
            max_iterations,
        )
        self._longer(
            lanes[armijo & ~wolfe],
            trial[armijo & ~wolfe],
            f[armijo & ~wolfe],
            g[armijo & ~wolfe],
            max_iterations,
        )
        self._shorter(lanes[~armijo])
        return True

    def _accept(
        self,
        lanes: _Lanes,
        x: Float[np.ndarray, "some dim"],
        f: Float[np.ndarray, "some"],
        g: Float[np.ndarray, "some dim"],
        max_iterations: int,
    ) -> None:
        """Move these lanes, take up their curvature pairs, and aim anew."""
        if len(lanes) == 0:
            return
        s, y = x - self.x[lanes], g - self.g[lanes]
        sy, yy = np.einsum("ij,ij->i", s, y), np.einsum("ij,ij->i", y, y)
        good = sy > _LEAST_CURVATURE * np.sqrt(yy * np.einsum("ij,ij->i", s, s))
        pick = lanes[good]
        slot = self.next[pick]
        self.s[slot, pick], self.y[slot, pick] = s[good], y[good]
        self.rho[slot, pick] = 1.0 / sy[good]
        self.next[pick] = (slot + 1) % self.memory
        self.gamma[pick] = sy[good] / yy[good]
        self.x[lanes], self.f[lanes], self.g[lanes] = x, f, g
        self.iterations[lanes] += 1
        self.active[lanes] &= self.iterations[lanes] < max_iterations
        for lane in lanes if self.keep_points else ():
            self.history[lane].append((self.x[lane].copy(), self.f[lane]))
        self._aim(lanes)

    def _longer(
        self,
        lanes: _Lanes,
        x: Float[np.ndarray, "some dim"],
        f: Float[np.ndarray, "some"],
        g: Float[np.ndarray, "some dim"],
        max_iterations: int,
    ) -> None:
        """Longer steps for these lanes: doubled until there is a bracket, then bisected."""
        self.low[lanes] = self.t[lanes]
        self.t[lanes] = np.where(
            np.isinf(self.high[lanes]), 2 * self.t[lanes], (self.low[lanes] + self.high[lanes]) / 2
        )
        self.tries[lanes] += 1
        # A step that only fails the curvature test is still an ascent
        late = self.tries[lanes] >= _MAX_BISECTIONS
        self._accept(lanes[late], x[late], f[late], g[late], max_iterations)

    def _shorter(self, lanes: _Lanes) -> None:
        """Shorter steps for these lanes; one that finds no better point ends where it is."""
        self.high[lanes] = self.t[lanes]
        self.t[lanes] = (self.low[lanes] + self.high[lanes]) / 2
        self.tries[lanes] += 1
        self.active[lanes[self.tries[lanes] >= _MAX_BISECTIONS]] = False

    def _aim(self, lanes: _Lanes) -> None:
        """New directions p = -H g, unit step, fresh brackets.

        Lanes whose predicted gain is nil are converged; where H is broken by rounding, the
        direction is that of steepest descent.
        """
        p = -self._apply_inverse(self.g[lanes], lanes)
        slope = np.einsum("ij,ij->i", self.g[lanes], p)
        finite = np.all(np.isfinite(p), axis=1) & (slope < 0)
        p[~finite] = -self.gamma[lanes[~finite], None] * self.g[lanes[~finite]]
        slope = np.einsum("ij,ij->i", self.g[lanes], p)
        self.p[lanes], self.slope[lanes] = p, slope
        self.low[lanes], self.high[lanes], self.tries[lanes], self.t[lanes] = 0.0, np.inf, 0, 1.0
        done = -slope <= self.gtol**2
        self.converged[lanes[done]], self.active[lanes[done]] = True, False

    def _apply_inverse(
        self, v: Float[np.ndarray, "some dim"], lanes: _Lanes
    ) -> Float[np.ndarray, "some dim"]:
        """The two-loop recursion (Nocedal & Wright 2006, Algorithm 7.4) for each lane: H v."""
        q, alpha = v.copy(), np.zeros((self.memory, len(lanes)))
        pairs = self._newest_first(lanes)
        for j, slot in enumerate(pairs):
            alpha[j] = self.rho[slot, lanes] * np.einsum("ij,ij->i", self.s[slot, lanes], q)
            q -= alpha[j][:, None] * self.y[slot, lanes]
        q *= self.gamma[lanes, None]
        for j, slot in reversed(list(enumerate(pairs))):
            beta = self.rho[slot, lanes] * np.einsum("ij,ij->i", self.y[slot, lanes], q)
            q += (alpha[j] - beta)[:, None] * self.s[slot, lanes]
        return q

    def _newest_first(self, lanes: _Lanes) -> list[_Lanes]:
        """Slots of the curvature pairs of each lane, newest first.

        Stops where no lane has one left.
        """
        slots = [(self.next[lanes] - 1 - j) % self.memory for j in range(self.memory)]
        return [slot for slot in slots if np.any(self.rho[slot, lanes])]

    def _inverse_diagonal(self, lane: int) -> Float[np.ndarray, "dim"]:
        """A positive guess of diag(H): the diagonal updated by each pair, as in Pathfinder."""
        diagonal = np.full(self.x.shape[1], self.gamma[lane])
        for (j,) in reversed(self._newest_first(np.array([lane]))):
            diagonal = updated_diagonal(diagonal, self.s[j, lane], self.y[j, lane])
        return np.where(np.isfinite(diagonal) & (diagonal > 0), diagonal, self.gamma[lane])

    def paths(self) -> list[Path]:
        """What the lanes have come to."""
        histories = (
            self.history
            if self.keep_points
            else [[(x, f)] for x, f in zip(self.x, self.f, strict=True)]
        )
        return [
            Path(
                np.array([x for x, _ in history]),
                -np.array([f for _, f in history]),
                -self.g[lane],
                bool(self.converged[lane]),
                self._inverse_diagonal(lane),
            )
            for lane, history in enumerate(histories)
        ]


def updated_diagonal(
    diagonal: Float[np.ndarray, "dim"], s: Float[np.ndarray, "dim"], y: Float[np.ndarray, "dim"]
) -> Float[np.ndarray, "dim"]:
    """The diagonal of an inverse Hessian after a move s that changed the gradient by y.

    Keeps y' diag y and s' diag^-1 s in step with the pair. Rounding may make entries that are not
    positive.

    Source: Gilbert & Lemarechal 1989, eq. 4.9.
    """
    a, b, c = y @ (diagonal * y), y @ s, s @ (s / diagonal)
    return 1.0 / (a / (b * diagonal) + y**2 / b - (a * s**2) / (b * c * diagonal**2))


def _loss(
    evaluate: Evaluate, x: Float[np.ndarray, "n dim"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n dim"]]:
    """-log density and its gradient; where either is not finite, the loss is infinite."""
    value, score = evaluate(x)
    bad = ~(np.isfinite(value) & np.all(np.isfinite(score), axis=1))
    return np.where(bad, np.inf, -value), np.where(bad[:, None], 0.0, -score)


__all__ = ["Evaluate", "LockstepSearch", "Path", "ascend", "updated_diagonal"]
