"""Two fits of one case in a process of its own: `regression_worker.py CASE PATH_OF_SRC`.

One JSON line on stdout. The first fit is cold: it compiles. The second is warm: the same target,
another key. The clock of a fit stops when its verdict is known; imports have a clock of their own.
"""

import hashlib
import importlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

ZOO = {"zoo: eight_schools": "eight_schools", "zoo: banana": "banana"}  # they need no shared data


def measure(case: str, source: Path) -> dict[str, Any]:
    """Seconds of the imports and of both fits, and what the fits found."""
    started = time.perf_counter()
    tb = importlib.import_module("tightbound")
    imports = time.perf_counter() - started
    # An installed tightbound may come first on the path: then both sides would be the same code.
    if not Path(str(tb.__file__)).resolve().is_relative_to(source):
        sys.exit(f"tightbound was imported from another place than {source}.")
    target, seconds, fits = target_of(case, tb), [], []
    for key in (0, 1):
        started = time.perf_counter()
        fit = tb.fit(target, key=key, throw=False, progress=False)
        verdict = str(fit.certificate.verdict.value)
        seconds.append(time.perf_counter() - started)
        fits.append((fit, verdict))
    return {
        "imports": imports,
        "cold": seconds[0],
        "warm": seconds[1],
        "evaluations": sum(fit.evaluations + fit.certificate.evaluations for fit, _ in fits),
        "verdicts": ", ".join(verdict for _, verdict in fits),
        "bits": digest([fit.q for fit, _ in fits]),
    }


def target_of(case: str, tb: Any) -> Any:
    """The target of a case: a known one of the package, or a posterior with data."""
    if case in ZOO:
        return getattr(importlib.import_module("tightbound.targets.zoo"), ZOO[case])().target
    import posteriors

    models, numpyro_models = posteriors.modules()
    data = models.POSTERIORS[case].load(str(posteriors.FOLDER))
    return tb.from_numpyro(numpyro_models.MODELS[case], data)


def digest(members: list[Any]) -> str:
    """A digest of the families' names and of every bit of their arrays."""
    import jax
    import numpy as np

    found = hashlib.sha256()
    for q in members:
        # The name of the class without its module: a file that was moved does not change q.
        found.update(type(q).__name__.encode())
        for leaf in map(np.asarray, jax.tree.leaves(q)):
            found.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    # What a library prints is not to mix with the line of JSON.
    out, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]).resolve())), file=out)
