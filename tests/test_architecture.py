"""Imports run one way (CONTRIBUTING.md, "The layout"), as read from the source.

Anywhere in a file; and other statements about the house that a reader can count on.
"""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PACKAGE = "tightbound"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

# Lowest first. A module may import from its own group and from those above it in this list.
# `__init__` is the package itself: importing a public name from `tightbound` is an import from the
# top.
LAYERS = [
    {"_types", "_numerics", "results", "account"},
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


def imported_names(path: Path, root: Path, with_types: bool = True) -> set[str]:
    """Dotted names below the package that the file imports; '' is the package itself."""
    folder = path.relative_to(root).parent.parts
    found = set()
    module = ast.parse(path.read_text(encoding="utf-8"))
    guarded = [n for n in ast.walk(module) if isinstance(n, ast.If)]
    guarded = [n for n in guarded if ast.unparse(n.test).endswith("TYPE_CHECKING")]
    for_types = {id(x) for n in guarded for part in n.body for x in ast.walk(part)}
    for node in ast.walk(module):
        if not with_types and id(node) in for_types:
            continue
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


def import_graph(root: Path, *, with_types: bool = True) -> dict[str, set[str]]:
    """For every file, the files that it imports.

    A name that is no file belongs to the file it stands in.
    """
    files = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}

    def owner(dotted: str) -> str:
        while dotted and dotted not in files:
            dotted = dotted.rpartition(".")[0]
        return dotted or "__init__"

    return {
        name: {owner(dotted) for dotted in imported_names(path, root, with_types)} - {name}
        for name, path in files.items()
    }


