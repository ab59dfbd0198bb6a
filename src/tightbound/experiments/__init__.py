"""Published tables and figures, run again: `tb.experiments.run("clutter").claims`."""

import importlib
import inspect
import types

from .result import OptionError as OptionError
from .result import Result as Result

REGISTRY: dict[str, str] = {
    "clustering": (
        "forward KL orders shifted clusters, the ELBO and its relatives do not (McNamara et al."
        " 2024, table 1)"
    ),
    "local-optimum": (
        "one angle: exact ELBO with a local optimum, forward KL without (McNamara et al. 2024,"
        " figure 7)"
    ),
    "ntk-widths": (
        "networks of growing width, the best von Mises, the kernel's drift (McNamara et al. 2024,"
        " figure 1)"
    ),
    "rotated-digits": (
        "a shared rotation from twelve starts, by forward KL and a bound (McNamara et al. 2024,"
        " figures 4-6)"
    ),
    "elbo-identity": (
        "ELBO = log Z - KL and grad ELBO = -grad KL, both sides apart (Blei et al. 2017, section 2)"
    ),
    "estimator-variance": (
        "variance of gradient estimators by cost function (Mohamed et al. 2020, section 3)"
    ),
    "clutter": (
        "KL of EP, the analytic gradient, Laplace, mean field and the best Gaussian (Popov 2024,"
        " figures 3 to 5)"
    ),
    "clutter-2d": (
        "the clutter problem in 2, 5 and 10 dimensions: KL against a grid, deficits in the ELBO"
    ),
    "clutter-scaling": (
        "the clutter problem from 20 to 1,000,000 points: cost of an iteration and accuracy"
    ),
    "clutter-stress": "the clutter problem as q grows wider than the kernels: excess KL by v / vg",
}
"""name -> one line.

The file of that name in this folder has `run(fast, **options) -> Result`, and where there is a
picture `figures(result) -> {name: matplotlib figure}`, drawn from the result's tables alone."""


def run(name: str, fast: bool = True, **options: object) -> Result:
    """Run one experiment.

    Arguments:
        name: a key of `REGISTRY`.
        fast: the version that takes seconds to minutes; False runs all of it.
        options: what the experiment takes besides, such as `data`, the folder of its data.

    Raises:
        OptionError: (a ValueError) there is no experiment of that name, or it does not take one of
            the options.
    """
    module = _module(name)
    known = list(inspect.signature(module.run).parameters)[1:]
    for option in options.keys() - known:
        what = (
            f"; besides `fast` it takes {', '.join(known)}" if known else ": it takes `fast` alone"
        )
        raise OptionError(f"experiments.run: {name} takes no option `{option}`{what}.")
    return module.run(fast, **options)


def pictures(result: Result) -> dict[str, bytes]:
    """The pictures of a result by name, as PNG files; empty for an experiment that has none.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    draw = getattr(_module(result.name), "figures", None)  # of a module, which may have none
    if draw is None:
        return {}
    from .drawing import png  # imports matplotlib

    return {name: png(figure) for name, figure in draw(result).items()}


def _module(name: str) -> types.ModuleType:
    """The module of one experiment, imported when it is first asked for."""
    if name not in REGISTRY:
        raise OptionError(
            f"experiments.run: there is no experiment {name!r}; there are"
            f" {', '.join(sorted(REGISTRY))}."
        )
    return importlib.import_module(f".{name.replace('-', '_')}", __name__)


__all__ = ["REGISTRY", "OptionError", "Result", "pictures", "run"]
