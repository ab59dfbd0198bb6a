"""The command line: its exit codes, what it prints and writes, and what it says to bad input."""

import csv
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import tightbound as tb
from tightbound.cli import main

NORMAL = """
    import numpy as np
    import tightbound as tb

    print("MODEL.py speaks")
    target = tb.from_log_density(lambda p: -0.5 * ((p["x"] - 3.0) ** 2).sum(), {"x": np.zeros(2)})
"""
BANANA = """
    import tightbound as tb

    def log_density(p):
        return -0.5 * p["x"] ** 2 - 50 * (p["y"] - 30 * p["x"] ** 2) ** 2

    target = tb.from_log_density(log_density, {"x": 0.0, "y": 0.0})
"""
TRUNCATED = """
    import jax.numpy as jnp
    import tightbound as tb

    def log_density(p):
        return jnp.where(p["x"] < 2.0, -0.5 * p["x"] ** 2, -jnp.inf)

    target = tb.from_log_density(log_density, {"x": 0.0})
"""
FUNCTION = """
    import tightbound as tb

    def target(data):
        squares = lambda p: ((data["y"] - p["mean"]) ** 2).sum()
        return tb.from_log_density(lambda p: -0.5 * squares(p), {"mean": 0.0})
"""
NUMPYRO = """
    import numpyro
    import numpyro.distributions as dist

    def model(size, y):
        mean = numpyro.sample("mean", dist.Normal(0, 100))
        with numpyro.plate("i", size):
            numpyro.sample("y", dist.Normal(mean, 1), obs=y)
"""
DATA = {"size": 4, "y": [1.0, 2.0, 3.0, 6.0]}


