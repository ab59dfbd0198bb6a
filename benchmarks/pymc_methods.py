"""PyMC's ADVI, full-rank ADVI and (from pymc-extras) Pathfinder, on the same JAX density as every
other method.

They need `pip install -c constraints.txt -e '.[bench]'`. The density enters as a `pm.Potential` of
flat unconstrained values, through an operation whose value and gradient JAX compiles: PyMC's own
compiler is not what is compared.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import posteriors
from answers import DRAWS, Answer, columns, khat


class PyMC:
    """`pm.fit(10_000, method=...)` with its own optimiser, or
    `pymc_extras.fit(method="pathfinder")`, as they come.

    PyMC's own optimiser (Adagrad on a window) moves a parameter by about 0.001 per step; `adam`
    gives its ADVI the Adam and the rate that NumPyro and BlackJAX get.
    """

    steps = 10_000

    def __init__(self, method: str, adam: float | None = None) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)
        import pymc  # noqa: F401

        if method == "pathfinder":
            import pymc_extras  # noqa: F401

        self.method, self.adam = method, adam
        self.models, _ = posteriors.modules()

    def prepare(self, name: str) -> Any:
        return self.models.POSTERIORS[name].load(str(posteriors.FOLDER))

    def target(self, name: str, data: Any) -> Any:
        posterior = self.models.POSTERIORS[name]
        return posterior, data, lambda z: posterior.log_density(z, data)

    def run(self, name: str, target: Any, seed: int) -> Answer:
        import jax
        import pymc as pm

        posterior, data, log_density = target
        operation, counter = potential(log_density)
        with pm.Model():
            z = pm.Flat("z", shape=posterior.dim, initval=np.zeros(posterior.dim))
            pm.Potential("log_density", operation(z)[0])
            draws, gaussian = self._draws(seed)
        flat = np.asarray(jax.jit(jax.vmap(lambda point: posterior.flat(point, data)))(draws))
        named = [posteriors.python_name(n) for n in posterior.names]
        summary = dict(zip(named, columns(flat), strict=True))
        return Answer(
            summary, counter[0], diagnose=gaussian and (lambda: _khat(log_density, draws, gaussian))
        )

    def _draws(self, seed: int) -> tuple[np.ndarray, Any]:
        """`[DRAWS, d]` on the unconstrained scale, and the approximation where it is a Gaussian.

        Called inside the model.
        """
        import pymc as pm

        approximation = None
        if self.method == "pathfinder":
            import pymc_extras as pmx

            # one process, as for everybody else (its default spreads four paths over processes)
            quiet = {"display_summary": False, "progressbar": False, "concurrent": None}
            found = pmx.fit(method="pathfinder", num_draws=DRAWS, random_seed=seed, **quiet)
        else:
            chosen = (
                {} if self.adam is None else {"obj_optimizer": pm.adam(learning_rate=self.adam)}
            )
            approximation = pm.fit(
                self.steps, method=self.method, random_seed=seed, progressbar=False, **chosen
            )
            found = approximation.sample(DRAWS, random_seed=seed)
        values = np.asarray(found.posterior["z"])
        return values.reshape(-1, values.shape[-1]), approximation


def _khat(log_density: Callable[[Any], Any], draws: np.ndarray, approximation: Any) -> float:
    """Of a Gaussian approximation: its mean and covariance say its density at the draws."""
    import jax
    from scipy.stats import multivariate_normal

    log_q = multivariate_normal(
        approximation.mean.eval(), approximation.cov.eval(), allow_singular=True
    ).logpdf(draws)
    return khat(jax.jit(lambda z: jax.lax.map(log_density, z, batch_size=50))(draws) - log_q)


def potential(log_density: Callable[[Any], Any]) -> tuple[Any, list[int]]:
    """The density as an operation of PyTensor with two outputs, value and score, and a list that
    counts its evaluations.

    One operation, so that a step that wants both pays for one.
    """
    import jax
    import pytensor.tensor as pt
    from pytensor.graph.basic import Apply
    from pytensor.graph.op import Op

    both, counter = jax.jit(jax.value_and_grad(log_density)), [0]

    class Density(Op):
        __props__ = ()

        def make_node(self, z: Any) -> Any:
            return Apply(self, [pt.as_tensor_variable(z)], [pt.dscalar(), pt.dvector()])

        def perform(self, node: Any, inputs: Any, outputs: Any) -> None:
            counter[0] += 1
            value, score = both(inputs[0])
            outputs[0][0], outputs[1][0] = (
                np.asarray(value, dtype=np.float64),
                np.asarray(score, dtype=np.float64),
            )

        def connection_pattern(self, node: Any) -> list[list[bool]]:
            return [[True, False]]

        def grad(self, inputs: Any, gradients: Any) -> list[Any]:
            return [gradients[0] * self(inputs[0])[1]]

    return Density(), counter


__all__ = ["PyMC", "potential"]
