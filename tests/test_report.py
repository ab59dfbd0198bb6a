"""The report's numbers are the fit's, user's text is text, and a browser has nothing to complain
about.
"""

import base64
import dataclasses
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound import report
from tightbound.certify.draws import moment_table
from tightbound.families import Gaussian, StudentT
from tightbound.loop import Trace
from tightbound.report.contents import facts, gather, worst_first
from tightbound.report.page import decimals, number, prose
from tightbound.results import MissingExtraError

EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Tables by id as rows of cell texts, all attributes, tags, and the text."""

    def __init__(self, source):
        super().__init__()
        self.tables, self.tags, self.attributes, self.text = {}, [], [], ""
        self.rows, self.cell = None, None
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "table":
            self.rows = self.tables[dict(attrs)["id"]] = []
        elif tag == "tr" and self.rows is not None:
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None
        elif tag == "table":
            self.rows = None

    def handle_data(self, data):
        self.text += data
        if self.cell and self.rows:
            self.rows[-1][-1] += data

    def images(self):
        return {name: uri for name, uri in self.attributes if name == "src"}


def parsed(number_as_text):
    special = {"–": np.nan, "∞": np.inf, "−∞": -np.inf}
    return special.get(number_as_text) if number_as_text in special else float(
        number_as_text.replace("−", "-").replace(",", "")
    )  # fmt: skip


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
def fit():
    """Names to be escaped, and a q that the weights correct.

    Too narrow by a fifth in one coordinate of N(0, I).
    """
    target = tb.from_log_density(
        lambda p: -0.5 * ((p["a & b"] ** 2).sum() + p[EVIL] ** 2), {EVIL: 0.0, "a & b": np.zeros(2)}
    )
    found = tb.fit(
        target,
        tb.families.Gaussian.full(3),
        tb.objectives.ELBO(),
        tb.solvers.NaturalGradient(),
        key=1,
    )
    trace = Trace(np.array([1e6, 5.0, 3.0, -2.7]), np.ones(4), np.arange(4.0) * 100)
    return dataclasses.replace(
        found, q=tb.families.Gaussian.full(3).moved(np.zeros(3), [0.8, 1.0, 1.0]), trace=trace
    )


@pytest.fixture(scope="module")
def path(fit, tmp_path_factory):
    return fit.report(tmp_path_factory.mktemp("report") / "my_report.html")


@pytest.fixture(scope="module")
def source(path):
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_the_summary_is_the_fits(fit, page):
    head, *rows = page.tables["summary"]
    table = fit.summary()
    assert head == ["value", *table.columns]
    assert [row[0] for row in rows] == list(table.index)
    for row, (_, expected) in zip(rows, table.iterrows(), strict=True):
        numbers = [expected[name] for name in table.columns if name != "draws"]
        np.testing.assert_allclose(
            [parsed(cell) for cell in row[1:-1]], numbers, atol=0.006 * expected["sd"]
        )
        assert row[-1] == expected["draws"]
    assert "corrected" in [row[-1] for row in rows]  # else this test would see less than it should


def test_the_findings_are_the_certificates(fit, page):
    _, *rows = page.tables["findings"]
    assert [row[0] for row in rows] == list(fit.certificate)
    for row, finding in zip(rows, fit.certificate.values(), strict=True):
        assert row[1].split() == [
            {"pass": "✓", "caution": "!", "fail": "✕"}[finding.verdict],
            finding.verdict,
        ]
        np.testing.assert_allclose(parsed(row[2]), finding.value, rtol=0.006)
        np.testing.assert_allclose(parsed(row[3]), finding.stderr, rtol=0.06)
        assert (parsed(row[4]) if row[4] else None) == (
            None if finding.threshold is None else pytest.approx(finding.threshold, rel=0.006)
        )
        assert finding.why.replace("`", "") in row[5]
        assert finding.source in row[5]


def test_the_verdict_is_there_in_plain_words(fit, page):
    certificate = fit.certificate
    assert certificate.verdict == "caution"
    assert certificate.verdict.upper() in page.text
    for line in certificate.explain().splitlines()[1:]:
        assert line.strip().removeprefix("- ").replace("`", "") in page.text
    assert str(fit.result) in page.text
    assert f"{fit.evaluations:,} for the fit" in page.text
    assert dict(page.attributes)["lang"] == "en"
    assert ("class", f"verdict {certificate.verdict}") in page.attributes


def test_user_text_is_escaped(source, page):
    assert EVIL in page.text  # as text
    assert EVIL not in source
    assert "script" not in page.tags
    assert "a &amp; b[0]" in source


def test_the_page_asks_nobody_for_anything(source, page):
    assert (
        "content",
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    ) in page.attributes
    addresses = [
        value for name, value in page.attributes if name in ("src", "href", "srcset", "action")
    ]
    assert all(address.startswith("data:") for address in addresses)
    assert "url(" not in source
    assert "@import" not in source
    assert ("href", "data:,") in page.attributes  # else a browser asks for favicon.ico


def test_the_plots_are_there_with_a_text_for_each(page):
    images = [value for name, value in page.attributes if name == "src"]
    texts = [value for name, value in page.attributes if name == "alt"]
    assert len(images) == len(texts) == 4
    assert all(texts)
    for uri in images:
        kind, content = re.fullmatch(r"data:image/(svg\+xml|png);base64,(.*)", uri).groups()
        start = {"png": b"\x89PNG", "svg+xml": b"<?xml"}[kind]
        assert base64.b64decode(content, validate=True).startswith(start)


def test_the_same_fit_gives_the_same_page(fit, source, tmp_path):
    assert fit.report(tmp_path / "my_report.html").read_text(encoding="utf-8") == source


def test_the_heading_is_the_files_name_or_the_given_title(fit, page, tmp_path):
    assert page.text.lstrip().startswith("My report")
    given = report.write(fit, tmp_path / "x.html", title="<b> & co").read_text(encoding="utf-8")
    assert "<h1>&lt;b&gt; &amp; co</h1>" in given
    assert f"<title>&lt;b&gt; &amp; co: {fit.certificate.verdict}</title>" in given


# what is unusual


def write(fit, tmp_path):
    return Page(report.write(fit, tmp_path / "r.html").read_text(encoding="utf-8"))


def standing_for(fit, **changed):
    """A fit with some attributes replaced, as any object with the attributes of a fit may be
    reported.
    """
    names = (
        "q",
        "target",
        "result",
        "steps",
        "trace",
        "evaluations",
        "seconds",
        "key",
        "seed",
        "certificate",
        "elbo",
        "summary",
    )
    return SimpleNamespace(**{name: getattr(fit, name) for name in names} | changed)


def test_the_corrected_moments_are_those_of_the_law(fit, page):
    row = next(row for row in page.tables["summary"] if row[0] == EVIL)
    assert row[-1] == "corrected"
    assert parsed(row[2]) == pytest.approx(1.0, abs=0.05)


def test_any_object_with_the_attributes_of_a_fit_will_do(fit, page, tmp_path):
    assert write(standing_for(fit), tmp_path).tables == page.tables


def test_a_poor_q_is_shown_without_a_correction(fit, tmp_path):
    poor = tb.families.Gaussian.full(3).moved(np.full(3, 6.0))
    away = dataclasses.replace(fit, q=poor)
    assert away.certificate.verdict == "fail"
    shown = write(away, tmp_path)
    assert (
        shown.text.count(
            "Only q is shown: its importance weights are not good enough to correct it."
        )
        == 2
    )
    assert "FAIL" in shown.text


def test_a_fit_without_steps_has_no_path(fit, tmp_path):
    still = standing_for(fit, trace=Trace(np.empty(0), np.empty(0), np.empty(0)))
    assert len([name for name, _ in write(still, tmp_path).attributes if name == "src"]) == 3


def test_a_long_noisy_path_is_thinned(fit, tmp_path):
    steps = np.arange(20_000.0)
    trace = Trace(
        1e6 * np.exp(-steps) + np.random.default_rng(0).normal(size=len(steps)), steps, steps
    )
    write(standing_for(fit, trace=trace), tmp_path)
    assert (tmp_path / "r.html").stat().st_size < 2_000_000


@pytest.mark.parametrize(
    "name", ["$x^", "a$b$", "line\nbreak", "`tick", "変数", "n" * 300, "50%", "_under_"]
)
def test_any_name_can_be_plotted(name, tmp_path):
    target = tb.from_log_density(lambda p: -0.5 * (p[name] ** 2).sum(), {name: np.zeros(2)})
    assert f"{name}[0]" in write(tb.fit(target), tmp_path).text


def test_one_value_has_no_pairs(tmp_path):
    shown = write(tb.fit(tb.from_log_density(lambda p: -0.5 * p["x"] ** 2, {"x": 0.0})), tmp_path)
    assert ("id", "pairs") not in shown.attributes
    assert ("id", "marginals") in shown.attributes


def test_constant_and_overflowing_values_are_not_plotted(tmp_path):
    def derived(p):
        return {"one": jnp.ones(()), "huge": jnp.exp(1e4 * jnp.abs(p["x"]))}

    target = tb.from_log_density(lambda p: -0.5 * p["x"] ** 2, {"x": 0.0}, derived=derived)
    with np.errstate(all="ignore"):
        shown = write(tb.fit(target), tmp_path)
    assert "Histograms of x." in [value for name, value in shown.attributes if name == "alt"]


def test_many_values_are_cut_to_those_that_matter(tmp_path):
    target = tb.from_log_density(lambda p: -0.5 * (p["x"] ** 2).sum(), {"x": np.zeros(250)})
    shown = write(tb.fit(target), tmp_path)
    assert len(shown.tables["summary"]) == 201
    assert "200 of 250 values" in shown.text


def test_worst_first_follows_the_correction():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 4))
    # moves the mean of column 2 by 0.5, that of 1 by 0.2, no other
    weights = np.exp(0.5 * x[:, 2] + 0.2 * x[:, 1])
    table = moment_table(("a", "b", "c", "d"), x, weights / weights.sum())
    assert list(worst_first(table)) == [2, 1, 0, 3]


def test_contents_rank_by_the_finding_moments(fit):
    assert gather(fit).names[gather(fit).worst[0]] == fit.certificate["moments"].where[0] == EVIL


@pytest.mark.parametrize(
    ("q", "shown"),
    [
        (Gaussian.full(3), "Gaussian (full)"),
        (Gaussian.low_rank(3, 1), "Gaussian (low rank)"),
        (StudentT.full(3), "StudentT"),
    ],
)
def test_facts_name_the_covariance_of_a_gaussian_alone(fit, q, shown):
    other = dataclasses.replace(fit, q=q, checked=fit.certificate)
    assert dict(facts(other))["Approximation"] == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0123456, "0.01235"),
        (-2.0, "−2"),
        (np.nan, "–"),
        (np.inf, "∞"),
        (-np.inf, "−∞"),
        (1234567.0, "1.235e+06"),
    ],
)
def test_number(value, shown):
    assert number(value) == shown


def test_decimals_follow_the_spread():
    assert decimals([4.39711, -1e-17, 3.3322], 3.3322) == ["4.40", "0.00", "3.33"]
    assert decimals([1234.5678, np.nan], 0.012) == ["1,234.5678", "–"]
    assert decimals([1.0, 2.0], 0.0) == ["1", "2"]
    assert decimals([-0.5], np.nan) == ["−0.5"]


def test_prose_marks_code_and_escapes_it():
    assert prose("move `<a>` & b") == "move <code>&lt;a&gt;</code> &amp; b"


# what goes wrong


def test_a_missing_folder_is_named(fit, tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"The report cannot be written to '.*gone/r\.html'\. The folder .*create it",
    ):
        fit.report(tmp_path / "gone" / "r.html")
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_named(fit, tmp_path):
    with pytest.raises(
        IsADirectoryError, match=r"'.*' *\. It is a folder\. Pass .* Nothing is lost"
    ):
        fit.report(tmp_path)


def test_without_matplotlib_it_says_what_to_install(fit, tmp_path, monkeypatch):
    for name in [
        name
        for name in sys.modules
        if name.split(".")[0] == "matplotlib" or name == "tightbound.report.plots"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        MissingExtraError, match=r"needs `matplotlib`.*pip install 'tightbound\[plots\]'"
    ):
        fit.report(tmp_path / "r.html")


# a browser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
    "--window-size=1200,2400",
    "--dump-dom",
]


@pytest.mark.chromium
@pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser, google-chrome or chrome on the PATH"
)
def test_a_browser_opens_it_without_a_complaint(path, tmp_path):
    def opened(file):
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]

    dom, complaints = opened(path)
    assert not complaints
    assert 'id="findings"' in dom
    assert "<script" not in dom
    # negative control: a page that has something to complain about is heard
    broken = tmp_path / "broken.html"
    broken.write_text(
        path.read_text(encoding="utf-8").replace("</main>", "<script>1</script></main>"),
        encoding="utf-8",
    )
    assert opened(broken)[1]
