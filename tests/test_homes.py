"""Every module is tested: in the file of its name, or in a home that is stated here.

Its home uses one of its public names, or one that leads to it.
"""

import ast
import functools
import runpy
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "tightbound"

# Rooms whose modules share one file of tests, or one folder.
ROOMS = {
    "amortised/encoders": "amortised/test_encoders.py",
    "amortised/heads": "amortised/test_heads.py",
    "cli": "test_cli.py",
    "families/exponential": "families/test_exponential.py",
    "plan/rungs": "plan/test_climb.py",
    "report": "test_report.py",
    "storage": "test_storage.py",
    "targets/conjugate": "solvers/test_coordinate_ascent.py",
    "targets/zoo": "targets/test_zoo.py",
    "testing": "batteries",
}
# Single modules, by the file that tests what they are for.
MODULES = {
    "_types": "certify/test_certificate.py",
    "account": "plan/test_climb.py",
    "amortised/at_data": "amortised/test_posterior.py",
    "amortised/certificate": "amortised/test_posterior.py",
    "amortised/improvement": "amortised/test_global_optimum.py",
    "amortised/start": "amortised/test_posterior.py",
    "batch/newton": "batch/test_natural.py",
    "batch/programs": "batch/test_fit_batch.py",
    "batch/result": "batch/test_fit_batch.py",
    "certify/chains": "solvers/test_samplers.py",
    "certify/climbed": "certify/test_certificate.py",
    "certify/factors": "solvers/test_coordinate_ascent.py",
    "certify/findings/chains": "solvers/test_samplers.py",
    "certify/fitted": "certify/test_certificate.py",
    "certify/simulations": "amortised/test_posterior.py",
    "estimators/base": "batteries/test_estimators.py",
    "estimators/baselines": "estimators/test_score.py",
    "estimators/clutter/local_gaussians": "estimators/clutter/test_local_quadratic.py",
    "estimators/draws": "batteries/test_estimators.py",
    "estimators/enumerate": "estimators/test_discrete.py",
    "estimators/finite": "estimators/test_discrete.py",
    "estimators/relaxed": "estimators/test_discrete.py",
    "estimators/weak_derivatives": "estimators/test_discrete.py",
    "experiments/clustering": "experiments/test_forward_kl.py",
    "experiments/clustering_model": "experiments/test_forward_kl.py",
    "experiments/clutter_2d": "experiments/test_clutter.py",
    "experiments/clutter_methods": "experiments/test_clutter.py",
    "experiments/clutter_scaling": "experiments/test_clutter.py",
    "experiments/clutter_stress": "experiments/test_clutter.py",
    "experiments/digits": "experiments/test_forward_kl.py",
    "experiments/drawing": "experiments/test_estimator_variance.py",
    "experiments/local_optimum": "experiments/test_forward_kl.py",
    "experiments/ntk_widths": "experiments/test_forward_kl.py",
    "experiments/result": "experiments/test_clutter.py",
    "experiments/rotated_digits": "experiments/test_forward_kl.py",
    "experiments/training": "experiments/test_forward_kl.py",
    "experiments/variance_curves": "experiments/test_estimator_variance.py",
    "families/base": "batteries/test_families.py",
    "families/empirical": "batteries/test_families.py",
    "families/encoder": "amortised/test_encoders.py",
    "families/head": "amortised/test_heads.py",
    "families/pivots": "families/test_low_rank.py",
    "families/scales": "families/test_gaussian.py",
    "families/transported": "batteries/test_families.py",
    "families/woodbury": "families/test_low_rank.py",
    "objectives/base": "batteries/test_objectives.py",
    "objectives/closed_forms": "objectives/test_classic.py",
    "objectives/fisher": "batteries/test_objectives.py",
    "objectives/inclusive": "batteries/test_objectives.py",
    "plan/attempt": "plan/test_climb.py",
    "plan/policy": "plan/test_climb.py",
    "report/estimators": "test_compare_estimators.py",
    "report/intervals": "test_compare.py",
    "results": "test_fit.py",
    "search/adam": "solvers/test_stochastic.py",
    "search/blackjax_kernels": "solvers/test_samplers.py",
    "search/damped_factors": "solvers/test_natural.py",
    "search/factor_rule": "solvers/test_coordinate_ascent.py",
    "search/natural_rule": "batch/test_natural.py",
    "search/natural_search": "batch/test_natural.py",
    "search/stationarity": "solvers/test_stochastic.py",
    "solvers/base": "batteries/test_solvers.py",
    "solvers/fixed_noise": "families/test_warped.py",
    "solvers/gibbs": "search/test_conjugate_form.py",
    "solvers/held_out": "amortised/test_posterior.py",
    "solvers/hmc": "solvers/test_samplers.py",
    "solvers/metropolis": "solvers/test_samplers.py",
    "solvers/nuts": "solvers/test_samplers.py",
    "solvers/sampling": "solvers/test_samplers.py",
    "solvers/svi": "solvers/test_coordinate_ascent.py",
    "solvers/whitened_sampler": "solvers/test_samplers.py",
    "starts/coordinate_ascent": "solvers/test_coordinate_ascent.py",
    "starts/many_dimensions": "starts/test_paths.py",
    "starts/reweighted": "targets/test_linear_clutter.py",
    "targets/base": "batteries/test_targets.py",
    "targets/checked_arrays": "targets/test_clutter.py",
    "targets/clutter_exact": "targets/test_clutter.py",
    "targets/conjugate/affine": "search/test_conjugate_form.py",
    "targets/conjugate/discovery": "search/test_conjugate_form.py",
    "targets/linear_sites": "targets/test_sites.py",
    "targets/numpyro_inspection": "targets/test_numpyro_model.py",
    "targets/simulator_checks": "targets/test_simulator.py",
}
# Modules that no test calls by name -> a name that their home calls, and that leads to them.
THROUGH = {
    "amortised/certificate": "fit",
    "certify/climbed": "fit",
    "cli/data": "main",
    "cli/errors": "main",
    "cli/model": "main",
    "cli/reproduction": "main",
    "experiments/drawing": "pictures",
    "experiments/training": "clustering",
    "families/exponential/base": "Gamma",
    "families/exponential/parameters": "Gamma",
    "families/exponential/roots": "Gamma",
    "families/exponential/trees": "Product",
    "families/head": "heads",
    "plan/attempt": "fit",
    "plan/climb": "fit",
    "plan/policy": "fit",
    "plan/rungs/factors": "fit",
    "plan/rungs/mixture": "fit",
    "plan/rungs/nested": "fit",
    "plan/rungs/restart": "fit",
    "plan/rungs/warped": "fit",
    "report/estimators": "compare_estimators",
    "report/intervals": "compare",
    "report/style": "report",
    "solvers/whitened_sampler": "NUTS",
    "starts/coordinate_ascent": "fit",
    "storage/encoding": "save",
    "targets/checked_arrays": "Clutter",
    "targets/clutter_exact": "Clutter",
    "targets/conjugate/affine": "as_conjugate",
    "targets/conjugate/base": "from_expected_log_joint",
    "targets/conjugate/discovery": "as_conjugate",
    "targets/numpyro_inspection": "from_numpyro",
    "targets/numpyro_program": "from_numpyro",
    "targets/simulator_checks": "from_simulator",
    "targets/sites": "LinearSites",
    "targets/zoo/known": "zoo",
}