@pytest.fixture(scope="module", autouse=True)
def as_a_user():
    """The models here are a user's code: float64 off, JAX's standard promotion."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run `tightbound ...` in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return command


def write(name, content):
    Path(name).write_text(textwrap.dedent(content), encoding="utf-8")
    return name


def model(content):
    return write("model.py", content)


# a fit


def test_it_prints_summary_and_certificate(run):
    ran = run("fit", model(NORMAL), "--seed", 3)
    assert ran.code == 0
    target = tb.from_log_density(lambda p: -0.5 * ((p["x"] - 3.0) ** 2).sum(), {"x": np.zeros(2)})
    fit = tb.fit(target, key=3)
    assert fit.certificate.explain() in ran.out
    assert fit.summary().to_string(float_format=lambda value: f"{value:.4g}") in ran.out
    assert "PASS: Use it." in ran.out
    assert "The fit converged. Gaussian, " in ran.out
    assert ran.err == ""


def test_json_is_one_object_and_nothing_else(run):
    ran = run("fit", model(NORMAL), "--json")
    assert ran.code == 0
    shown = json.loads(ran.out)  # fails on a second object
    assert ran.out.count("\n") == 1
    assert "MODEL.py speaks" in ran.err
    assert (shown["verdict"], shown["result"], shown["seed"], shown["model"]) == (
        "pass",
        "converged",
        0,
        "model.py",
    )
    assert set(shown["summary"]) == {"x[0]", "x[1]"}
    assert shown["summary"]["x[0]"]["mean"] == pytest.approx(3.0, abs=0.01)
    assert shown["summary"]["x[1]"]["sd"] == pytest.approx(1.0, abs=0.05)
    lower, upper = shown["log_evidence"]
    assert lower - 1e-9 <= np.log(2 * np.pi) <= upper + 1e-9  # the integral of the density
    assert {finding["name"] for finding in shown["findings"]} >= {
        "finite",
        "converged",
        "khat",
        "evidence",
        "moments",
    }


def test_json_has_no_nan_and_no_infinity(run):
    def refuse(constant):
        raise AssertionError(constant)

    # k-hat is -inf here, and some s.e. are NaN
    json.loads(run("fit", model(NORMAL), "--json").out, parse_constant=refuse)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(run):
    def numbers(seed):
        return json.loads(run("fit", model(BANANA), "--json", "--seed", seed).out)["summary"]

    assert numbers(1) == numbers(1) != numbers(2)


def test_out_has_report_fit_and_summary(run, tmp_path):
    ran = run("fit", model(NORMAL), "--out", "deep/folder")
    assert ran.code == 0
    out = tmp_path / "deep" / "folder"
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "fit.npz",
        "summary.csv",
        "summary.json",
    }
    assert "Written to deep/folder: fit.npz, summary.csv, summary.json, report.html." in ran.out
    target = tb.from_log_density(lambda p: -0.5 * ((p["x"] - 3.0) ** 2).sum(), {"x": np.zeros(2)})
    table = tb.load(out / "fit.npz", target).summary()
    shown = json.loads((out / "summary.json").read_text())
    with (out / "summary.csv").open(newline="") as file:
        rows = {row["parameter"]: row for row in csv.DictReader(file)}
    for name, row in table.iterrows():
        for column in table.columns[:-1]:
            assert float(rows[name][column]) == shown["summary"][name][column] == row[column]
    assert "<h1>model</h1>" in (out / "report.html").read_text(encoding="utf-8")


def test_a_saved_fit_is_certified_anew_and_other_data_are_found_out(run):
    """N(3, 1) certified against itself passes.

    Against data two sds away it is pulled there by exactly that much.
    """
    run("fit", model(NORMAL), "--out", "saved")
    again = run("check", "saved/fit.npz", model(NORMAL))
    assert again.code == 0
    assert "PASS: Use it." in again.out
    moved = run("check", "saved/fit.npz", write("moved.py", NORMAL.replace("3.0", "5.0")), "--json")
    shown = json.loads(moved.out)
    assert (moved.code, shown["verdict"]) == (1, "fail")
    converged = next(finding for finding in shown["findings"] if finding["name"] == "converged")
    assert converged["value"] == pytest.approx(2.0, abs=0.1)


def test_a_check_of_what_is_not_a_fit_is_explained(run):
    ran = run("check", write("fit.npz", "nothing"), model(NORMAL))
    assert ran.code == 2
    assert "fit.npz" in ran.err
    assert run("check", "absent.npz", model(NORMAL)).code == 2


def test_a_fail_is_exit_code_1(run):
    ran = run("fit", model(TRUNCATED))
    assert ran.code == 1
    assert "FAIL: Do not use it." in ran.out
    assert "not finite at" in ran.out


def test_a_budget_stops_the_search_with_what_there_is(run):
    ran = run("fit", model(BANANA), "--seconds", "1e-9")
    assert "The fit stopped at its `budget` before it converged." in ran.out
    assert "mean" in ran.out


def test_no_usable_fit_is_exit_code_1_and_what_there_is_is_kept(run, monkeypatch):
    def hopeless(target, **_):
        good = fit(target)
        return tb.Fit(good.q, target, tb.Result.nonfinite, 1, good.trace, good.spent, (0, 0))

    fit = tb.fit
    monkeypatch.setattr(sys.modules["tightbound.fit"], "fit", hopeless)
    ran = run("fit", model(NORMAL), "--json", "--out", "out")
    assert ran.code == 1
    assert json.loads(ran.out)["result"] == "nonfinite"
    assert {path.name for path in Path("out").iterdir()} == {"fit.npz"}
    assert "NaN or infinite" in run("fit", "model.py").out


# data


@pytest.mark.parametrize("content", [FUNCTION, NUMPYRO], ids=["function", "numpyro"])
@pytest.mark.parametrize("kind", ["json", "npz"])
def test_the_data_reach_the_model(run, content, kind):
    if kind == "json":
        Path("data.json").write_text(json.dumps(DATA))
    else:
        np.savez("data.npz", size=4, y=np.array(DATA["y"]))
    ran = run("fit", model(content), "--data", f"data.{kind}", "--json")
    shown = json.loads(ran.out)["summary"]["mean"]
    assert shown["mean"] == pytest.approx(3.0, abs=0.02)  # of the data; the prior has no weight
    assert shown["sd"] == pytest.approx(0.5, abs=0.03)


def test_columns_of_a_csv_reach_the_model(run):
    write("data.csv", "\ufeffy, group\n1,a\n2,a\n3.0,b\n6,b\n")
    content = FUNCTION.replace(
        "return", "assert list(data['group']) == ['a', 'a', 'b', 'b']\n        return"
    )
    ran = run("fit", model(content), "--data", "data.csv", "--json")
    assert json.loads(ran.out)["summary"]["mean"]["mean"] == pytest.approx(3.0, abs=0.02)


def test_a_model_may_import_its_neighbours(run):
    write("neighbour.py", "CENTRE = 3.0\n")
    ran = run("fit", model(NORMAL.replace("3.0", "__import__('neighbour').CENTRE")), "--json")
    assert json.loads(ran.out)["summary"]["x[0]"]["mean"] == pytest.approx(3.0, abs=0.01)


def test_a_model_may_have_defaults_for_its_data(run):
    content = NUMPYRO.replace("(size, y)", "(size=2, y=np.ones(2))").replace(
        "import numpyro\n", "import numpy as np, numpyro\n"
    )
    assert run("fit", model(content)).code == 0


BAD_DATA = {
    "text.json": ("{", "Expecting property name"),
    "list.json": ("[1, 2]", "must be an object with names"),
    "ragged.json": ('{"y": [[1, 2], [3]]}', "'y' is ragged"),
    "null.json": ('{"y": [1, null]}', "'y' holds null"),
    "deep.json": ('{"a": {"y": [1, null]}}', "'a.y' holds null"),
    "empty.csv": ("y\n", "a line of names and at least one line of data"),
    "twice.csv": ("y,y\n1,2\n", "must name each column once; it is 'y', 'y'"),
    "short.csv": ("x,y\n1,2\n3\n", "row 3 has 1 cells, but there are 2 names"),
    "text.npz": ("hello", "not an .npz file"),
    "data.xlsx": ("", "'.xlsx' is no kind of file that can be read; pass .json, .csv, .npz"),
    "no_suffix": ("", "pass .json, .csv, .npz"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_are_explained(run, name):
    content, message = BAD_DATA[name]
    ran = run("fit", model(FUNCTION), "--data", write(name, content))
    assert ran.code == 2
    assert f"--data {name}: " in ran.err
    assert message in ran.err
    assert ran.out == ""


def test_an_npz_of_objects_is_refused(run):
    np.savez("data.npz", y=np.array([{}], dtype=object))
    ran = run("fit", model(FUNCTION), "--data", "data.npz")
    assert ran.code == 2
    assert "'y' holds Python objects, which are not loaded" in ran.err


def test_a_missing_data_file_is_named(run):
    ran = run("fit", model(FUNCTION), "--data", "none.json")
    assert (ran.code, ran.err) == (
        2,
        "--data none.json: the file cannot be read: No such file or directory.\n",
    )


# MODEL.py

THREE = "It must define one of three: `target`, a tightbound target"
BAD_MODELS = {
    "raises": (
        "x = 1\nraise KeyError('oops')",
        ['File "model.py", line 2, in <module>', "KeyError: 'oops'"],
    ),
    "syntax": ("x = (\n", ['File "model.py", line 1', "SyntaxError: '(' was never closed"]),
    "exits": ("import sys\nsys.exit(3)", ['File "model.py", line 2', "SystemExit: 3"]),
    "nothing": ("x = 1", ["model.py defines neither `target` nor `model`.", THREE]),
    "a number": ("target = 3", ["`target` in model.py is a int.", THREE]),
    "needs data": (
        FUNCTION,
        ["`target(data)` in model.py does not fit its data", "there is no --data FILE"],
    ),
    "model needs data": (
        NUMPYRO,
        ["`model(size, y)` in model.py does not fit", "'size'; there is no --data FILE"],
    ),
    "returns none": (
        "def target():\n    pass",
        ["`target` in model.py returned a NoneType, not a tightbound target."],
    ),
    "vector": (
        NORMAL.replace(".sum()", ""),
        [
            'File "model.py", line 6',
            "`log_density` returned shape (2,), but a log density is one number in nats.",
        ],
    ),
    "nan": (NORMAL.replace("-0.5", "np.nan"), ["model.py cannot be fitted:", "NaN"]),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_bad_model_is_explained(run, name):
    content, messages = BAD_MODELS[name]
    ran = run("fit", model(content))
    assert ran.code == 2
    for message in messages:
        assert message in ran.err
    assert "site-packages" not in ran.err  # no frames of ours or of a library
    assert "src/tightbound" not in ran.err


def test_an_error_inside_a_neighbour_is_shown_there(run):
    write("another.py", "def broken(p):\n    return p['nope']\n")
    ran = run("fit", model("import another\ndef target(data=1):\n    return another.broken({})\n"))
    assert ran.code == 2
    assert 'another.py", line 2, in broken' in ran.err


def test_data_for_a_finished_target_are_not_dropped_in_silence(run):
    Path("data.json").write_text("{}")
    ran = run("fit", model(NORMAL), "--data", "data.json")
    assert ran.code == 2
    assert "leave --data data.json unused" in ran.err


def test_data_that_a_model_does_not_take_are_named(run):
    Path("data.json").write_text('{"size": 4, "z": 1}')
    ran = run("fit", model(NUMPYRO), "--data", "data.json")
    assert ran.code == 2
    assert "missing a required argument: 'y'; data.json has size, z." in ran.err


def test_a_missing_model_is_named(run):
    ran = run("fit", "none.py")
    assert (ran.code, "MODEL.py: 'none.py' cannot be read" in ran.err) == (2, True)


# usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "MODEL requires an argument"),
        (["fit", "model.py", "--sed", "1"], 'Unknown option: "--sed"'),
        (["fit", "model.py", "--seed", "x"], 'unable to convert "x" into int'),
        (["fit", "model.py", "--tol", "0"], "--tol and --seconds must be positive"),
        (["fit", "model.py", "--seconds", "-1"], "--tol and --seconds must be positive"),
        (["fitt", "model.py"], 'Unknown command "fitt"'),
    ],
)
def test_bad_usage_is_exit_code_2(run, arguments, message):
    model(NORMAL)
    ran = run(*arguments)
    assert ran.code == 2
    assert message.replace('"', "") in " ".join(ran.err.replace("│", " ").split()).replace('"', "")
    assert ran.out == ""


def test_an_out_that_cannot_be_made_is_said_before_anything_runs(run):
    write("file", "")
    ran = run("fit", model(NORMAL), "--out", "file/folder")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("--out file/folder: the folder cannot be made: ")


def test_what_cannot_be_written_does_not_lose_the_rest(run):
    Path("out/report.html").mkdir(parents=True)
    ran = run("fit", model(NORMAL), "--out", "out", "--json")
    assert ran.code == 2
    assert json.loads(ran.out)["verdict"] == "pass"
    assert (
        "report.html was not written: The report cannot be written to 'out/report.html'. It is a"
        " folder." in ran.err
    )
    assert {path.name for path in Path("out").iterdir()} == {
        "report.html",
        "fit.npz",
        "summary.csv",
        "summary.json",
    }


def test_without_cyclopts_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    ran = run("--help")
    assert ran.code == 2
    assert "pip install 'tightbound[cli]'" in ran.err


def test_an_interruption_before_the_fit_is_said(run):
    ran = run("fit", model("raise KeyboardInterrupt"))
    assert (ran.code, ran.err) == (130, "Interrupted before there was a fit.\n")


def test_help_names_the_commands_and_options(run):
    assert all(command in run("--help").out for command in ("fit", "reproduce", "list"))
    ran = run("fit", "--help")
    assert ran.code == 0
    assert all(
        option in ran.out
        for option in ("MODEL", "--data", "--out", "--seed", "--json", "--tol", "--seconds")
    )


def test_help_imports_nothing_heavy():
    """Of what the command line itself imports: the package's `__init__` is put aside."""
    program = """
        import sys, types
        package = types.ModuleType("tightbound")
        package.__path__ = [sys.argv[1]]
        sys.modules["tightbound"] = package
        from tightbound.cli import main
        assert main(["fit", "--help"]) == 0
        heavy = {"jax", "numpy", "scipy", "matplotlib", "pandas", "xarray"} & set(sys.modules)
        assert not heavy, heavy
    """
    source = str(Path(tb.__file__).parent)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), source], check=True, capture_output=True
    )


