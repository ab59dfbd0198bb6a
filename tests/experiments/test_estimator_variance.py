"""The variance figure, small.

Every dot on its curve, every closed form, and that a wrong curve is seen.
"""

import jax
import pytest

from tightbound.experiments import estimator_variance as experiment
from tightbound.experiments import pictures, run


@pytest.fixture(scope="module")
def result():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        return run("estimator-variance")


@pytest.mark.slow
def test_every_claim_is_met(result):
    assert [claim["claim"] for claim in result.claims if not claim["ok"]] == []
    assert len(result.claims) == 8 + 2 * 3 * 6
    assert len(result.tables["dots"]) == 2 * 6 * 3 * 5


@pytest.mark.slow
def test_a_curve_that_is_off_by_a_fifth_is_seen(result):
    wrong = [{**row, "curve": 1.2 * row["curve"]} for row in result.tables["dots"]]
    claims = experiment._dots(wrong)
    assert sum(not claim["ok"] for claim in claims) >= 0.8 * len(claims)


@pytest.mark.slow
def test_the_picture_is_drawn(result):
    pytest.importorskip("matplotlib", reason="pictures need the extra `plots`")
    assert pictures(result)["variance"].startswith(b"\x89PNG")
    (figure,) = experiment.figures(result).values()
    assert len(figure.axes) == 6


def test_closed_forms_hold_at_other_sds():
    """All closed forms, at c = -1.3 and s = 0.6."""
    found = experiment.by_quadrature(experiment.COSTS[0], 1.0 + 1.3, 1.0, 0.6)
    for name, forms in experiment.CLOSED.items():
        assert found[name] == pytest.approx([form(-1.3, 0.6) for form in forms], rel=1e-8)


def test_an_option_that_is_not_taken_is_named():
    with pytest.raises(
        ValueError, match=r"takes no option `seed`; besides `fast` it takes draws\."
    ):
        run("estimator-variance", seed=1)