def unplaced(graph: dict[str, set[str]]) -> list[str]:
    """A sentence for each top-level module that has no layer."""
    tops = sorted({name.partition(".")[0] for name in graph} - LEVEL.keys())
    return [
        f"{PACKAGE}.{top} is not in LAYERS of tests/test_architecture.py: decide who may import it,"
        " then add it."
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


def exports(path: Path) -> set[str] | None:
    """The names of `__all__`; None where a file has none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return None


def unlisted(root: Path) -> dict[str, list[str]]:
    """By file with an `__all__`, its public classes and functions that others import unlisted."""
    files = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    imported = {
        dotted for path in files.values() for dotted in imported_names(path, root, with_types=True)
    }
    found = {}
    for name, path in files.items():
        listed = exports(path)
        if listed is None:
            continue
        defined = {
            node.name
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_")
        }
        used = {d.rpartition(".")[2] for d in imported if d.rpartition(".")[0] == name}
        if missing := sorted((defined & used) - listed):
            found[name] = missing
    return found


def test_the_source_was_read(graph):
    assert {"__init__", "_types", "_numerics", "results"} <= graph.keys()
    assert any(graph.values()), "no import between the package's own files was found"


def test_every_module_has_a_layer(graph):
    assert not unplaced(graph), "\n".join(unplaced(graph))


def test_imports_run_one_way(graph):
    assert not violations(graph), "\n".join(violations(graph))


def test_what_others_import_is_listed():
    """`__all__`, where a file has one, names the public classes and functions others import."""
    assert unlisted(SOURCE) == {}


# Imports upwards that no statement shows, since they are by name; with the reason.
BY_NAME = {
    ("cli", "experiments"): "the command runs experiments, which may use everything, the cli too",
}


def imported_by_name(path: Path) -> set[str]:
    """Dotted names below the package that the file passes to `import_module`.

    `__name__` in front is the package's own, which only its root may write.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "import_module":
            for part in ast.walk(node.args[0]):
                text = part.value if isinstance(part, ast.Constant) else None
                if isinstance(text, str) and text.startswith((f"{PACKAGE}.", ".")):
                    found.add(text.removeprefix(PACKAGE).lstrip("."))
    return found - {""}


def upwards_by_name(root: Path) -> dict[tuple[str, str], str]:
    """The room that imports by name and the one above it -> the file."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = module_name(path, root)
        top = name.partition(".")[0]
        for other in {dotted.partition(".")[0] for dotted in imported_by_name(path)}:
            if LEVEL[other] > LEVEL[top]:
                found[top, other] = name
    return found


def test_imports_by_name_are_allowed_openly():
    assert upwards_by_name(SOURCE).keys() == BY_NAME.keys()


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


@pytest.mark.parametrize(
    "call",
    [
        'importlib.import_module("tightbound.fit")',
        'import_module(".fit", "tightbound")',
        'def late():\n    return importlib.import_module(f"tightbound.fit.{name}")',
    ],
)
def test_an_upward_import_by_name_is_seen(tmp_path, call):
    tree(tmp_path, **{"families/scale.py": call})
    assert upwards_by_name(tmp_path / PACKAGE) == {("families", "fit"): "families.scale"}
    assert not violations(import_graph(tmp_path / PACKAGE))
    tree(tmp_path, **{"families/scale.py": 'import_module("tightbound._types"); import_module(x)'})
    assert not upwards_by_name(tmp_path / PACKAGE)


def test_an_import_of_testing_is_seen(tmp_path):
    graph = tree(tmp_path, **{"__init__.py": "from . import testing"})
    assert violations(graph) == ["__init__ imports testing: only tests may use the batteries."]


def test_an_import_that_is_not_listed_is_seen(tmp_path):
    names = "__all__ = ['Diagonal']\nclass Diagonal: ...\nclass Full: ...\nclass Alone: ..."
    tree(tmp_path, **{"families/scale.py": names, "families/other.py": "from .scale import Full"})
    assert unlisted(tmp_path / PACKAGE) == {"families.scale": ["Full"]}


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


# -- what must be true of the source as a whole


def sources(room: str = "") -> list[Path]:
    """All files of the package, of one room, or one file."""
    place = SOURCE / room
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


def own_line_comments(text: str) -> int:
    """Comments on lines of their own, tool directives left out."""
    lines = (line.strip() for line in text.splitlines())
    return sum(line.startswith("# ") and not line.startswith(("# fmt", "# noqa")) for line in lines)


def test_comments_give_reasons_often_enough():
    texts = [path.read_text(encoding="utf-8") for path in sources()]
    lines = sum(text.count("\n") for text in texts)
    assert sum(map(own_line_comments, texts)) >= lines / 100


def names_of_any(path: Path) -> int:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))


@pytest.mark.parametrize(
    "room",
    ["fit.py", "plan", "loop.py", "account.py", "search", "starts", "solvers", "certify", "batch"],
)
def test_rooms_without_any(room):
    assert {str(path): n for path in sources(room) if (n := names_of_any(path))} == {}


# Where a part may be asked for its class, with the reason; elsewhere its abilities and its
# constants (`covariance_structure`, `conditional`, `draws_from`) say what it can do.
ASKED = {
    "search/factor_rule.py": "no other family has named factors; the PairingError says so",
    "certify/calibration.py": "a mark that a user's function may carry",
    "storage/encoding.py": "layers of Equinox and classes of ours, found by the name in a file",
}


def asked_for_their_class(path: Path, parts: set[str]) -> list[str]:
    """Calls of `isinstance` with one of the parts, and of `hasattr` with an attribute of ours.

    And of `getattr` with a default, which asks the same.
    """
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if not named or len(node.args) < 2:
            continue
        # `.shape` tells arrays from numbers, of JAX, NumPy and Python alike
        array = ast.unparse(node.args[1]) in ("'shape'", "'dtype'")
        classes = {ast.unparse(x).split(".")[-1] for x in ast.walk(node.args[1])}
        if (
            (node.func.id == "isinstance" and classes & parts)
            or (node.func.id == "hasattr" and not array)
            or (node.func.id == "getattr" and len(node.args) == 3 and not array)
        ):
            found.append(ast.unparse(node))
    return found


def test_parts_are_not_asked_for_their_class():
    """Only the adapters in targets/ do that, and tests' own helpers.

    Results that a user holds (a fit, a posterior) are no parts.
    """
    rooms = ("families", "objectives", "estimators", "solvers")
    parts = {
        node.name
        for room in rooms
        for path in sources(room)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith(("Abstract", "_"))
        and "Protocol" not in map(ast.unparse, node.bases)  # an ability
    }
    assert {"Gaussian", "Product", "NaturalGradient", "ELBO", "Pathwise"} <= parts
    left_out = ("targets", "testing", "experiments", "cli")
    found = {
        str(path.relative_to(SOURCE)): calls
        for path in sources()
        if path.relative_to(SOURCE).parts[0] not in left_out
        and (calls := asked_for_their_class(path, parts))
    }
    assert found.keys() == ASKED.keys(), found


def test_a_question_for_the_class_is_seen(tmp_path):
    for text, count in (
        ("isinstance(q, Gaussian)", 1),
        ("isinstance(q, families.Gaussian | int)", 1),
        ("hasattr(q, 'cov')", 1),
        ("hasattr(q.mean, 'shape')", 0),
        ("getattr(q, 'cov', None)", 1),
        ("getattr(q, name)", 0),
        ("getattr(q.mean, 'shape', None)", 0),
        ("isinstance(q, float)", 0),
    ):
        path = tmp_path / "one.py"
        path.write_text(text)
        assert len(asked_for_their_class(path, {"Gaussian"})) == count, text


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """The longest chain of modules linked by import statements, the package's root left out."""
    known: dict[str, list[str]] = {}

    def below(name: str) -> list[str]:
        if name not in known:
            chains = [below(other) for other in sorted(graph[name] - {"__init__"})]
            known[name] = [name, *max(chains, key=len, default=[])]
        return known[name]

    return max((below(name) for name in graph if name != "__init__"), key=len)


def test_no_long_chain_of_imports(graph):
    chain = longest_chain(import_graph(SOURCE, with_types=False))
    assert len(chain) <= 15, " -> ".join(chain)


def test_the_longest_chain_is_seen(tmp_path):
    chain = longest_chain(tree(tmp_path))
    assert len(chain) == 6
    assert chain[:4] == ["testing", "fit", "families", "families.gaussian"]


def code_lines(node: ast.FunctionDef) -> int:
    """Lines of a function, its docstring left out."""
    first = node.body[0]
    written = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if written else 0
    return node.end_lineno - node.lineno + 1 - docstring


def test_files_and_functions_are_small():
    long = [str(path) for path in sources() if path.read_text().count("\n") > 400]
    assert long == []
    functions = [
        f"{path.name}:{node.name}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and code_lines(node) > 60
    ]
    assert functions == []


def test_dead_names_are_gone():
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources())
    dead = ("optimistix", "null_sd", "MOST_FOR_GRID", "OVERCONFIDENCE", "CAPPED", "Bijection")
    assert [name for name in dead if re.search(rf"\b{name}\b", text)] == []