# experiments


@pytest.fixture
def experiments(monkeypatch):
    import tightbound.experiments as module

    claims = {
        name: [
            {
                "claim": f"{name} claim",
                "source": "Table 1",
                "published": 1.0,
                "measured": np.float64(1.1),
                "ok": ok,
            }
        ]
        for name, ok in (("good", True), ("bad", False))
    }
    monkeypatch.setattr(module, "REGISTRY", {"good": "A table.", "bad": "A figure."}, raising=False)

    def fake_run(name, fast, **options):
        if "data" in options:
            raise module.OptionError("it takes no option `data`")
        note = f"fast={fast}, {options}"
        tables = {"a table": [{"n": 1, "kl": 0.5}, {"n": 2}]}
        return SimpleNamespace(
            name=name, claims=claims[name], note=note, ok=name == "good", tables=tables
        )

    monkeypatch.setattr(module, "run", fake_run)
    monkeypatch.setattr(module, "pictures", lambda result: {"a figure": b"PNG"})
    return module


def test_list_prints_what_there_is(run, experiments):
    ran = run("list")
    assert (ran.code, ran.out) == (0, "good  A table.\nbad   A figure.\n")


def test_reproduce_says_whether_a_claim_is_met(run, experiments):
    good, bad = run("reproduce", "good"), run("reproduce", "bad", "--json")
    line = "met      good claim: published 1.0, measured 1.1 (Table 1)\nfast=True, {}\n"
    assert (good.code, good.out) == (0, line)
    assert bad.code == 1
    assert json.loads(bad.out)["claims"][0]["measured"] == 1.1


