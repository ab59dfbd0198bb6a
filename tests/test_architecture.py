"""Imports run one way (CONTRIBUTING.md, "The layout"), as read from the source: anywhere in a file."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = "tightbound"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

# Lowest first. A module may import from its own group and from those above it in this list.
# `__init__` is the package itself: importing a public name from `tightbound` is an import from the
# top.
LAYERS = [
    {"_types", "_numerics", "results"},
    {"families"},
    {"targets"},
    {"objectives"},
    {"estimators"},
    {"search"},
    {"starts"},
    {"solvers"},
    {"loop"},
    {"certify"},
    {"report", "summary", "storage", "datatree", "progress"},
    {"amortised"},
    {"plan"},
    {"fit"},
    {"batch", "compare", "compare_estimators", "update", "refine"},
    {"cli"},
    {"experiments", "testing", "__init__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def module_name(path: Path, root: Path) -> str:
    """`families.gaussian` for families/gaussian.py, `families` for its __init__.py, `__init__` for
    ours.
    """
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"


def imported_names(path: Path, root: Path) -> set[str]:
    """Dotted names below the package that the file imports; '' is the package itself."""
    folder = path.relative_to(root).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                head, _, rest = alias.name.partition(".")
                if head == PACKAGE:
                    # Without `as`, `import tightbound.x` binds `tightbound`, and with it
                    # everything.
                    found |= {rest} if alias.asname else {rest, ""}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = folder[: len(folder) - (node.level - 1)]
                base += tuple(node.module.split(".")) if node.module else ()
            else:
                head, *base = (node.module or "").split(".")
                if head != PACKAGE:
                    continue
            found |= {".".join((*base, alias.name)) for alias in node.names}
    return found


def import_graph(root: Path) -> dict[str, set[str]]:
    """For every file, the files that it imports.

    A name that is no file belongs to the file it stands in.
    """
    files = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}

    def owner(dotted: str) -> str:
        while dotted and dotted not in files:
            dotted = dotted.rpartition(".")[0]
        return dotted or "__init__"

    return {
        name: {owner(dotted) for dotted in imported_names(path, root)} - {name}
        for name, path in files.items()
    }


def unplaced(graph: dict[str, set[str]]) -> list[str]:
    """A sentence for each top-level module that has no layer."""
    tops = sorted({name.partition(".")[0] for name in graph} - LEVEL.keys())
    return [
        f"{PACKAGE}.{top} is not in LAYERS of tests/test_architecture.py: decide who may import it, then"
        " add it."
        for top in tops
    ]


def violations(graph: dict[str, set[str]]) -> list[str]:
    """A sentence for each import that runs upwards, and for each import of `testing`."""
    sentences = []
    for name, imports in sorted(graph.items()):
        top = name.partition(".")[0]
        for other in sorted(imports):
            other_top = other.partition(".")[0]
            if top not in LEVEL or other_top not in LEVEL:
                continue  # `unplaced` speaks of these
            if LEVEL[other_top] > LEVEL[top]:
                sentences.append(
                    f"{name} imports {other}, which stands above it: move what it needs down."
                )
            elif other_top == "testing" != top:
                sentences.append(f"{name} imports {other}: only tests may use the batteries.")
    return sentences


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one import cycle, in order; empty where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]
    return []


@pytest.fixture(scope="module")
def graph():
    return import_graph(SOURCE)


def test_the_source_was_read(graph):
    assert {"__init__", "_types", "_numerics", "results"} <= graph.keys()
    assert any(graph.values()), "no import between the package's own files was found"


def test_every_module_has_a_layer(graph):
    assert not unplaced(graph), "\n".join(unplaced(graph))


def test_imports_run_one_way(graph):
    assert not violations(graph), "\n".join(violations(graph))


def test_no_import_cycle(graph):
    assert not cycle(graph), " -> ".join(cycle(graph))


# Negative controls: small packages, sound except for one file.

SOUND = {
    "__init__.py": "from .fit import fit\nfrom .families import Gaussian",
    "_types.py": "import tightbound_extras\nfrom elsewhere.tightbound import fit",
    "_numerics.py": "from tightbound._types import Array",
    "families/__init__.py": "from .gaussian import Gaussian",
    "families/gaussian.py": (
        "from .._numerics import x64\nfrom .scale import Diagonal\nfrom .. import _types"
    ),
    "families/scale.py": "import tightbound._types as t",
    "fit.py": "from . import families\nfrom tightbound.families import Gaussian, gaussian",
    "testing.py": "import tightbound\nfrom tightbound import fit",
}


def tree(folder: Path, **changed: str) -> dict[str, set[str]]:
    root = folder / PACKAGE
    for name, text in (SOUND | changed).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return import_graph(root)


def test_a_sound_tree_passes(tmp_path):
    graph = tree(tmp_path)
    assert graph["families.gaussian"] == {"_numerics", "_types", "families.scale"}
    assert graph["fit"] == {"families", "families.gaussian"}
    assert not unplaced(graph)
    assert not violations(graph)
    assert not cycle(graph)


@pytest.mark.parametrize(
    ("statement", "imported"),
    [
        ("from tightbound.fit import fit", "fit"),
        ("from tightbound import fit", "fit"),
        ("import tightbound.fit as f", "fit"),
        ("from ..fit import fit", "fit"),
        ("from .. import fit", "fit"),
        ("def late():\n    from ..fit import fit", "fit"),
        ("if TYPE_CHECKING:\n    from ..fit import Fit", "fit"),
        ("import tightbound as tb", "__init__"),
        ("import tightbound._types", "__init__"),
        ("from tightbound import Gaussian", "__init__"),
        ("from .. import Gaussian", "__init__"),
    ],
)
def test_an_upward_import_is_seen(tmp_path, statement, imported):
    graph = tree(tmp_path, **{"families/scale.py": statement})
    assert violations(graph) == [
        f"families.scale imports {imported}, which stands above it: move what it needs down."
    ]


def test_an_import_of_testing_is_seen(tmp_path):
    graph = tree(tmp_path, **{"__init__.py": "from . import testing"})
    assert violations(graph) == ["__init__ imports testing: only tests may use the batteries."]


@pytest.mark.parametrize("name", ["helpers.py", "helpers/__init__.py", "helpers/deep/thing.py"])
def test_an_unplaced_module_is_seen(tmp_path, name):
    (sentence,) = unplaced(tree(tmp_path, **{name: ""}))
    assert sentence.startswith("tightbound.helpers is not in LAYERS")


@pytest.mark.parametrize(
    "changed",
    [
        {"_types.py": "from ._numerics import x64"},
        {"families/scale.py": "def late():\n    from .gaussian import Gaussian"},
        {"families/scale.py": "from tightbound.families import Gaussian"},
    ],
    ids=["same group", "same package", "own package"],
)
def test_a_cycle_is_seen(tmp_path, changed):
    graph = tree(tmp_path, **changed)
    assert not violations(graph)
    assert len(cycle(graph)) > 2
