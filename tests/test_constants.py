"""A number with a name is said once.

No two files name the same number the same way, unless a reason is written here, and nothing beside
the certificate's standards repeats one of them as a default of its own.
"""

import ast
import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tightbound.certify.standards import EFFORT, STANDARDS

SOURCE = Path(__file__).parents[1] / "src" / "tightbound"

# (name, number) -> the files that have it, and why they are not one constant. Another file with the
# same is a new question.
REASONS = {
    ("_CHUNK", 64): (
        "amortised/global_optimum.py targets/numpyro_program.py targets/rows.py",
        "gradients, simulated data and likelihoods: sizes of different arrays",
    ),
    ("_CHUNK", 250): (
        "amortised/improvement.py certify/simulations.py",
        "draws of the information, and simulations between two looks at a budget",
    ),
    ("_CHUNK", 4096): (
        "estimators/clutter/projected_logit.py estimators/clutter/sum_of_exponentials.py"
        " testing/families.py",
        "points, numbers a row and points of a battery: sizes of different arrays",
    ),
    ("_RIDGE", 1e-3): (
        "amortised/at_data.py amortised/start.py",
        "one in units of a Gram matrix, one in variances of standardised data",
    ),
    ("_TINY", 1e-12): (
        "amortised/at_data.py amortised/heads/circular.py families/exponential/von_mises.py",
        "of an sd, of a square with a gradient, and where a series is exact",
    ),
    ("_TINY", 1e-300): (
        "certify/corrections.py certify/draws.py families/nested_pair.py",
        "above underflow, in the place of a zero; nothing depends on the number",
    ),
    ("_PAIRS", 4): (
        "amortised/tangent_kernel.py report/plots.py",
        "data sets that are mirrored, and panels of a page",
    ),
    ("_LEAST_VARIANCE", 1e-6): (
        "amortised/encoders/sets.py search/whitening.py",
        "added before a logarithm, and a floor under that of a coordinate",
    ),
    ("_LEAST_CURVATURE", 1e-12): (
        "search/inverse_hessian.py search/lbfgs.py",
        "relative to the square of a change of gradient, and a cosine",
    ),
    ("_ROUNDING", 1e-9): (
        "families/student.py solvers/laplace.py testing/comparisons.py testing/estimators.py",
        "of a logarithm, a log density, a standard error and an estimate",
    ),
    ("_ROUNDING", 1e-12): (
        "search/inverse_hessian.py search/mean_field.py solvers/ep.py",
        "of an eigenvalue of H, a loss, and an eigenvalue of a precision",
    ),
    ("_MOST_GROWTH", 4.0): (
        "estimators/fixed_design.py solvers/learn_clutter.py",
        "of a design, and of a variance",
    ),
    ("_PRECISION", 5e-5): (
        "solvers/indicators.py starts/annealed.py",
        "of `tol`, of two loops that converge at rates of their own",
    ),
    ("_PRECISION", 1e-3): (
        "search/modes.py solvers/ep.py",
        "kernel sds, and a share of `tol`",
    ),
    ("_MEMORY", 0.9): (
        "estimators/baselines.py search/adam.py",
        "of averages of the loss, and of signs of the gradient",
    ),
    ("_MEMORY", 8): (
        "search/low_rank.py starts/many_dimensions.py",
        "pairs as large as a search vector, and as a point",
    ),
    ("_PASSES", 3): (
        "starts/many_dimensions.py targets/linear_sites.py",
        "differences over better scales, and quadratures around better means",
    ),
    ("ALLOWED", 4.0): (
        "experiments/estimator_variance.py testing/comparisons.py",
        "an experiment is judged by its own table, not by the batteries",
    ),
    ("TRUE", 260.0): (
        "experiments/local_optimum.py experiments/rotated_digits.py",
        "as published, of two figures",
    ),
    ("SD", 0.5): (
        "experiments/local_optimum.py experiments/ntk_widths.py",
        "as published, of two figures",
    ),
}


