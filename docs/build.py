"""Check the docs and render them: links lead somewhere, `tb.` names exist, Python blocks compile.

Usage: python docs/build.py [--out build/docs]. Where the docs are wrong: one line for each fault, and exit 1.
"""

import argparse
import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

DOCS = Path(__file__).parent
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


def faults(path: Path, tokens: list[Token]) -> Iterator[str]:
    for token in flat(tokens):
        if token.type == "link_open":
            href = str(token.attrGet("href")).partition("#")[0]
            if href and "://" not in href and not (path.parent / href).exists():
                yield f"{path.name}: the link to {href} leads nowhere."
        if token.type in ("code_inline", "fence"):
            for dotted in sorted(set(re.findall(r"\btb((?:\.[A-Za-z_]\w*)+)", token.content))):
                if not exists(dotted):
                    yield f"{path.name}: tb{dotted} does not exist."
        if token.type == "fence" and token.info == "python":
            try:
                compile(token.content, f"{path.name} (code block)", "exec")
            except SyntaxError as error:
                yield f"{path.name}: a Python block does not compile: {error}."


def render(markdown: MarkdownIt, tokens: list[Token], title: str) -> str:
    for token in flat(tokens):
        href = str(token.attrGet("href") or "")
        if token.type == "link_open" and "://" not in href and not href.startswith(".."):
            token.attrSet("href", re.sub(r"\.md(?=$|#)", ".html", href))
    body = markdown.renderer.render(tokens, markdown.options, {})
    return PAGE.format(title=html.escape(title), body=body)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the docs and render them to HTML.")
    parser.add_argument("--out", type=Path, default=DOCS.parent / "build" / "docs")
    out = parser.parse_args().out
    markdown = MarkdownIt("commonmark").enable("table")
    found, pages = [], sorted(DOCS.rglob("*.md"))
    for path in pages:
        tokens = markdown.parse(path.read_text(encoding="utf-8"))
        found += dict.fromkeys(faults(path, tokens))
        target = out / path.relative_to(DOCS).with_suffix(".html")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(render(markdown, tokens, path.stem.replace("-", " ")), encoding="utf-8")
    print("\n".join(found) if found else f"{len(pages)} pages in {out}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
