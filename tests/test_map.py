"""The maps of the house against the house: CONTRIBUTING.md, docs/architecture.md and its picture.

What they name exists, what stands at the top of src is named, and the picture was drawn from the
imports of today.
"""

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tightbound"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGE = ROOT / "docs" / "architecture.md"
PATH = r"[\w.][\w./-]*(?:\.(?:py|md|txt|toml)|/)"


def paths_in(text: str) -> set[str]:
    """Files and folders in backticks, and those at the beginning of the lines of a tree."""
    prose, trees = [], []
    for i, part in enumerate(re.split(r"^```.*$", text, flags=re.MULTILINE)):
        (trees if i % 2 else prose).append(part)
    named = set(re.findall(rf"`({PATH})`", "\n".join(prose)))
    for tree in trees:
        named |= set(re.findall(rf"^  ({PATH})(?:\s|$)", tree, flags=re.MULTILINE))
    return named


def missing(text: str, root: Path, source: Path) -> list[str]:
    """Named paths that are no file or folder of the repository, of src, or of a room in it."""
    places = [root, source]
    return sorted(
        path
        for path in paths_in(text)
        if not any((place / path).exists() for place in places)
        # a file without its room, which the sentence around it has named
        and ("/" in path or not any(source.rglob(path)))
    )


def unnamed(text: str, source: Path) -> list[str]:
    """Files and rooms at the top of src that the text does not name as paths."""
    rooms = {f"{path.parent.name}/" for path in source.glob("*/__init__.py")}
    files = {path.name for path in source.glob("*.py")} - {"__init__.py", "__main__.py"}
    return sorted((rooms | files) - paths_in(text))


@pytest.mark.parametrize("page", [CONTRIBUTING, PAGE], ids=lambda page: page.name)
def test_what_a_map_names_exists(page):
    text = page.read_text(encoding="utf-8")
    assert len(paths_in(text)) > 20
    assert missing(text, ROOT, SOURCE) == []


def test_the_page_names_every_file_and_room_at_the_top():
    assert unnamed(PAGE.read_text(encoding="utf-8"), SOURCE) == []


def test_contributing_names_every_room():
    left = unnamed(CONTRIBUTING.read_text(encoding="utf-8"), SOURCE)
    assert [name for name in left if name.endswith("/")] == []


def test_the_picture_is_drawn_from_the_imports_of_today():
    """`python docs/draw_architecture.py` draws it anew."""
    drawing = runpy.run_path(str(ROOT / "docs" / "draw_architecture.py"))
    with Image.open(drawing["PICTURE"]) as picture:
        assert picture.info["Drawn"] == drawing["in_words"](*drawing["layers_and_arrows"]())


# Negative controls.

TREE = """
The `families/` and `loop.py`, see `certify/standards.py`, `standards.py` and `docs/page.md`.

```
src/
  fit.py       start here
  plan/        what gone.py did
```

`y.shape` and `f(x/y)` are no paths, nor is solvers/.
"""


@pytest.fixture
def house(tmp_path):
    source = tmp_path / "src" / "tightbound"
    for name in ("families/__init__.py", "plan/__init__.py", "certify/standards.py", "fit.py",
                 "loop.py", "__init__.py", "../../docs/page.md"):  # fmt: skip
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path, source


def test_a_true_map_passes(house):
    assert paths_in(TREE) == {
        "families/", "loop.py", "certify/standards.py", "standards.py", "docs/page.md", "fit.py",
        "plan/",
    }  # fmt: skip
    assert missing(TREE, *house) == []
    assert unnamed(TREE, house[1]) == []


@pytest.mark.parametrize("name", ["loop.py", "families/__init__.py", "certify/standards.py"])
def test_a_path_that_is_gone_is_seen(house, name):
    root, source = house
    (source / name).unlink()
    if name.startswith("families"):
        (source / "families").rmdir()
    gone = name.removesuffix("__init__.py")
    assert gone in missing(TREE, root, source)


@pytest.mark.parametrize("name", ["new.py", "solvers/__init__.py"])
def test_what_is_not_on_the_map_is_seen(house, name):
    path = house[1] / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert unnamed(TREE, house[1]) == [name.removesuffix("__init__.py")]


def test_an_arrow_more_is_another_picture():
    drawing = runpy.run_path(str(ROOT / "docs" / "draw_architecture.py"))
    floors, arrows = drawing["layers_and_arrows"]()
    said = drawing["in_words"](floors, arrows)
    assert ("fit", "plan") in arrows
    assert said != drawing["in_words"](floors, arrows - {("fit", "plan")})
    assert said != drawing["in_words"]([*floors, ["attic"]], arrows)