def number(node: ast.expr | None) -> float | None:
    """The number that an expression of numbers says, such as `-1e-3` or `2**20`."""
    if node is None or any(isinstance(x, (ast.Name, ast.Call)) for x in ast.walk(node)):
        return None
    try:
        value = eval(compile(ast.Expression(node), "", "eval"), {"__builtins__": {}})
    except Exception:
        return None
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if plain else None


def assigned(body: list[ast.stmt]) -> Iterator[tuple[str, float]]:
    """Names and numbers of the assignments of a module's or class's body, pairs included."""
    for node in body:
        pairs: list[tuple[ast.expr, ast.expr | None]] = []
        if isinstance(node, ast.AnnAssign):
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs += zip(target.elts, node.value.elts, strict=True)
                else:
                    pairs.append((target, node.value))
        for target, value in pairs:
            said = number(value)
            if isinstance(target, ast.Name) and said is not None:
                yield target.id, said


def said_twice(texts: dict[str, str]) -> dict[tuple[str, float], str]:
    """Name and number of a module's constant -> the files that have both, where they are many."""
    files = defaultdict(set)
    for file, text in texts.items():
        for name, value in assigned(ast.parse(text).body):
            if name.isupper():
                files[name, value].add(file)
    return {what: " ".join(sorted(where)) for what, where in files.items() if len(where) > 1}


def defaults(text: str) -> Iterator[tuple[str, float]]:
    """What has a number as its default: arguments, fields of classes, constants of the module."""
    tree = ast.parse(text)
    yield from assigned(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from assigned(node.body)
        elif isinstance(node, ast.FunctionDef):
            places = [*node.args.posonlyargs, *node.args.args]
            given = node.args.defaults
            pairs = [
                *zip(places[len(places) - len(given) :], given, strict=True),
                *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
            ]
            for argument, default in pairs:
                said = number(default)
                if said is not None:
                    yield argument.arg, said


def repeated(text: str) -> list[str]:
    """Defaults that have the name and the number of a standard."""
    known = {**dataclasses.asdict(STANDARDS), **dataclasses.asdict(EFFORT)}
    return [
        f"{name} = {value}"
        for name, value in defaults(text)
        if known.get(name.lower().lstrip("_")) == value
    ]


@pytest.fixture(scope="module")
def texts():
    return {
        path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8")
        for path in SOURCE.rglob("*.py")
    }


def test_no_number_is_named_twice_without_a_reason(texts):
    assert said_twice(texts) == {what: files for what, (files, _) in REASONS.items()}


def test_no_standard_is_said_again_beside_it(texts):
    rooms = ("certify/", "amortised/")
    found = {
        file: again
        for file, text in texts.items()
        if file.startswith(rooms) and file != "certify/standards.py" and (again := repeated(text))
    }
    assert found == {}
    assert len(repeated(texts["certify/standards.py"])) > 60, "the fields themselves"


# Negative controls.


def test_a_number_that_is_named_twice_is_seen():
    texts = {
        "a.py": "_FLAT = 1e8\nOTHER = 1\n_LEAP, _SHORT = 0.7, -0.5",
        "b.py": "_FLAT = 100_000_000.0\nOTHER = 2\ndef f():\n    _LEAP = 0.7",
        "c.py": "_SHORT: float = -0.5\nlower = 1\n_NAME = 'a'",
        "d.py": "lower = 1\n_NAME = 'a'\nFLAT = 1e8",
    }
    assert said_twice(texts) == {("_FLAT", 1e8): "a.py b.py", ("_SHORT", -0.5): "a.py c.py"}


def test_a_standard_that_is_said_again_is_seen():
    rhat, draws = STANDARDS.rhat_fail, EFFORT.draws
    for text, count in (
        (f"def f(q, rhat_fail: float = {rhat}): ...", 1),
        (f"class A:\n    def f(self, *, draws=4, rhat_fail={rhat}): ...", 1),
        (f"class A:\n    draws: int = {draws}", 1),
        (f"_DRAWS = {draws}", 1),
        (f"def f(draws: int = {draws + 1}): ...", 0),
        ("def f(draws: int = EFFORT.draws): ...", 0),
        (f"def f(other: int = {draws}): ...", 0),
    ):
        assert len(repeated(text)) == count, text