def test_reproduce_has_a_fast_a_reference_and_a_full_setting(run, experiments):
    assert "fast=False, {}" in run("reproduce", "good", "--full").out
    assert "fast=True, {'reference': True}" in run("reproduce", "good", "--reference").out
    both = run("reproduce", "good", "--full", "--reference")
    assert both.code == 2
    assert "exclude each other" in both.err


def test_reproduce_writes_claims_tables_and_pictures(run, experiments, tmp_path):
    ran = run("reproduce", "good", "--out", tmp_path / "new")
    files = {path.name: path for path in (tmp_path / "new").iterdir()}
    assert set(files) == {"good.json", "good-a-table.csv", "good-a-figure.png"}
    assert files["good-a-table.csv"].read_text().split() == ["n,kl", "1,0.5", "2,"]
    assert files["good-a-figure.png"].read_bytes() == b"PNG"
    assert json.loads(files["good.json"].read_text())["claims"][0]["ok"] is True
    assert "Written to" in ran.out


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_tables(
    run, experiments, tmp_path, monkeypatch
):
    def pictures(result):
        raise tb.results.MissingExtraError("matplotlib", "plots", "A picture")

    monkeypatch.setattr(experiments, "pictures", pictures)
    ran = run("reproduce", "good", "--out", tmp_path)
    assert ran.code == 2
    assert "pip install 'tightbound[plots]'" in ran.err
    assert (tmp_path / "good-a-table.csv").exists()


