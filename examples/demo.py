"""Fit three posteriors without choosing anything, say how far off each answer is, and write a
report of each.

python examples/demo.py [--out build/demo] [--fast]
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from sklearn.datasets import load_breast_cancer

import tightbound as tb

# of coaching in eight schools (Rubin 1981)
EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools_centred():
    """As one writes it down first.

    A funnel in theta and tau, in which a single Gaussian goes wrong.
    """

    def model():
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("school", 8):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, ERRORS), obs=EFFECTS)

    return tb.from_numpyro(model)


def eight_schools_noncentred():
    """The same posterior in other coordinates, from a plain log density this time."""

    def effects(params):
        return {"theta": params["mu"] + params["tau"] * params["z"]}

    def log_density(params):
        prior = dist.Normal(0, 5).log_prob(params["mu"]) + dist.HalfCauchy(5).log_prob(
            params["tau"]
        )
        schools = dist.Normal(0, 1).log_prob(params["z"]) + dist.Normal(
            effects(params)["theta"], ERRORS
        ).log_prob(EFFECTS)
        return prior + schools.sum()

    example = {"mu": 0.0, "tau": 1.0, "z": np.zeros(8)}
    return tb.from_log_density(log_density, example, support={"tau": "positive"}, derived=effects)


def breast_cancer():
    """Logistic regression of malignancy on 30 standardised measurements, most of them strongly
    correlated.
    """
    data = load_breast_cancer()
    x = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    names = [str(name) for name in data.feature_names]

    def log_prior(params):
        slopes = jnp.array([params["slope"][name] for name in names])
        return (
            dist.Normal(0, 5).log_prob(params["intercept"])
            + dist.Normal(0, 1).log_prob(slopes).sum()
        )

    def log_likelihood(params, rows):
        logits = params["intercept"] + rows["x"] @ jnp.array(
            [params["slope"][name] for name in names]
        )
        return rows["malignant"] * logits - jax.nn.softplus(logits)

    rows = {"x": x, "malignant": (data.target == 0).astype(float)}
    return tb.from_rows(
        log_prior, log_likelihood, rows, {"intercept": 0.0, "slope": dict.fromkeys(names, 0.0)}
    )


POSTERIORS = {
    "eight_schools_centred": ("Eight schools, centred", eight_schools_centred),
    "eight_schools_noncentred": ("Eight schools, non-centred", eight_schools_noncentred),
    "breast_cancer": ("Breast cancer, logistic regression", breast_cancer),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("build/demo"), help="folder for the reports"
    )
    parser.add_argument("--fast", action="store_true", help="leave out the first of the three")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    started, reports = time.perf_counter(), []
    for name in list(POSTERIORS)[1 if chosen.fast else 0 :]:
        title, make = POSTERIORS[name]
        print(f"\n{title}\n{'=' * len(title)}\n{make.__doc__}\n")
        fit = tb.fit(make(), key=0)
        print(fit.summary().to_string(float_format=lambda value: f"{value:.3g}"))
        print(f"\n{fit.certificate.explain()}")
        print(
            f"\n{fit.result} {fit.steps} steps, {fit.evaluations:,} gradients, {fit.seconds:.1f} s."
        )
        reports.append(fit.report(chosen.out / f"{name}.html"))
    print(
        f"\n{len(reports)} fits in {time.perf_counter() - started:.0f} s. The reports with all"
        " plots:"
    )
    for path in reports:
        print(f"  {path}")


if __name__ == "__main__":
    main()
