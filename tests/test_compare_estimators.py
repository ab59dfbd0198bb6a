"""`tb.compare_estimators`.

Variances against closed forms, the order, the picture, and what it refuses.
"""

import numpy as np
import pytest

import tightbound as tb
from tightbound.compare_estimators import candidates, refusal
from tightbound.estimators import Enumerate, Pathwise, Relaxed, Score, StickTheLanding
from tightbound.families import Bernoulli, Gaussian, Product
from tightbound.objectives import ELBO, IWELBO

pytestmark = pytest.mark.usefixtures("as_a_user")

M = 1.5


def target():
    return tb.from_log_density(lambda params: -0.5 * params["x"] ** 2, {"x": 0.0})


@pytest.fixture(scope="module")
def compared():
    """q = N(M, 1) against N(0, 1), in q's own scale."""
    named = {
        "Pathwise": Pathwise(8),
        "antithetic": Pathwise(8, noise="antithetic"),
        "StickTheLanding": StickTheLanding(4),
        "taylor": Score(4, baseline="taylor"),
        "Score": Score(4, baseline="none"),
        "Enumerate": Enumerate(),
        "Relaxed": Relaxed(4),
    }
    return tb.compare_estimators(
        target(), Gaussian.diagonal(1).moved(np.array([M])), estimators=named, key=3, repeats=2000
    )


def test_variances_are_those_of_the_closed_forms(compared):
    """Per draw: pathwise 1 + (m^2 + 2); antithetic pairs leave 2 of eps^2, twice over.

    Sticking the landing m^2: z - eps = m.

    The score function: f = m^2/2 + m eps up to a constant, times (eps, eps^2 - 1), by
    Gauss-Hermite.
    """
    t, w = np.polynomial.hermite_e.hermegauss(30)
    f, scores = M**2 / 2 + M * t, np.stack([t, t**2 - 1])
    raw = f * scores
    score = np.sum((raw**2 @ w - (raw @ w) ** 2 / w.sum()) / w.sum())
    expected = {
        "Pathwise": (1 + M**2 + 2) / 8,
        "antithetic": 2 * 2 / 8,
        "StickTheLanding": M**2 / 4,
        "Score": score / 4,
        "taylor": 0.0,
    }
    table = compared.table
    assert set(table.index) == set(expected)
    for name, value in expected.items():
        assert abs(table.loc[name, "variance"] - value) <= 4 * table.loc[name, "stderr"] + 1e-15, (
            name
        )
    np.testing.assert_allclose(table["variance x cost"], table["variance"] * table["evaluations"])
    assert table.loc["Pathwise", "evaluations"] == 8


def test_best_first_and_ready_to_use(compared):
    assert list(compared.table.index) == [
        "taylor",
        "StickTheLanding",
        "antithetic",
        "Pathwise",
        "Score",
    ]
    assert isinstance(compared.best, Score)
    assert compared.table["variance x cost"].is_monotonic_increasing
    assert (compared.table["seconds"] > 0).all()


def test_what_cannot_serve_is_listed_with_the_reason(compared):
    assert set(compared.refused) == {"Enumerate", "Relaxed"}
    assert "finite support" in compared.refused["Enumerate"]
    text = str(compared)
    assert "best first by variance x evaluations" in text
    assert "- Enumerate: Enumerate sums over a finite support" in text


def test_the_picture_is_written(compared, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need the extra `plots`")
    text = compared.plot(tmp_path / "costs.svg").read_text()
    assert text.startswith("<?xml")


def test_discrete_latents():
    """A pair of coins: Enumerate has no noise and comes first.

    Relaxed is named as biased, Pathwise as impossible.
    """
    coins = tb.from_log_density(lambda v: 0.7 * v["b"][0] * v["b"][1], {"b": np.zeros(2)})
    some = ("Enumerate", "Score", "Pathwise", "Relaxed")
    named = {name: e for name, e in candidates(16, ELBO()).items() if name in some}
    found = tb.compare_estimators(
        coins, Product(b=Bernoulli(np.array([0.3, -0.5]))), estimators=named, repeats=50
    )
    assert found.table.index[0] == "Enumerate"
    assert found.table.loc["Enumerate", "evaluations"] == 4
    assert isinstance(found.estimators["Score"], Score)
    assert "cannot be reparameterised" in found.refused["Pathwise"]
    assert found.refused["Relaxed"] == "it is biased for every objective."


@pytest.mark.parametrize("objective", [ELBO(), IWELBO(3), IWELBO(8)], ids=repr)
@pytest.mark.parametrize("draws", [1, 10, 32])
def test_the_library_s_own_list_fits_groups_pairs_and_points(objective, draws):
    """Whatever is refused is refused for the family or the objective, never for the number of
    draws.
    """
    for name, estimator in candidates(draws, objective).items():
        reason = refusal(estimator, target(), Gaussian.diagonal(1), objective)
        assert reason is None or "multiple of" not in reason, name
        assert getattr(estimator, "n", draws) >= min(draws, objective.group)


def test_a_biased_pairing_is_refused():
    with pytest.raises(
        tb.PairingError, match="StickTheLanding: its gradient of IWELBO is biased, and more draws"
    ):
        tb.compare_estimators(
            target(),
            Gaussian.full(1),
            tb.objectives.IWELBO(2),
            estimators={"StickTheLanding": StickTheLanding(4)},
        )


def test_bad_arguments_are_named():
    for options, sentence in (
        ({"cost": "money"}, "`cost` must be"),
        ({"repeats": 1}, "`repeats` must be at least 2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            tb.compare_estimators(target(), Gaussian.full(1), **options)
