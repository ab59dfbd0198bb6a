"""The docs are true: links, names and citations on every page.

And that the checker sees what is wrong.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip(
    "markdown_it", reason="the docs are read with markdown-it-py, a development dependency"
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_names_and_citations(build):
    pages = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / name for name in build.BESIDE)]
    assert build.check(pages) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[there](nowhere.md)", "leads nowhere"),
        ("# One\n\n[here](#two)", "no heading for #two"),
        ("`tb.families.Gausian.full(2)`", "tb.families.Gausian.full does not exist"),
        ("```python\nfit = tb.fitt(target)\n```", "tb.fitt does not exist"),
        ("```python\nfit = (\n```", "does not compile"),
    ],
)
def test_the_checker_sees(build, tmp_path, text, fault):
    page = tmp_path / "page.md"
    page.write_text(text)
    (found,) = build.faults(page, build.parse(page))
    assert fault in found


def test_good_pages_have_no_faults(build, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# What `tb.fit` does: a list\n\n[here](#what-tbfit-does-a-list),"
        " `tb.families.Gaussian.full`"
    )
    assert list(build.faults(page, build.parse(page))) == []


def test_a_citation_of_a_missing_heading_is_seen(build, tmp_path):
    (tmp_path / "part.py").write_text(
        'source = "docs/certificate.md, horoscope"\nother = "docs/nothing.md"\n'
    )
    first, second = build.wrong_citations(tmp_path)
    assert "horoscope" in first
    assert "docs/nothing.md" in second


def test_an_example_that_fails_is_seen_at_its_line(build, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python run\nx = 1\nassert x == 2, 'not so'\n```\n")
    (found,) = build.failed_examples(page, build.parse(page))
    assert "line 5" in found
    assert "not so" in found


def test_blocks_share_a_page_and_unmarked_ones_are_not_run(build, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python run\nx = 1\n```\n\n```python\nraise SystemError\n```\n\n```python run\nassert x"
        " == 1\n```\n"
    )
    assert list(build.failed_examples(page, build.parse(page))) == []


@pytest.mark.slow
def test_examples_run_as_a_user_would_run_them(tmp_path):
    """In a process of its own: float64 off, promotion standard, nothing imported before."""
    command = [sys.executable, str(ROOT / "docs" / "build.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ran in" in done.stdout
