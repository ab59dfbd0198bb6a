"""Every threshold is said once, is read, and decides."""

import dataclasses
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.certify.fitted import Pair
from tightbound.certify.standards import EFFORT, STANDARDS, Effort, Standards
from tightbound.families import Gaussian

pytestmark = pytest.mark.usefixtures("as_a_user")

SOURCE = Path(tb.__file__).parent
STANDARD = tb.from_log_density(lambda p: -0.5 * jnp.sum(p["z"] ** 2), {"z": np.zeros(3)})


def gaussian(mean=0.0, sd=1.0):
    return Gaussian.from_root(np.full(3, float(mean)), sd * np.eye(3))


def read_somewhere(record, name):
    text = "\n".join(
        path.read_text() for path in SOURCE.rglob("*.py") if path.name != "standards.py"
    )
    return re.search(rf"\b{record}\.{name}\b", text, re.IGNORECASE) is not None


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Standards)])
def test_every_threshold_is_read(field):
    assert read_somewhere("standards", field), "nothing is held to it"


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Effort)])
def test_every_number_of_effort_is_read(field):
    assert read_somewhere("effort", field)


def test_a_threshold_that_does_not_exist_is_not_read():
    assert not read_somewhere("standards", "imagined")


def test_every_number_has_its_reason_beside_it():
    """A comment stands above each field, or above the field before it that it speaks of as well."""
    text = (SOURCE / "certify" / "standards.py").read_text()
    bare = re.findall(r"\n\n    (\w+): (?:int|float) = ", text)
    assert not bare, f"{bare} begin a paragraph without a comment"


def test_they_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        STANDARDS.mean = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        EFFORT.draws = 10


@pytest.mark.parametrize(
    ("q", "finding", "stricter"),
    [
        (gaussian(mean=0.04), "moments", Standards(mean=0.01)),
        (gaussian(sd=0.97), "moments", Standards(sd=0.01)),
        (gaussian(sd=0.93), "stretch", Standards(stretch=0.01)),
        (gaussian(mean=0.04), "shift", Standards(shift=0.01)),
        (gaussian(sd=0.97), "khat", Standards(effective=3999.0, nearly_equal=1.0)),
        (gaussian(sd=0.97), "evidence", Standards(width=1e-4)),
        (gaussian(mean=0.2), "stein", Standards(stein=0.1)),
    ],
)
def test_a_stricter_standard_makes_a_pass_a_doubt(q, finding, stricter):
    name = "converged" if finding in ("stretch", "shift") else finding
    assert tb.check(Pair(q, STANDARD), key=3)[name].verdict == "pass"
    found = tb.check(Pair(q, STANDARD), key=3, standards=stricter)
    assert found[name].verdict == "caution"
    assert found.verdict != "pass"


def test_sentences_are_formatted_from_them():
    stricter = Standards(mean=0.03, sd=0.05, noise=0.02, shift=0.02)
    found = tb.check(Pair(gaussian(), STANDARD), key=0, standards=stricter)
    assert "all means within 0.03 sd and all sds within 5 %" in found["moments"].why
    assert "less than 0.02 sd" in found["noise"].why
    assert "by more than 0.02 sd" in found["converged"].why
    assert found["moments"].threshold == 0.03
    usual = tb.check(Pair(gaussian(), STANDARD), key=0)
    assert "all means within 0.1 sd and all sds within 10 %" in usual["moments"].why


def test_an_sd_is_held_to_its_own_limit():
    """q three per cent too narrow: within the limit of sds, or of means, whichever is asked."""
    narrow = Pair(gaussian(sd=0.97), STANDARD)
    lenient, strict = Standards(mean=0.01, sd=0.2), Standards(mean=0.2, sd=0.01)
    assert tb.check(narrow, key=3, standards=lenient)["moments"].verdict == "pass"
    assert tb.check(narrow, key=3, standards=strict)["moments"].verdict == "caution"
