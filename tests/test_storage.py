"""Saved fits come back bit for bit; a file that is not the right one is refused with a sentence."""

import dataclasses
import json
import os
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.account import Spent, Stage
from tightbound.families.gaussian import Gaussian
from tightbound.families.low_rank import LowRank
from tightbound.families.nested import NestedGaussian
from tightbound.families.scales import Diagonal, Full
from tightbound.fit import Fit
from tightbound.loop import Trace
from tightbound.storage import load_parts, save, write_whole

DIM = 5


def gaussian_target(dim=DIM, name="x"):
    return tb.from_log_density(lambda p: -0.5 * (p[name] ** 2).sum(), {name: np.zeros(dim)})


@pytest.fixture(scope="module", autouse=True)
def as_a_user():
    """The models here are a user's code: float64 off, JAX's standard promotion."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.fixture(scope="module")
def target():
    return gaussian_target()


def nested():
    rng = np.random.default_rng(3)
    knots = np.linspace(-2.0, 2.0, 6)
    roots = np.tril(rng.normal(size=(6, DIM - 1, DIM - 1)), -1) + np.eye(DIM - 1) * rng.uniform(
        0.5, 2, (6, 1, DIM - 1)
    )
    return NestedGaussian.through(2, knots, -0.5 * knots**2, rng.normal(size=(6, DIM - 1)), roots)


def members():
    rng = np.random.default_rng(1)
    # subnormal, signed zero: nothing may be rounded or normalised
    odd = np.array([np.pi, -0.0, 5e-324, 1e300, 1 / 3])
    return {
        "diagonal": Gaussian(odd, Diagonal(rng.normal(size=DIM))),
        "full": Gaussian(odd, Full(rng.normal(size=(DIM, DIM)))),
        "low_rank": Gaussian(odd, LowRank(rng.normal(size=(DIM, 2)), rng.normal(size=DIM))),
        "float32": Gaussian(
            odd[:3].astype(np.float32), Diagonal(rng.normal(size=3).astype(np.float32))
        ),
        "nested": nested(),
    }


def a_fit(q, target, **changed):
    trace = Trace(
        np.array([3.0, np.nan, 1 / 3]), np.array([1.0, 0.5, np.inf]), np.array([10.0, 20.0, 30.0])
    )
    fields = {
        "result": tb.Result.max_steps,
        "steps": 3,
        "spent": Spent({"start": Stage(10.0, 0.1), "Gaussian": Stage(20.0, 0.2)}),
        "key": (0, 2**32 - 1),
    }
    return Fit(q, target, **{"trace": trace, **fields, **changed})


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kind", members())
def test_every_family_comes_back_bit_for_bit(tmp_path, kind):
    q = members()[kind]
    fit = a_fit(q, gaussian_target(q.dim))
    back = tb.load(fit.save(tmp_path / "fit.npz"), fit.target)
    assert jax.tree.structure(back.q) == jax.tree.structure(q)  # classes and static fields
    assert all(map(same_bits, jax.tree.leaves(back.q), jax.tree.leaves(q)))
    assert all(same_bits(a, b) for a, b in zip(back.q.draw(100, 7), q.draw(100, 7), strict=True))


def test_all_other_fields_come_back(tmp_path, target):
    fit = a_fit(members()["full"], target)
    back = tb.load(fit.save(tmp_path / "fit.npz"), target)
    assert back.target is target
    for name in ("result", "steps", "evaluations", "seconds", "key", "checked"):
        assert getattr(back, name) == getattr(fit, name), name
        assert type(getattr(back, name)) is type(getattr(fit, name)), name
    assert all(
        same_bits(getattr(back.trace, f.name), getattr(fit.trace, f.name))
        for f in dataclasses.fields(Trace)
    )


def test_a_fit_of_the_default_comes_back_with_its_certificate(tmp_path, target):
    fit = tb.fit(target, key=3)
    back = tb.load(fit.save(tmp_path / "fit.npz"), target)
    assert str(back.certificate) == str(fit.certificate)
    assert list(back.certificate) == list(fit.certificate)
    for old, new in zip(fit.certificate.findings, back.certificate.findings, strict=True):
        assert type(old.detail) is type(new.detail), old.name
        assert eqx.tree_equal(vars(old.detail), vars(new.detail), typematch=True), old.name
        same = {f.name: getattr(old, f.name) for f in dataclasses.fields(old) if f.name != "detail"}
        # as text, because NaN is not itself
        assert str(same) == str({name: getattr(new, name) for name in same})
    assert back.summary().equals(fit.summary())
    assert same_bits(
        back.sample(5, 20, corrected=True)["x"], fit.sample(5, 20, corrected=True)["x"]
    )


def test_what_a_finding_points_at_is_saved_too(tmp_path):
    """Arrays inside of tuples inside of lists: the other mode that the search found."""
    target = tb.from_log_density(
        lambda p: jnp.logaddexp(-0.5 * (p["x"] - 4) ** 2, -0.5 * (p["x"] + 4) ** 2), {"x": 0.0}
    )
    fit = a_fit(Gaussian.full(1).moved([4.0]), target)
    rivals = fit.certificate.rivals
    assert rivals
    back = tb.load(fit.save(tmp_path / "fit.npz"), target).certificate.rivals
    assert len(back) == len(rivals)
    for old, new in zip(rivals, back, strict=True):
        assert type(new) is type(old)
        assert eqx.tree_equal(vars(old), vars(new), typematch=True)


def test_a_certificate_that_was_computed_later_is_saved_too(tmp_path, target):
    fit = a_fit(Gaussian.full(DIM), target)
    assert tb.load(fit.save(tmp_path / "before.npz"), target).checked is None
    explained = fit.certificate.explain()
    assert tb.load(fit.save(tmp_path / "after.npz"), target).checked.explain() == explained


def test_equal_fits_are_equal_files(tmp_path, target):
    one, two = (
        a_fit(members()["full"], target).save(tmp_path / name).read_bytes()
        for name in ("one", "two")
    )
    assert one == two


def test_a_fit_can_be_continued_from_a_file(tmp_path, target):
    back = tb.load(a_fit(Gaussian.full(DIM), target).save(tmp_path / "fit.npz"), target)
    again = tb.fit(target, back.q, tb.objectives.ELBO(), tb.solvers.NaturalGradient(), key=0)
    assert again.result is tb.Result.converged


# files that are not the right one


@pytest.fixture
def saved(tmp_path, target):
    return a_fit(members()["full"], target).save(tmp_path / "fit.npz")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_says_so(saved, target, kept):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(
        ValueError, match=r"'.*fit\.npz' is truncated or damaged .* fit again with the same `key`"
    ):
        load_parts(saved, target)


def test_a_damaged_file_says_so(saved, target):
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 0xFF
    saved.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_parts(saved, target)


def other_zip(path: Path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("hello"),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path, x=np.zeros(3)),
        other_zip,
    ],
    ids=["text", "empty", "npz", "zip"],
)
def test_a_file_of_something_else_says_so(tmp_path, target, write):
    path = tmp_path / "other.npz"
    write(path)
    with pytest.raises(
        ValueError, match=r"'.*other\.npz' is not a fit that tightbound wrote\. Pass the path"
    ):
        load_parts(path, target)


def test_a_missing_file_says_so(tmp_path, target):
    with pytest.raises(
        FileNotFoundError, match=r"'.*none\.npz' cannot be read: No such file .* fit\.save"
    ):
        load_parts(tmp_path / "none.npz", target)


def test_another_target_is_refused_by_its_dimension(saved):
    with pytest.raises(
        ValueError,
        match=(
            r"has 5 coordinates \(x\[0\], .*\), but `target` has 6 \(x\[0\].*Pass the target that"
        ),
    ):
        load_parts(saved, gaussian_target(6))


def test_another_target_is_refused_by_its_names(saved):
    with pytest.raises(
        ValueError,
        match=r"coordinate 0 is called 'x\[0\]', that of `target` 'y\[0\]'\. Pass the target that",
    ):
        load_parts(saved, gaussian_target(name="y"))


def rewritten(path: Path, change) -> Path:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    about = json.loads(entries["fit.json"])
    change(about)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**entries, "fit.json": json.dumps(about)}.items():
            archive.writestr(name, content)
    return path


def test_a_newer_format_is_refused(saved, target):
    with pytest.raises(ValueError, match=r"written by a newer tightbound .* Upgrade"):
        load_parts(rewritten(saved, lambda about: about.update(format=99)), target)


def test_an_older_format_is_refused(saved, target):
    with pytest.raises(ValueError, match=r"written by an older tightbound .* Fit again"):
        load_parts(rewritten(saved, lambda about: about.update(format=1)), target)


@pytest.mark.parametrize(
    "name",
    ["gaussian.np", "gaussian.namespace", "..fit.Fit", "gone.Gone", "gaussian.Gone", "os.system"],
)
def test_nothing_but_families_is_built_from_a_file(saved, target, name):
    with pytest.raises(ValueError, match="which this version of tightbound does not have"):
        load_parts(
            rewritten(saved, lambda about: about["fields"]["q"].update({"is": name})), target
        )


def test_a_family_with_other_fields_is_refused(saved, target):
    def forget(about):
        del about["fields"]["q"]["fields"]["mean"]

    with pytest.raises(
        ValueError, match=r"Gaussian with the fields scale, but this version's has mean, scale"
    ):
        load_parts(rewritten(saved, forget), target)


class Foreign(Gaussian):
    """A family that is not below tightbound.families."""


def test_a_family_from_elsewhere_is_not_saved_but_explained(tmp_path, target):
    with pytest.raises(
        ValueError, match=r"save: 'q' is a Foreign from the module .*tree_serialise_leaves"
    ):
        save(a_fit(Foreign(np.zeros(DIM), Gaussian.full(DIM).scale), target), tmp_path / "fit.npz")
    assert not list(tmp_path.iterdir())


# writing


def test_a_missing_folder_is_named(tmp_path, target):
    with pytest.raises(
        FileNotFoundError,
        match=r"'.*gone/fit\.npz'\. The folder '.*gone' does not exist: create it",
    ):
        save(a_fit(Gaussian.full(DIM), target), tmp_path / "gone" / "fit.npz")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(
        IsADirectoryError, match=r"It is a folder\. Pass the path of a file .* Nothing is lost"
    ):
        write_whole(tmp_path, b"new", "report")
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(NotADirectoryError, match="The report cannot be written to"):
        write_whole(tmp_path / "file" / "report.html", b"new", "report")


def test_what_is_there_stays_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "fit.npz"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device\. Pass the path"):
        write_whole(path, b"new", "fit")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["fit.npz"]


def test_a_file_keeps_its_mode_and_a_link_stays_a_link(tmp_path):
    path, link = tmp_path / "fit.npz", tmp_path / "link.npz"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    assert write_whole(link, b"new", "fit") == link
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_device_is_written_to_and_not_replaced():
    write_whole("/dev/null", b"new", "report")
    assert Path("/dev/null").is_char_device()
