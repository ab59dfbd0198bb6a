"""Published tables and figures, run again: `tb.experiments.run("clutter").claims`."""

import importlib
from typing import Any

from .result import Result

REGISTRY: dict[str, str] = {
    "clutter": "KL of EP, the analytic gradient, Laplace, mean field and the best Gaussian (Popov 2024, figures 3 and 4)",
}
"""name -> one line. The file of that name in this folder has `run(fast, **options) -> Result`."""


def run(name: str, fast: bool = True, **options: Any) -> Result:
    """Run one experiment.

    Arguments:
        name: a key of `REGISTRY`.
        fast: the version that takes seconds to minutes; False runs all of it.
        options: what the experiment takes besides, such as `data`, the folder of its data.

    Raises:
        ValueError: there is no experiment of that name.
    """
    if name not in REGISTRY:
        raise ValueError(f"experiments.run: there is no experiment {name!r}; there are {', '.join(sorted(REGISTRY))}.")
    return importlib.import_module(f".{name.replace('-', '_')}", __name__).run(fast, **options)


__all__ = ["REGISTRY", "Result", "run"]
