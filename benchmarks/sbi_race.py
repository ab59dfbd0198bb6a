"""tightbound's amortised inference against `sbi`'s NPE: the same simulations, the same kind and
size of network, one run.

Usage: python benchmarks/sbi_race.py [--tasks NAME ...] [--simulations N] [--sbi-python PATH] [--out
FILE]

Each trains in a process of its own, one after the other, single-threaded, from a file of
simulations; what is timed is training from arrays in memory to a density that can be evaluated,
compilation included, imports not. Both stop by the loss on simulations that they hold out
themselves, at their own defaults. The score is the mean log posterior density (nats) of 2,000 true
parameters that neither has seen.

`sbi` needs PyTorch, which is best kept apart: python -m venv sbi_venv; sbi_venv/bin/pip install sbi
(with PyTorch's CPU wheel); then pass --sbi-python sbi_venv/bin/python.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).resolve().parents[1] / "src"
TEST = 2000
WIDTH = 50
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
MISSING = (
    "{python} cannot import sbi. Make an environment for it (python -m venv sbi_venv;"
    " sbi_venv/bin/pip install sbi) and pass --sbi-python sbi_venv/bin/python."
)


def linear(rng, n):
    """Five normal parameters seen through a fixed matrix in 10 noisy numbers.

    The posterior is Gaussian.
    """
    mix = np.random.default_rng(1).standard_normal((10, 5))
    theta = rng.standard_normal((n, 5))
    return theta, theta @ mix.T + 0.5 * rng.standard_normal((n, 10))


def slcp(rng, n):
    """Four draws of a bivariate normal whose sds are squares of parameters.

    Four modes, bent (Papamakarios et al. 2019).
    """
    theta = rng.standard_normal((n, 5))
    noise = rng.standard_normal((n, 4, 2))
    s1, s2, rho = theta[:, 2] ** 2, theta[:, 3] ** 2, np.tanh(theta[:, 4])
    first = theta[:, :1] + s1[:, None] * noise[:, :, 0]
    mixed = rho[:, None] * noise[:, :, 0] + np.sqrt(1 - rho**2)[:, None] * noise[:, :, 1]
    return theta, np.concatenate([first, theta[:, 1:2] + s2[:, None] * mixed], axis=1)


TASKS = {  # name: simulator, tightbound's head, sbi's model
    "linear, Gaussian": (linear, "gaussian", "mdn of 1"),
    "slcp, mixture": (slcp, "mixture", "mdn of 8"),
    "slcp, spline flow": (slcp, "flow", "nsf"),
}


def by_tightbound(data, head):
    """Train q by expected forward KL; two hidden layers of 50, in float32 as sbi does."""
    import tightbound as tb
    from tightbound._numerics import x64
    from tightbound.amortised.heads import Flow, Mixture
    from tightbound.families.conditional import log_probs_at

    began = time.perf_counter()
    target = tb.from_simulations({"theta": data["theta"]}, data["x"])
    made = {
        "mixture": lambda: Mixture(5, 8),
        "flow": lambda: Flow.spline(5, tb_key(), layers=5, knots=10, width=WIDTH),
    }
    q = tb.amortised.amortised(
        target, made.get(head, lambda: head)(), width=WIDTH, depth=2, dtype="float32", key=0
    )
    fit = tb.fit(target, q, solver=tb.solvers.HeldOut(), key=0)
    seconds = time.perf_counter() - began
    with x64():
        score = log_probs_at(fit.q, data["theta_test"], data["x_test"])
    return {
        "seconds": seconds,
        "log_prob": float(np.mean(score)),
        "error": spread(score),
        "steps": fit.steps,
    }


def tb_key():
    import jax

    return jax.random.key(0)


def by_sbi(data, model):
    """sbi's NPE at its defaults (batches of 200, Adam at 5e-4, 20 epochs of patience), hidden
    layers of 50.
    """
    import torch
    from sbi.inference import NPE
    from sbi.neural_nets import posterior_nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    as_tensor = lambda name: torch.as_tensor(data[name], dtype=torch.float32)  # noqa: E731
    kinds = {
        "mdn of 1": {"model": "mdn", "num_components": 1},
        "mdn of 8": {"model": "mdn", "num_components": 8},
        "nsf": {"model": "nsf", "num_transforms": 5, "num_bins": 10},
    }
    began = time.perf_counter()
    inference = NPE(
        density_estimator=posterior_nn(hidden_features=WIDTH, **kinds[model]),
        show_progress_bars=False,
    )
    density = inference.append_simulations(as_tensor("theta"), as_tensor("x")).train()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        score = density.log_prob(as_tensor("theta_test")[None], condition=as_tensor("x_test"))[
            0
        ].numpy()
    epochs = inference.summary["epochs_trained"][-1]
    return {
        "seconds": seconds,
        "log_prob": float(np.mean(score)),
        "error": spread(score),
        "steps": int(epochs),
    }


def spread(score):
    """Standard error of a mean."""
    return float(np.std(score) / np.sqrt(len(score)))


def race(task, simulations, python, folder):
    """Both on the same file of simulations; a dict for each."""
    simulate, head, model = TASKS[task]
    theta, x = simulate(np.random.default_rng(0), simulations)
    theta_test, x_test = simulate(np.random.default_rng(99), TEST)
    file = Path(folder) / "simulations.npz"
    np.savez(file, theta=theta, x=x, theta_test=theta_test, x_test=x_test)
    rows = []
    for who, interpreter, what in (("tightbound", sys.executable, head), ("sbi", python, model)):
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(SOURCE)}
        command = [interpreter, str(Path(__file__).resolve()), "--worker", who, what, str(file)]
        # in the folder of the simulations: sbi writes its logs where it is started
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=folder, check=False
        )
        if done.returncode:
            rows.append(
                {
                    "task": task,
                    "by": who,
                    "model": what,
                    "failed": done.stderr.strip().splitlines()[-1],
                }
            )
            continue
        rows.append(
            {
                "task": task,
                "by": who,
                "model": what,
                **json.loads(done.stdout[done.stdout.rindex("{") :]),
            }
        )
    return rows


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        who, what, file = sys.argv[2:]
        print(
            json.dumps({"tightbound": by_tightbound, "sbi": by_sbi}[who](dict(np.load(file)), what))
        )
        return 0
    parser = argparse.ArgumentParser(
        description="tightbound's amortised inference against sbi's NPE."
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=list(TASKS),
        default=list(TASKS),
        metavar="NAME",
        help="; ".join(TASKS),
    )
    parser.add_argument("--simulations", type=int, default=10_000, metavar="N")
    parser.add_argument(
        "--sbi-python", default=sys.executable, metavar="PATH", help="the Python that has sbi"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the rows there, as JSON")
    parsed = parser.parse_args()
    if os.sep in parsed.sbi_python:
        parsed.sbi_python = os.path.abspath(
            parsed.sbi_python
        )  # not resolved: a virtual environment's is a link
    if subprocess.run(
        [parsed.sbi_python, "-c", "import sbi"], capture_output=True, check=False
    ).returncode:
        print(MISSING.format(python=parsed.sbi_python), file=sys.stderr)
        return 2
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for task in parsed.tasks:
            for row in race(task, parsed.simulations, parsed.sbi_python, folder):
                said = (
                    row.get("failed")
                    or f"{row['seconds']:8.1f} s {row['log_prob']:9.3f} ± {row['error']:.3f} nats"
                )
                print(f"{task:20s} {row['by']:10s} {row['model']:10s} {said}", flush=True)
                rows.append(row)
    if parsed.out:
        parsed.out.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
