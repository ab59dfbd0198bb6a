"""Check the docs, run their examples, and render them.

Links lead somewhere, headings in them too; `tb.` names exist; Python blocks compile; the pages and
headings that docstrings and findings cite are there. A block that starts with ```python run is
executed, in one namespace per page, as a user would.

Usage: python docs/build.py [--no-run] [--out build/docs]. Where the docs are wrong: one line for
each fault, and exit 1.
"""

import argparse
import contextlib
import html
import io
import itertools
import re
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")  # checked, not rendered
EXAMPLE = "python run"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
body {{ font: 16px/1.5 system-ui, sans-serif }}
pre, code {{ font-family: ui-monospace, monospace; font-size: .9em; background: #f5f5f5 }}
pre {{ padding: .8rem; overflow-x: auto }}
table {{ border-collapse: collapse }}
th, td {{ border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; vertical-align: top }}
blockquote {{ margin-left: 0; padding-left: 1rem; border-left: 4px solid #ccc }}
</style></head><body>
{body}</body></html>
"""


def flat(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def exists(dotted: str) -> bool:
    """Whether `tb` has the name, such as `.families.Gaussian.full`."""
    import tightbound

    value = tightbound
    for name in dotted.strip(".").split("."):
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


def headings(tokens: list[Token]) -> list[str]:
    inline = [
        after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"
    ]
    return [text.replace("`", "") for text in inline]


def anchor(heading: str) -> str:
    """As repositories render it: lower case, hyphens for spaces, no other punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def parse(path: Path) -> list[Token]:
    return markdown().parse(path.read_text(encoding="utf-8"))


def markdown() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def faults(path: Path, tokens: list[Token]) -> Iterator[str]:
    """What is wrong with a page without running it."""
    for token in flat(tokens):
        if token.type == "link_open":
            yield from broken_link(path, str(token.attrGet("href")))
        if token.type in ("code_inline", "fence"):
            for dotted in sorted(set(re.findall(r"\btb((?:\.[A-Za-z_]\w*)+)", token.content))):
                if not exists(dotted):
                    yield f"{path.name}: tb{dotted} does not exist."
        if token.type == "fence" and token.info.startswith("python"):
            try:
                compile(token.content, f"{path.name} (code block)", "exec")
            except SyntaxError as error:
                yield f"{path.name}: a Python block does not compile: {error}."


def broken_link(path: Path, href: str) -> Iterator[str]:
    if "://" in href:
        return
    file, _, fragment = href.partition("#")
    to = path.parent / file if file else path
    if not to.exists():
        yield f"{path.name}: the link to {file} leads nowhere."
    elif fragment and to.suffix == ".md" and fragment not in map(anchor, headings(parse(to))):
        yield f"{path.name}: {to.name} has no heading for #{fragment}."


def wrong_citations(source: Path = ROOT / "src") -> Iterator[str]:
    """Citations such as `docs/certificate.md, moments` in the source.

    The page and the heading must be there.
    """
    for path in sorted(source.rglob("*.py")):
        for page, heading in re.findall(
            r"(docs/[\w-]+\.md)(?:, ([\w -]+))?", path.read_text(encoding="utf-8")
        ):
            if not (ROOT / page).exists():
                yield f"{path.name} cites {page}, which does not exist."
            elif heading and heading.strip() not in headings(parse(ROOT / page)):
                yield (
                    f"{path.name} cites {page}, {heading.strip()}, but that page has no such"
                    " heading."
                )


def failed_examples(path: Path, tokens: list[Token]) -> Iterator[str]:
    """Run the blocks that ask for it; the first that raises ends the page."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for token in flat(tokens):
        if token.type != "fence" or token.info != EXAMPLE:
            continue
        first = (token.map or [0])[0] + 2
        started = time.perf_counter()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                # blank lines before the code, so that an error names the page's own line
                exec(compile("\n" * (first - 1) + token.content, str(path), "exec"), namespace)
        except Exception as error:
            inside = [f.lineno for f in _frames(error) if f.filename == str(path)]
            yield (
                f"{path.name}, line {inside[-1] if inside else first}: the example raised"
                f" {type(error).__name__}: {error}"
            )
            return
        print(f"{path.name}, line {first}: ran in {time.perf_counter() - started:.1f} s")


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(error.__traceback__))


def check(pages: list[Path]) -> list[str]:
    """Every fault of the pages and of what cites them, but for examples that fail."""
    found = [fault for path in pages for fault in dict.fromkeys(faults(path, parse(path)))]
    return [*found, *wrong_citations()]


def render(tokens: list[Token], title: str) -> str:
    for token, text in itertools.pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", anchor(text.content))
    for token in flat(tokens):
        href = str(token.attrGet("href") or "")
        if token.type == "link_open" and "://" not in href and not href.startswith(".."):
            token.attrSet("href", re.sub(r"\.md(?=$|#)", ".html", href))
    renderer = markdown()
    body = renderer.renderer.render(tokens, renderer.options, {})
    return PAGE.format(title=html.escape(title), body=body)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Check the docs, run their examples, and render them to HTML."
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs")
    parser.add_argument("--no-run", action="store_true", help="leave the examples alone")
    arguments = parser.parse_args()
    pages = sorted(DOCS.rglob("*.md"))
    found = check([*pages, *(ROOT / name for name in BESIDE)])
    for path in pages:
        if not arguments.no_run:
            found += failed_examples(path, parse(path))
        target = arguments.out / path.relative_to(DOCS).with_suffix(".html")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(render(parse(path), path.stem.replace("-", " ")), encoding="utf-8")
    print("\n".join(found) if found else f"{len(pages)} pages in {arguments.out}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
