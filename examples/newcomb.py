"""Newcomb's 66 passage times of light (1882): a location with two gross outliers, by the clutter
model and by a t model.

    python examples/newcomb.py PATH/MASS_newcomb.csv [--out FOLDER]

The file is `newcomb` of the R package MASS in the form of the Rdatasets collection: a column `dat`
with deviations from 24,800 nanoseconds; the accepted value in these units is 33.02. It is not part
of this repository.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import tightbound as tb


def read(path: Path) -> np.ndarray:
    """The column `dat`."""
    return np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")[
        "dat"
    ].astype(float)


def clutter(x: np.ndarray) -> tuple[tb.Fit, np.ndarray]:
    """The location, with w and vg learnt and a background uniform over the range.

    And inlier probabilities.
    """
    start = tb.targets.Clutter(
        x,
        w=0.1,
        vg=np.var(x) / 4,
        log_clutter=-np.log(np.ptp(x)),
        prior_mean=np.median(x),
        prior_var=100**2,
    )
    learner = tb.solvers.LearnClutter(learn=("w", "vg"), w=(1.5, 5.0), vg=(1.0, 20.0))
    learnt = tb.fit(start, tb.families.Gaussian.full(1), solver=learner)
    fit = tb.fit(learnt.target)
    return fit, learnt.target.inlier_probabilities(fit.q)


def student_t(x: np.ndarray, draws: int = 2000) -> np.ndarray:
    """Draws of the location of a t model with unknown scale and degrees of freedom, by NumPyro's
    NUTS.
    """
    import jax
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    def model(x):
        location = numpyro.sample("location", dist.Normal(np.median(x), 100.0))
        scale = numpyro.sample("scale", dist.HalfNormal(20.0))
        df = numpyro.sample("df", dist.Gamma(2.0, 0.1))
        numpyro.sample("x", dist.StudentT(df, location, scale), obs=x)

    sampler = MCMC(NUTS(model), num_warmup=1000, num_samples=draws, progress_bar=False)
    sampler.run(jax.random.key(0), x)
    return np.asarray(sampler.get_samples()["location"])


def picture(x: np.ndarray, fit: tb.Fit, inlier: np.ndarray, nuts: np.ndarray) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.scatter(
        x,
        np.random.default_rng(0).uniform(0, 1, len(x)),
        c=inlier,
        cmap="coolwarm_r",
        vmin=0,
        vmax=1,
        s=16,
    )
    figure.colorbar(left.collections[0], ax=left, label="P(inlier)")
    left.set(xlabel="passage time - 24,800 ns", yticks=[])
    right.hist(nuts, 30, density=True, color="0.75", label="t model, NUTS")
    draws = fit.q.draw(8000, 0)[0][:, 0]
    right.hist(draws, 60, density=True, histtype="step", color="#0072B2", label="clutter model")
    mean, error = np.mean(x), np.std(x, ddof=1) / np.sqrt(len(x))
    right.axvspan(mean - error, mean + error, color="#D55E00", alpha=0.2, label="plain mean ± s.e.")
    right.set(xlabel="location, ns - 24,800", yticks=[])
    right.legend(fontsize=8, loc="upper left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("."))
    arguments = parser.parse_args()
    x = read(arguments.data)
    fit, inlier = clutter(x)
    nuts = student_t(x)
    print(
        f"learnt: background {fit.target.w[0]:.3f}, noise sd {fit.target.vg**0.5:.2f}; verdict:"
        f" {fit.certificate.verdict}"
    )
    print(
        f"clutter model  {fit.summary().loc['theta', 'mean']:.2f} ±"
        f" {fit.summary().loc['theta', 'sd']:.2f}"
    )
    print(f"t model, NUTS  {nuts.mean():.2f} ± {nuts.std():.2f}")
    print(f"plain mean     {x.mean():.2f} ± {x.std(ddof=1) / np.sqrt(len(x)):.2f}")
    print(
        "outliers:",
        *(
            f"{value:g} (P(inlier) = {p:.1e})"
            for value, p in zip(x, inlier, strict=True)
            if p < 0.5
        ),
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    picture(x, fit, inlier, nuts).savefig(arguments.out / "newcomb.png", dpi=130)


if __name__ == "__main__":
    main()
