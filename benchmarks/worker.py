"""One method on one posterior in a process of its own: `worker.py METHOD POSTERIOR SEEDS`.

One JSON line per seed on stdout.

Imports and reading the data come before the clock. The first seed is the cold call: it makes the
target, compiles, fits, certifies (where the method does) and summarises. The later ones are warm:
the same target, another key.
"""

import dataclasses
import json
import sys
import time
import traceback
import warnings
from typing import Any

import posteriors
import record
from answers import Answer
from methods import METHODS

_COMPILING = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class CompileClock:
    """Seconds in lowering and in XLA's compiler, as JAX reports them (tracing nests, and is left
    out).
    """

    def __init__(self) -> None:
        import jax.monitoring

        self.seconds, self.programs = 0.0, 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, seconds: float, **_: Any) -> None:
        if event in _COMPILING:
            self.seconds += seconds
            self.programs += event == _COMPILING[-1]


def main(method: str, name: str, seeds: int) -> None:
    # what a library prints is not to get between the lines of JSON
    out, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")
    clock, target, ready = CompileClock(), None, None
    for seed in range(seeds):
        row: dict[str, Any] = {"posterior": name, "method": method, "seed": seed, "cold": seed == 0}
        try:
            if ready is None:
                ready = METHODS[method]()
                data = ready.prepare(name)
            before, programs, started = clock.seconds, clock.programs, time.perf_counter()
            if target is None:
                target = ready.target(name, data)
            answer: Answer = ready.run(name, target, seed)
            row["seconds"] = time.perf_counter() - started
            row["compile_seconds"], row["programs"] = (
                clock.seconds - before,
                clock.programs - programs,
            )
            row |= dataclasses.asdict(posteriors.score(name, answer.summary))
            row |= {
                "evaluations": answer.evaluations,
                "certificate_evaluations": answer.certificate_evaluations,
            }
            row |= {"verdict": answer.verdict, "khat": answer.khat, **answer.extra}
            row["khat"] = answer.diagnose() if answer.diagnose is not None else answer.khat
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            traceback.print_exc()
        print(json.dumps(record.plain(row), allow_nan=False), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
