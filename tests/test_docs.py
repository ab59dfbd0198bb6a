"""The docs are true: links, names and citations on every page.

And the checker sees what is wrong.
"""

import ast
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tightbound as tb

pytest.importorskip(
    "markdown_it", reason="the docs are read with markdown-it-py, a development dependency"
)

ROOT = Path(__file__).parents[1]
ROOMS = (
    "amortised",
    "certify",
    "estimators",
    "families",
    "objectives",
    "solvers",
    "targets",
)


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


def public_names():
    """What is public, as it is written behind `tb.`: `fit`, `families.Gaussian`."""
    return set(tb.__all__) | {
        f"{room}.{name}" for room in ROOMS for name in getattr(tb, room).__all__
    }


def dotted(node):
    """`a.b.c` of an expression that is nothing else, else None."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return before and f"{before}.{node.attr}"
    return None


def used_names(code):
    """The names behind `tb.` that a program uses; comments and strings do not count."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        name = dotted(node) or ""
        if name.startswith("tb."):
            found.add(name.removeprefix("tb."))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tightbound"):
            room = node.module.removeprefix("tightbound").removeprefix(".")
            found |= {f"{room}.{alias.name}".removeprefix(".") for alias in node.names}
    return found


def executed_names(build, pages):
    """The names that the executed blocks of these pages use."""
    tokens = (token for page in pages for token in build.flat(build.parse(page)))
    blocks = [t.content for t in tokens if t.type == "fence" and t.info == build.EXAMPLE]
    return set().union(*map(used_names, blocks))


def test_every_public_name_is_in_an_executed_example(build):
    missing = public_names() - executed_names(build, sorted((ROOT / "docs").rglob("*.md")))
    assert sorted(missing) == []


@pytest.mark.parametrize(
    "text",
    [
        "```python\ntb.families.Gaussian.full(2)\n```",  # not run
        "```python run\nx = 1  # tb.families.Gaussian\n```",
        "```python run\nx = 'tb.families.Gaussian'\n```",
        "```python run\ntb.amortised.heads.Gaussian(2)\n```",  # another one
        "`tb.families.Gaussian`",
    ],
)
def test_a_name_that_no_example_runs_is_missing(build, tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    assert "families.Gaussian" in public_names() - executed_names(build, [page])


@pytest.mark.parametrize(
    "code", ["tb.families.Gaussian.full(2)", "from tightbound.families import Gaussian as G"]
)
def test_a_name_that_an_example_runs_is_found(build, tmp_path, code):
    page = tmp_path / "page.md"
    page.write_text(f"```python run\n{code}\n```\n")
    assert "families.Gaussian" in executed_names(build, [page])


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_is_public(room):
    """Every class and function in its namespace is in `__all__`, and all that is there exists."""
    module = getattr(tb, room)
    there = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert there <= set(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)


def test_every_page_is_linked_from_the_index(build):
    index = ROOT / "docs" / "index.md"
    links = [
        str(token.attrGet("href"))
        for token in build.flat(build.parse(index))
        if token.type == "link_open"
    ]
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {index.name}
    assert sorted(pages - set(links)) == []
    assert len(set(links)) == len(links), "a page is linked twice"


@pytest.mark.slow
def test_examples_run_as_a_user_would_run_them(tmp_path):
    """In a process of its own: float64 off, promotion standard, nothing imported before."""
    command = [sys.executable, str(ROOT / "docs" / "build.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ran in" in done.stdout
