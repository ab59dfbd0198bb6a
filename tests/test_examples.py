"""The examples on real data find what is known of those data.

Skipped where the data are not at hand.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PLACES = [
    Path(os.environ.get("TIGHTBOUND_DATA", "")) / "classic",
    ROOT.parent / "shared" / "data" / "classic",
]


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def data(name):
    for place in PLACES:
        if (place / name).exists():
            return place / name
    pytest.skip(f"{name} is in none of {', '.join(map(str, PLACES))}")


def test_newcomb():
    """The two times that everyone leaves out, -44 and -2.

    The mean of the other 64 is 27.75, its standard error .64.
    """
    newcomb = example("newcomb")
    x = newcomb.read(data("MASS_newcomb.csv"))
    fit, inlier = newcomb.clutter(x)
    assert sorted(x[inlier < 0.5]) == [-44.0, -2.0]
    assert fit.q.mean[0] == pytest.approx(np.mean(x[x > 0]), abs=0.2)
    assert fit.q.sd[0] == pytest.approx(np.std(x[x > 0]) / 8, rel=0.15)


def test_star_cluster():
    """The four giants (stars 11, 20, 30, 34) are outliers.

    Without all outliers the slope is that of least squares.
    """
    stars = example("star_cluster")
    temperature, light = stars.read(data("robustbase_starsCYG.csv"))
    fit, inlier = stars.regression(temperature, light)
    assert {11, 20, 30, 34} <= set(np.flatnonzero(inlier < 0.5) + 1)
    kept = inlier > 0.5
    slope = np.polyfit(temperature[kept], light[kept], 1)[0]
    assert fit.q.mean[1] == pytest.approx(slope, abs=1.0 * fit.q.sd[1])
    assert np.polyfit(temperature, light, 1)[0] < 0 < fit.q.mean[1] - 2 * fit.q.sd[1]
