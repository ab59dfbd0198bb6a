"""What `tb.fit_batch` returns.

Many fits of one model, each with its own status, weights and corrected summaries.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from .._numerics import host_rng, key_words, scoped
from .._types import Array, Key, PyTree, Validated
from ..account import Spent, Stage
from ..certify.corrections import resample
from ..certify.draws import moment_table
from ..certify.finding import Verdict
from ..certify.findings.weights import judge_weights
from ..families.gaussian import Gaussian
from ..fit import Fit
from ..loop import Trace
from ..results import Result
from ..summary import QUANTILES, columns_of, usable_weights
from ..targets.base import Density
from ..targets.layout import flatten_values
from .programs import programs_of, take

if TYPE_CHECKING:
    import xarray

_NUMBERS = 8_000_000  # draws x values held at once while summaries are made


@dataclasses.dataclass(frozen=True)
class BatchFit:
    """B Gaussian approximations q_i = N(mean_i, root_i root_i'), one for each data set.

    Index it for one `tb.Fit`.

    Attributes:
        mean: `[B, d]` on the unconstrained scale; NaN where there is no usable approximation, and
            so is `root`.
        root: `[B, d, d]`, a square root of each covariance.
        results: how each fit ended; `results[i].ok`, and `str(results[i])` is a sentence.
        steps: accepted steps of each, `[B]`.
        evaluations: gradients of the log density that each fit used, the draws of `weights` not
            counted, `[B]`.
        elbo: on the draws, nats, `[B]`; `elbo_stderr` its standard error.
        weights: smoothed importance weights of the draws mean_i + root_i noise, `[B, S]`, each row
            sums to 1.
        khat: Pareto shape of the weights, `[B]`; `ess`: effective sample size, of S, `[B]`.
        noise: the standard normal draws that all fits share, `[S, d]`.
        coordinate_names: of the d coordinates.
        make_target: the model; `data`: the data sets.
        seconds: wall-clock time.
    """

    mean: Float[np.ndarray, "fits dim"]
    root: Float[np.ndarray, "fits dim dim"]
    results: tuple[Result, ...]
    steps: Int[np.ndarray, "fits"]
    evaluations: Float[np.ndarray, "fits"]
    elbo: Float[np.ndarray, "fits"]
    elbo_stderr: Float[np.ndarray, "fits"]
    weights: Float[np.ndarray, "fits draws"]
    khat: Float[np.ndarray, "fits"]
    ess: Float[np.ndarray, "fits"]
    noise: Float[np.ndarray, "draws dim"]
    coordinate_names: tuple[str, ...]
    make_target: Callable[[PyTree], Density]
    data: PyTree
    key: tuple[int, ...]
    seconds: float

    def __len__(self) -> int:
        return len(self.mean)

    def __iter__(self) -> Iterator[Fit]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Validated[int | np.integer, "here"]) -> Fit:
        """One of the fits, with its target.

        `tb.check(batch[i])` gives it a whole certificate, with searches for modes.
        """
        if not isinstance(index, (int, np.integer)):
            raise TypeError(
                f"A batch is indexed by one integer, got {index!r}; its arrays, such as"
                " `batch.mean`, take slices."
            )
        if not -len(self) <= index < len(self):
            raise IndexError(f"The batch has {len(self)} fits, there is no number {index}.")
        result = self.results[index]
        if not result.usable:
            raise ValueError(f"Fit {index} has no approximation: {result}")
        target = self.make_target(take(self.data, int(index)))
        q = Gaussian.from_root(self.mean[index], self.root[index])
        used = int(self.evaluations[index])
        trace = Trace(np.array([-self.elbo[index]]), np.array([np.nan]), np.array([float(used)]))
        return Fit(
            q,
            target,
            result,
            int(self.steps[index]),
            trace,
            Spent({"one of a batch": Stage(used, self.seconds / len(self))}),
            self.key,
            "one of a batch",
        )

    @property
    def usable(self) -> Bool[np.ndarray, "fits"]:
        """Which fits have an approximation, `[B]`."""
        return np.array([result.usable for result in self.results])

    @property
    def sd(self) -> Float[np.ndarray, "fits dim"]:
        """Marginal sds on the unconstrained scale, `[B, d]`."""
        return np.sqrt(np.sum(self.root**2, axis=2))

    @property
    def attention(self) -> Int[np.ndarray, "some"]:
        """Indices of the fits that ended badly, or whose weights do not pass: look at those.

        `tb.fit(batch[i].target)` climbs to richer families. The others are good as far as their own
        draws show; a mode that no start reached is not among what they show.
        """
        count = self.weights.shape[1]
        pairs = zip(self.khat, self.ess, strict=True)
        passes = np.array([judge_weights(k, ess, count) is Verdict.PASS for k, ess in pairs])
        ended = np.array(
            [result in (Result.converged, Result.noisy, Result.stalled) for result in self.results]
        )
        return np.flatnonzero(~(passes & ended))

    def sample(
        self, key: Key, n: Validated[int, "here"] = 1000, *, corrected: bool = False
    ) -> PyTree:
        """`n` draws of every data set's named values: leaves `[B, n, ...]`.

        NaN where a fit is not usable. `corrected=True` resamples the shared draws by each fit's
        weights where these are good enough.
        """
        key_words(key)
        if not isinstance(n, (int, np.integer)) or n < 1:
            raise ValueError(f"sample: `n` must be a positive integer, got {n!r}.")
        if not corrected:
            u = host_rng(key, "batch sample").standard_normal((int(n), self.mean.shape[1]))
            return self._values(np.arange(len(self)), u)
        rng = host_rng(key, "batch resample")
        index = np.stack([self._drawn(rng, i, int(n)) for i in range(len(self))])
        return self._values(np.arange(len(self)), self.noise[index])

    def summary(self) -> "xarray.Dataset":
        """An xarray.Dataset: mean, sd and quantiles of every value, `[fit, parameter]`.

        Corrected by the importance weights where that exceeds its own Monte Carlo error
        (`corrected`), as `Fit.summary`.
        """
        import xarray as xr

        parts, names = [], ()
        per_fit = self.noise.shape[0] * max(self.mean.shape[1], self._values_per_draw())
        for index in np.array_split(np.arange(len(self)), max(1, len(self) * per_fit // _NUMBERS)):
            values = self._values(index, self.noise)
            for place, i in enumerate(index.tolist()):
                names, x = flatten_values(take(values, place))
                parts.append(self._summary_of(i, names, x))
        columns = [*(f"{level:.0%}" for level in QUANTILES), "mean", "sd", "corrected"]
        data = {
            name: (("fit", "parameter"), np.stack([part[name] for part in parts]))
            for name in columns
        }
        coords = {"fit": np.arange(len(self)), "parameter": list(names)}
        return xr.Dataset(
            {name: data[name] for name in ("mean", "sd", *columns[:-3], "corrected")}, coords=coords
        )

    def _summary_of(
        self, i: int, names: tuple[str, ...], x: Float[np.ndarray, "draws p"]
    ) -> dict[str, np.ndarray]:
        table = moment_table(names, x, self.weights[i])
        use = table.believed() & usable_weights(self.khat[i], self.ess[i], len(self.noise))
        return {**columns_of(x, self.weights[i], table, use), "corrected": use}

    def _drawn(self, rng: np.random.Generator, i: int, n: int) -> Int[np.ndarray, "n"]:
        if usable_weights(self.khat[i], self.ess[i], len(self.noise)):
            return resample(rng, self.weights[i], n)
        return rng.integers(0, self.weights.shape[1], n)

    @scoped
    def _values(
        self, index: Int[np.ndarray, "some"], noise: Float[Array, "*some draws dim"]
    ) -> PyTree:
        """Named values at mean + root u for u in `noise`, `[S, d]` or `[len(index), S, d]`."""
        moves = np.einsum(
            "bij,...sj->bsi" if noise.ndim == 2 else "bij,bsj->bsi", self.root[index], noise
        )
        points = self.mean[index][:, None, :] + moves
        return programs_of(self.make_target, self.data).values(take(self.data, index), points)

    def _values_per_draw(self) -> int:
        return flatten_values(self._values(np.arange(1), self.noise[:1]))[1].shape[1]

    def __repr__(self) -> str:
        ends = ", ".join(f"{self.results.count(r)} {r.name}" for r in Result if r in self.results)
        return (
            f"{len(self)} Gaussian fits of {self.mean.shape[1]} coordinates in {self.seconds:.2f}"
            f" s: {ends}; {len(self.attention)} need attention (batch.attention)."
        )


__all__ = ["BatchFit"]