def constants(path: Path) -> dict[str, float]:
    """Numbers that a module names in capitals at its top level."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id.isupper():
                    found[target.id] = node.value.value
    return found


def test_the_climb_has_its_constants_in_one_file():
    assert constants(SOURCE / "plan" / "policy.py")["PATIENCE"] == 40_000
    elsewhere = {
        str(path): found
        for path in sources("plan")
        if path.name != "policy.py"
        and (found := constants(path))
        and any(isinstance(value, (int, float)) for value in found.values())
    }
    assert set(elsewhere) <= {str(SOURCE / "plan" / "rungs" / "mixture.py")}, elsewhere


def factors_in_numbers(text: str) -> list[str]:
    """Products with a number that has no name, such as `2 * error`."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Mult)
        and any(isinstance(side, ast.Constant) for side in (node.left, node.right))
    ]


def test_the_climb_of_heads_names_its_numbers():
    """It stands below plan/, so its own numbers have names at its top; standards are not among
    them.
    """
    path = SOURCE / "amortised" / "head_ladder.py"
    text = path.read_text(encoding="utf-8")
    assert constants(path).keys() == {"_JUDGED", "_LEAST"}
    assert factors_in_numbers(text) == []
    assert "STANDARDS.errors" in text
    assert factors_in_numbers("gain > 2 * error") == ["2 * error"]
    assert not factors_in_numbers("gain > ERRORS * error; key % 2**32")


def test_a_recipe_runs_nothing():
    """Choosing evaluates no density: the start is carried out, and paid for, by the climb."""
    import tightbound as tb
    from tightbound.plan.recipe import choose
    from tightbound.targets.batched import evaluations_of

    for target in (
        tb.targets.zoo.gaussian(3, condition=2.0).target,
        tb.targets.Clutter(np.array([[0.0], [1.0], [9.0]])),
    ):
        choose(target)
        choose(target, tb.families.Gaussian.full(target.dim))
        assert evaluations_of(target) == 0


ENTERED = """
import pathlib, sys
import jax.numpy as jnp, numpyro.distributions as dist, tightbound as tb
root, seen = str(pathlib.Path(tb.__file__).parent), set()
heights = jnp.array([1.62, 1.75, 1.68, 1.81, 1.70])
def log_density(p):
    prior = dist.Normal(1.7, 0.5).log_prob(p["mu"]) + dist.Exponential(1.0).log_prob(p["sigma"])
    return prior + dist.Normal(p["mu"], p["sigma"]).log_prob(heights).sum()
def look(frame, event, _):
    if event == "call" and frame.f_code.co_filename.startswith(root):
        seen.add(frame.f_code.co_filename)
sys.setprofile(look)
example, support = {"mu": 0.0, "sigma": 1.0}, {"sigma": "positive"}
tb.fit(tb.from_log_density(log_density, example, support=support)).certificate
sys.setprofile(None)
print(len(seen))
"""


@pytest.mark.slow
def test_few_files_are_entered_by_the_fit_of_the_readme():
    """The aim is 25; 500 functions in files of one idea and at most 400 lines do not get there."""
    done = subprocess.run(
        [sys.executable, "-c", ENTERED], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= 38