def test_an_option_that_an_experiment_does_not_take_is_exit_code_2(run, experiments, tmp_path):
    ran = run("reproduce", "good", "--data", tmp_path)
    assert ran.code == 2
    assert "no option `data`" in ran.err


def test_an_unknown_experiment_is_exit_code_2(run, experiments):
    ran = run("reproduce", "none")
    assert ran.code == 2
    assert "No experiment is called 'none'. They are: good, bad." in ran.err


def test_no_experiments_is_said(run, monkeypatch):
    monkeypatch.setattr("tightbound.experiments.REGISTRY", {}, raising=False)
    assert run("list").out == "There are no experiments in this version.\n"
    assert "There are none in this version." in run("reproduce", "any").err


# the examples that stand in the repository

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_example_works_with_and_without_its_data(run):
    without = json.loads(run("fit", EXAMPLES / "eight_schools.py", "--json").out)
    given = json.loads(
        run(
            "fit",
            EXAMPLES / "eight_schools.py",
            "--data",
            EXAMPLES / "eight_schools.json",
            "--json",
        ).out
    )
    assert without["summary"] == given["summary"]
    # mu and tau of the 10,000 reference draws of posteriordb,
    # eight_schools-eight_schools_noncentered
    assert given["summary"]["mu"]["mean"] == pytest.approx(4.4, abs=0.15)
    assert given["summary"]["tau"]["mean"] == pytest.approx(3.6, abs=0.15)
