"""Every module is tested: in the file of its name, or in a home that is stated here."""

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
    "_types": "test_architecture.py",
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
    "targets/checked_arrays": "test_bad_input.py",
    "targets/clutter_exact": "targets/test_clutter.py",
    "targets/linear_sites": "targets/test_sites.py",
    "targets/numpyro_inspection": "targets/test_numpyro_model.py",
    "targets/simulator_checks": "targets/test_simulator.py",
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


@pytest.mark.parametrize(
    ("module", "found"), [("families/new", ["families/new"]), ("cli/new", []), ("loop", [])]
)
def test_a_module_without_a_home_is_seen(module, found):
    assert homeless([module]) == found
