"""The methods that are compared: each fits one posterior and summarises it, as a user of that
library would.

A method is `run(name, seed) -> Answer`; only what happens between its call and its summary is
timed, and `diagnose` (the k-hat of the importance weights) afterwards is not.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import posteriors
from answers import DRAWS, Answer, columns, khat, summarise
from pymc_methods import PyMC


class Tightbound:
    """`tb.fit(target)` with nothing chosen, and what `summary()` prints."""

    def __init__(self) -> None:
        import tightbound as tb

        # what the library imports when it is first needed: imports are outside the clock for
        # everybody
        for module in ("pandas", "xarray", "scipy.interpolate"):
            importlib.import_module(module)

        self.tb, (self.models, self.numpyro_models) = tb, posteriors.modules()

    def prepare(self, name: str) -> Any:
        return self.models.POSTERIORS[name].load(str(posteriors.FOLDER))

    def target(self, name: str, data: Any) -> Any:
        return self.tb.from_numpyro(self.numpyro_models.MODELS[name], data)

    def run(self, name: str, target: Any, seed: int) -> Answer:
        fit = self.tb.fit(target, key=seed, progress=False)
        summary = fit.summary().to_dict("index")
        certificate = fit.certificate
        doubts = {f.name: f.value for f in certificate.findings if f.verdict != "pass"}
        extra = {
            "rung": fit.rung,
            "result": fit.result.name,
            "doubts": doubts,
            "ess": certificate["khat"].detail.ess,
            "family": type(fit.q).__name__,
            "fit_seconds": fit.seconds,
            "certificate_seconds": certificate.seconds,
        }
        return Answer(
            summary,
            fit.evaluations,
            certificate.evaluations,
            str(certificate.verdict.value),
            certificate.khat,
            extra,
        )


class NumPyro:
    """An autoguide by SVI: Adam(0.01), one particle, `steps` steps in one scan, float64."""

    def __init__(self, guide: str, steps: int) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)
        import numpyro.infer.autoguide
        import numpyro.optim  # noqa: F401

        self.guide, self.steps = guide, steps
        self.models, self.numpyro_models = posteriors.modules()

    def prepare(self, name: str) -> Any:
        return self.models.POSTERIORS[name].load(str(posteriors.FOLDER))

    def target(self, name: str, data: Any) -> Any:
        return partial(self.numpyro_models.MODELS[name], data)

    def run(self, name: str, model: Any, seed: int) -> Answer:
        import jax
        from numpyro import infer, optim

        guide = getattr(infer.autoguide, self.guide)(model)
        svi = infer.SVI(model, guide, optim.Adam(0.01), infer.Trace_ELBO())
        fit_key, draw_key = jax.random.split(jax.random.key(seed))
        params = svi.run(fit_key, self.steps, progress_bar=False).params
        draws = guide.sample_posterior(draw_key, params, sample_shape=(DRAWS,))
        return Answer(
            summarise(draws), self.steps, diagnose=lambda: self._khat(model, guide, params)
        )

    def _khat(self, model: Any, guide: Any, params: Any) -> float:
        import jax
        from numpyro import handlers
        from numpyro.infer.util import log_density

        def log_weight(key):
            log_q, trace = log_density(handlers.seed(guide, key), (), {}, params)
            log_p, _ = log_density(
                handlers.replay(handlers.seed(model, key), trace), (), {}, params
            )
            return log_p - log_q

        return khat(
            jax.lax.map(log_weight, jax.random.split(jax.random.key(1), DRAWS), batch_size=50)
        )


class BlackJAX:
    """`meanfield_vi`, `fullrank_vi` (Adam(0.01), 10,000 steps of 5 draws in one compiled scan) or
    `pathfinder`, float64.

    The library starts its two Gaussians at zero on the unconstrained scale; pathfinder starts at
    uniform(-2, 2).
    """

    steps, draws_per_step = 10_000, 5

    def __init__(self, algorithm: str) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)
        import blackjax  # noqa: F401
        import optax  # noqa: F401

        self.algorithm = algorithm
        self.models, _ = posteriors.modules()

    def prepare(self, name: str) -> Any:
        return self.models.POSTERIORS[name].load(str(posteriors.FOLDER))

    def target(self, name: str, data: Any) -> Any:
        posterior = self.models.POSTERIORS[name]
        return posterior, data, lambda z: posterior.log_density(z, data)

    def run(self, name: str, target: Any, seed: int) -> Answer:
        import jax

        posterior, data, log_density = target
        keys = jax.random.split(jax.random.key(seed), 3)
        fitted = self._pathfinder if self.algorithm == "pathfinder" else self._gaussian
        z, log_q, evaluations = fitted(log_density, posterior.dim, keys)
        flat = np.asarray(jax.jit(jax.vmap(lambda point: posterior.flat(point, data)))(z))
        named = [posteriors.python_name(n) for n in posterior.names]
        summary = dict(zip(named, columns(flat), strict=True))

        def diagnose() -> float:
            log_p = jax.jit(lambda points: jax.lax.map(log_density, points, batch_size=50))(z)
            return khat(log_p - log_q(z))

        return Answer(summary, evaluations, diagnose=diagnose)

    def _gaussian(self, log_density: Any, dim: int, keys: Any) -> tuple[Any, Any, int]:
        import blackjax
        import jax
        import jax.numpy as jnp
        import optax

        algorithm = getattr(blackjax, self.algorithm)(
            log_density, optax.adam(0.01), self.draws_per_step
        )

        @jax.jit
        def run(key):
            state = algorithm.init(jnp.zeros(dim))
            return jax.lax.scan(
                lambda s, k: (algorithm.step(k, s)[0], None),
                state,
                jax.random.split(key, self.steps),
            )[0]

        state = run(keys[0])
        module = getattr(blackjax.vi, self.algorithm)
        make = getattr(module, f"generate_{self.algorithm.removesuffix('_vi')}_logdensity")
        return (
            algorithm.sample(keys[1], state, DRAWS),
            jax.vmap(make(*state[:2])),
            self.steps * self.draws_per_step,
        )

    def _pathfinder(self, log_density: Any, dim: int, keys: Any) -> tuple[Any, Any, None]:
        import blackjax
        import jax

        start = jax.random.uniform(keys[2], (dim,), minval=-2.0, maxval=2.0)
        state, _ = jax.jit(lambda key, x: blackjax.vi.pathfinder.approximate(key, log_density, x))(
            keys[0], start
        )
        z, log_q = blackjax.vi.pathfinder.sample(keys[1], state, DRAWS)
        return z, lambda _: log_q, None


METHODS: dict[str, Callable[[], Any]] = {
    "tightbound": Tightbound,
    "numpyro-diagonal-10k": partial(NumPyro, "AutoNormal", 10_000),
    "numpyro-full-10k": partial(NumPyro, "AutoMultivariateNormal", 10_000),
    "numpyro-diagonal-50k": partial(NumPyro, "AutoNormal", 50_000),
    "numpyro-full-50k": partial(NumPyro, "AutoMultivariateNormal", 50_000),
    "blackjax-meanfield": partial(BlackJAX, "meanfield_vi"),
    "blackjax-fullrank": partial(BlackJAX, "fullrank_vi"),
    "blackjax-pathfinder": partial(BlackJAX, "pathfinder"),
    "pymc-advi": partial(PyMC, "advi"),
    "pymc-fullrank": partial(PyMC, "fullrank_advi"),
    "pymc-fullrank-adam": partial(PyMC, "fullrank_advi", 0.01),
    "pymc-pathfinder": partial(PyMC, "pathfinder"),
}
BASELINE = "numpyro-full-10k"
