"""The star cluster CYG OB1: a regression of light on temperature with four giants far off the line,
against a t model.

    python examples/star_cluster.py PATH/robustbase_starsCYG.csv [--out FOLDER]

The file is `starsCYG` of the R package robustbase in the form of the Rdatasets collection: columns
`log.Te` and `log.light` of 47 stars. It is not part of this repository.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import tightbound as tb


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """log temperature and log light."""
    table = np.genfromtxt(path, delimiter=",", skip_header=1)
    return table[:, -2], table[:, -1]


def regression(temperature: np.ndarray, light: np.ndarray) -> tuple[tb.Fit, np.ndarray]:
    """Line with 20 % of stars that may lie anywhere; both coordinates centred at their medians.

    Noise sd .4.
    """
    centred = temperature - np.median(temperature)
    target = tb.targets.LinearClutter(
        np.column_stack([np.ones_like(centred), centred]),
        light,
        w=0.2,
        vg=0.4**2,
        vc=2.0,
        prior_mean=[5.0, 0.0],
        prior_var=np.diag([4.0, 25.0]),
    )
    fit = tb.fit(target)
    return fit, target.inlier_probabilities(fit.q)


def student_t(temperature: np.ndarray, light: np.ndarray, draws: int = 2000) -> np.ndarray:
    """Draws `[n, 2]` of the line of a t regression with unknown scale and degrees of freedom, by
    NumPyro's NUTS.
    """
    import jax
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    centred = temperature - np.median(temperature)

    def model(x, y):
        line = numpyro.sample(
            "line", dist.Normal(np.array([5.0, 0.0]), np.array([2.0, 5.0])).to_event(1)
        )
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        df = numpyro.sample("df", dist.Gamma(2.0, 0.1))
        numpyro.sample("y", dist.StudentT(df, line[0] + line[1] * x, scale), obs=y)

    sampler = MCMC(NUTS(model), num_warmup=1000, num_samples=draws, progress_bar=False)
    sampler.run(jax.random.key(0), centred, light)
    return np.asarray(sampler.get_samples()["line"])


def picture(
    temperature: np.ndarray, light: np.ndarray, fit: tb.Fit, inlier: np.ndarray, nuts: np.ndarray
) -> Figure:
    figure = Figure(figsize=(6.5, 4.6), layout="constrained")
    axis = figure.subplots()
    points = axis.scatter(
        temperature, light, c=inlier, cmap="coolwarm_r", vmin=0, vmax=1, s=22, zorder=3
    )
    figure.colorbar(points, ax=axis, label="P(inlier)")
    grid = np.linspace(temperature.min() - 0.05, temperature.max() + 0.05, 50)
    basis = np.column_stack([np.ones_like(grid), grid - np.median(temperature)])
    least = np.linalg.lstsq(
        np.column_stack([np.ones_like(temperature), temperature - np.median(temperature)]), light
    )[0]
    lines = {"regression with outliers": fit.q.draw(2000, 0)[0], "t model, NUTS": nuts}
    for (label, draws), colour in zip(lines.items(), ("#0072B2", "#E69F00"), strict=True):
        band = np.quantile(draws @ basis.T, [0.05, 0.5, 0.95], axis=0)
        axis.plot(grid, band[1], color=colour, label=f"{label} (median, 90 %)")
        axis.fill_between(grid, band[0], band[2], color=colour, alpha=0.15)
    axis.plot(grid, basis @ least, ":", color="0.3", label="least squares")
    axis.set(xlabel="log temperature", ylabel="log light")
    axis.invert_xaxis()
    axis.legend(fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("."))
    arguments = parser.parse_args()
    temperature, light = read(arguments.data)
    fit, inlier = regression(temperature, light)
    nuts = student_t(temperature, light)
    print(f"verdict: {fit.certificate.verdict}")
    for i, name in enumerate(("light at the median temperature", "slope")):
        row = fit.summary().iloc[i]
        print(
            f"{name}: {row['mean']:.2f} ± {row['sd']:.2f}; t model, NUTS: {nuts[:, i].mean():.2f} ±"
            f" {nuts[:, i].std():.2f}"
        )
    where = np.flatnonzero(inlier < 0.5)
    print(
        "outliers:",
        *(
            f"star {i + 1} ({temperature[i]:.2f}, {light[i]:.2f}; P(inlier) {inlier[i]:.2g})"
            for i in where
        ),
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    picture(temperature, light, fit, inlier, nuts).savefig(
        arguments.out / "star_cluster.png", dpi=130
    )


if __name__ == "__main__":
    main()