def mirrored(module: str, tests: Path = TESTS) -> bool:
    """Whether tests/ holds the file of the module's name: tests/test_numerics.py of `_numerics`."""
    room, _, name = module.rpartition("/")
    return (tests / room / f"test_{name.lstrip('_')}.py").exists()


def homeless(modules: list[str], tests: Path = TESTS) -> list[str]:
    """Modules without a file of their name and without a stated home."""
    return [
        module
        for module in modules
        if not mirrored(module, tests)
        and module not in MODULES
        and module.rpartition("/")[0] not in ROOMS
    ]


MODULE_NAMES = [
    str(path.relative_to(SOURCE).with_suffix(""))
    for path in sorted(SOURCE.rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
]


def test_every_module_has_a_home():
    assert "families/gaussian" in MODULE_NAMES
    assert homeless(MODULE_NAMES) == []


def test_a_stated_home_exists_and_is_needed():
    homes = {*ROOMS.values(), *MODULES.values()}
    assert [home for home in homes if not (TESTS / home).exists()] == []
    assert [room for room in ROOMS if not (SOURCE / room).is_dir()] == []
    assert [module for module in MODULES if module not in MODULE_NAMES] == []
    assert [module for module in MODULES if mirrored(module)] == []


def home_of(module: str) -> Path:
    """The file or folder that tests the module."""
    room, _, name = module.rpartition("/")
    if mirrored(module):
        return TESTS / room / f"test_{name.lstrip('_')}.py"
    return TESTS / MODULES.get(module, ROOMS.get(room, ""))


def defined_in(text: str) -> set[str]:
    """Public names that a module's text gives a meaning to at its top level.

    Those under which it registers something are among them: findings are asked for by such names.
    """
    names = set()
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            calls = [d for d in node.decorator_list if isinstance(d, ast.Call)]
            first = [call.args[0] for call in calls if call.args]
            names |= {str(x.value) for x in first if isinstance(x, ast.Constant)}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


@functools.cache
def used_in(text: str) -> set[str]:
    """Names that a text uses or imports, and strings that stand for themselves: not its prose."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
        elif isinstance(node, ast.ImportFrom):
            imported = {alias.name for alias in node.names}
            names |= {node.module or "", *imported, *(f"{node.module}.{n}" for n in imported)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def calls_it(module: str, source: str, home: str) -> bool:
    """Whether the text of a home imports the module or uses a public name of its source."""
    dotted = "tightbound." + module.replace("/", ".")
    return bool(used_in(home) & {dotted, *defined_in(source)})


def text_of(place: Path) -> str:
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


SOURCES = {module: (SOURCE / f"{module}.py").read_text("utf-8") for module in MODULE_NAMES}


def test_a_home_calls_its_modules():
    uncalled = [m for m in MODULE_NAMES if not calls_it(m, SOURCES[m], text_of(home_of(m)))]
    assert sorted({*uncalled} - THROUGH.keys()) == []
    assert sorted(THROUGH.keys() - {*uncalled}) == []


@pytest.fixture(scope="module")
def reached():
    """Module -> all that it imports, and what those import."""
    architecture = runpy.run_path(str(TESTS / "test_architecture.py"))
    graph = architecture["import_graph"](SOURCE)

    def closure(name: str) -> set[str]:
        found, todo = set(), [name]
        while todo:
            new = graph[todo.pop()] - found - {"__init__"}
            found |= new
            todo += new
        return {module.replace(".", "/") for module in found}

    return closure


def leads_to(name: str, module: str, reached) -> bool:
    """Whether a module with that public name imports the module, or a file that does."""
    files = {path: path.relative_to(SOURCE).with_suffix("") for path in SOURCE.rglob("*.py")}
    return any(
        module in reached(".".join(start.parts).removesuffix(".__init__"))
        for path, start in files.items()
        if name in defined_in(path.read_text("utf-8")) or name in (start.name, start.parent.name)
    )


@pytest.mark.parametrize("module", THROUGH)
def test_a_home_calls_what_leads_to_its_module(module, reached):
    name = THROUGH[module]
    assert name in used_in(text_of(home_of(module)))
    assert leads_to(name, module, reached)


def test_what_does_not_lead_to_a_module_is_seen(reached):
    assert not leads_to("Gamma", "plan/policy", reached)
    assert leads_to("fit", "plan/policy", reached)


def test_a_home_that_does_not_call_its_module_is_seen():
    source = "ROOT = 2\ndef root(x): ...\ndef _hidden(): ..."
    for home, called in (
        ("from tightbound.families import roots", True),
        ("import tightbound.families.roots", True),
        ("root(2)", True),
        ("roots = 2", False),
        ("tb.ROOT", True),
        ('check("root")', True),
        ('"""Tests of roots and root."""', False),
        ("_hidden()", False),
        ("# root", False),
    ):
        assert calls_it("families/roots", source, home) is called, home


@pytest.mark.parametrize(
    ("module", "found"), [("families/new", ["families/new"]), ("cli/new", []), ("loop", [])]
)
def test_a_module_without_a_home_is_seen(module, found):
    assert homeless([module]) == found
