"""No two places of the source share eight or more lines, unless a reason is written below.

Places share lines as they stand, or the shape of their statements: the same syntax tree once names
and literals are left out. What has to be said again is not counted: signatures (a method has that
of its base class), imports, docstrings and comments; nor, by shape, the fields of classes and data.
"""

import ast
import itertools
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tightbound"
LEAST = 8  # lines; fewer are a phrase, such as how an error is raised

# Two places, as file:class or function -> why they share lines all the same.
REASONS = {
    ("targets/numpyro_model.py:NumPyroModel", "targets/numpyro_model.py:NumPyroRows"): (
        "Both targets are final classes of one abstract base, and such a class declares the fields"
        " that its base names: a reader sees there what is stored."
    ),
}


class Place(NamedTuple):
    """Lines of a file, both ends included, `count` of which are code.

    `within`: the innermost class or function that holds them all, by its dotted name; "" for none.
    """

    file: str
    within: str
    first: int
    last: int
    count: int

    @property
    def name(self) -> str:
        """What REASONS calls it: a reason excuses no other place of the file."""
        return f"{self.file}:{self.within}"

    def __str__(self) -> str:
        return f"{self.file}:{self.first}-{self.last}"


def is_text(node: ast.AST) -> bool:
    """Whether a statement is a string and no more: a docstring."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def lines_left_out(tree: ast.Module) -> set[int]:
    """Lines of imports, docstrings and signatures, decorators included."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) or is_text(node):
            lines.update(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            # a body on the line of its signature, such as `...`, goes with it
            lines.update(range(first, max(node.body[0].lineno, node.lineno + 1)))
    return lines


def code_of(text: str, tree: ast.Module) -> dict[int, str]:
    """Number -> text of the lines that count, without the space around them."""
    left_out = lines_left_out(tree)
    lines = enumerate(map(str.strip, text.splitlines()), start=1)
    return {n: line for n, line in lines if n not in left_out and line and not line.startswith("#")}


def shape(node: ast.AST) -> str:
    """The syntax tree without names, literals and docstrings."""
    parts = []
    for name, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            parts.append(shape(value))
        elif isinstance(value, list):
            inner = [shape(x) for x in value if isinstance(x, ast.AST) and not is_text(x)]
            parts.append(f"{name}[{','.join(inner)}]")
    return f"{type(node).__name__}({' '.join(parts)})"


def blocks(tree: ast.Module) -> list[list[ast.stmt]]:
    """The statements of every function, and of every loop and condition in one."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node): node for function in functions for node in ast.walk(function)}
    lists = [
        getattr(node, part, None)
        for node in inside.values()
        for part in ("body", "orelse", "finalbody")
        if not isinstance(node, ast.ClassDef)
    ]
    return [[s for s in block if not is_text(s)] for block in lists if isinstance(block, list)]


def definitions(node: ast.AST, before: str = "") -> list[tuple[int, int, str]]:
    """First and last line and dotted name of every class and function, the inner ones later."""
    found = []
    for child in ast.iter_child_nodes(node):
        name = before
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            name = f"{before}.{child.name}".lstrip(".")
            found.append((child.lineno, child.end_lineno, name))
        found += definitions(child, name)
    return found


def runs(file: str, text: str) -> list[tuple[tuple[str, ...], Place]]:
    """What every run of eight lines says, and every run of statements of as many, and where."""
    tree = ast.parse(text)
    code, named = code_of(text, tree), definitions(tree)
    numbers, found = list(code), []

    def place(first: int, last: int, count: int) -> Place:
        names = [name for start, end, name in named if start <= first and last <= end]
        return Place(file, names[-1] if names else "", first, last, count)

    for i in range(len(numbers) - LEAST + 1):
        here = numbers[i : i + LEAST]
        found.append((tuple(code[n] for n in here), place(here[0], here[-1], LEAST)))
    for block in blocks(tree):
        shapes = [shape(statement) for statement in block]
        counts = [sum(n in code for n in range(s.lineno, s.end_lineno + 1)) for s in block]
        for i, j in itertools.combinations(range(len(block) + 1), 2):
            if (count := sum(counts[i:j])) >= LEAST:
                where = place(block[i].lineno, block[j - 1].end_lineno, count)
                found.append((tuple(shapes[i:j]), where))
    return found


def shared(texts: dict[str, str]) -> dict[tuple[str, str], tuple[Place, Place]]:
    """The names of two places, in the order of their files -> the most lines they share."""
    places = defaultdict(list)
    for file, text in sorted(texts.items()):
        for what, place in runs(file, text):
            places[what].append(place)
    pairs = {}
    for same in places.values():
        for a, b in itertools.combinations(same, 2):
            names = a.name, b.name
            apart = a.file != b.file or a.last < b.first or b.last < a.first
            if apart and (names not in pairs or pairs[names][0].count < a.count):
                pairs[names] = a, b
    return pairs


def without_reason(texts: dict[str, str], reasons: dict[tuple[str, str], str]) -> list[str]:
    """A sentence for each two places that share lines and have no reason."""
    return [
        f"{a} and {b} are alike: write it once, or write in REASONS why not."
        for names, (a, b) in sorted(shared(texts).items())
        if names not in reasons
    ]


def without_need(texts: dict[str, str], reasons: dict[tuple[str, str], str]) -> list[str]:
    """A sentence for each reason of places that share nothing."""
    return [
        f"{a} and {b} share no {LEAST} lines: take their reason out of REASONS."
        for a, b in sorted(reasons.keys() - shared(texts).keys())
    ]


@pytest.fixture(scope="module")
def source():
    return {
        path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8")
        for path in SOURCE.rglob("*.py")
    }


def test_no_two_places_share_lines_without_a_reason(source):
    assert len(source) > 100
    assert not without_reason(source, REASONS), "\n".join(without_reason(source, REASONS))


def test_every_reason_is_needed(source):
    assert not without_need(source, REASONS), "\n".join(without_need(source, REASONS))
    assert all(reason.endswith(".") for reason in REASONS.values())


# Negative controls: two small files.

BLOCK = """
    total = 0.0
    for value in values:
        if value < 0:
            raise ValueError("negative")
        total = total + value**2
    # the root
    size = total**0.5
    print(size)
    return [value / size for value in values]
"""
RENAMED = """
    s = 1.0
    for x in xs:
        if x < 9:
            raise TypeError("small")
        s = s + x**3

    root = s**0.25
    log(root)
    return [x / root for x in xs]
"""
OTHER = """
    total = 0.0
    while values:
        value = values.pop()
        assert value >= 0
        total += value * value
    size = math.sqrt(total)
    print(size)
    return {value: value / size for value in values}
"""
FIELDS = "\n".join(f"    field_{i}: float" for i in range(LEAST))
SIGNATURE = "    def f(\n" + "\n".join(f"        a{i}," for i in range(LEAST)) + "\n    ): ...\n"


def function(name: str, body: str) -> str:
    return f'def {name}(values):\n    """What {name} does."""{body}'


def test_a_copied_block_is_found():
    texts = {"a.py": function("f", BLOCK), "b.py": "x = 1\n\n" + function("g", BLOCK)}
    assert list(shared(texts)) == [("a.py:f", "b.py:g")]
    (sentence,) = without_reason(texts, {})
    assert sentence.startswith("a.py:3-11 and b.py:5-13 are alike")
    assert not without_reason(texts, {("a.py:f", "b.py:g"): "A reason."})


def test_a_copy_within_a_file_is_found():
    twice = {"a.py": function("f", BLOCK) + function("g", BLOCK)}
    assert list(shared(twice)) == [("a.py:f", "a.py:g")]
    assert not shared({"a.py": function("f", BLOCK)})


def test_a_reason_excuses_no_later_copy_in_the_same_files():
    texts = {"a.py": function("f", BLOCK), "b.py": function("g", BLOCK)}
    reasons = {("a.py:f", "b.py:g"): "A reason."}
    assert not without_reason(texts, reasons)
    texts["b.py"] += "\nclass A:\n" + function("h", BLOCK).replace("\n    ", "\n        ").replace(
        "def", "    def"
    )
    assert [str(b) for _, b in shared(texts).values()] == ["b.py:3-11", "b.py:16-24", "b.py:16-24"]
    assert list(shared(texts)) == [
        ("a.py:f", "b.py:g"),
        ("a.py:f", "b.py:A.h"),
        ("b.py:g", "b.py:A.h"),
    ]
    assert len(without_reason(texts, reasons)) == 2


def test_a_copy_with_other_names_is_found_by_its_shape():
    texts = {"a.py": function("f", BLOCK), "b.py": function("g", RENAMED)}
    assert list(shared(texts)) == [("a.py:f", "b.py:g")]


def test_a_part_of_a_loop_is_found():
    inner = BLOCK.replace("\n    ", "\n        ").replace("return", "yield")
    texts = {
        "a.py": function("f", f"\n    while values:{inner}"),
        "b.py": function("g", f"\n    for x in values:\n        print(x){inner}"),
    }
    assert list(shared(texts)) == [("a.py:f", "b.py:g")]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (function("f", BLOCK), function("g", OTHER)),
        (f"class A:\n{SIGNATURE}", f"class B:\n{SIGNATURE}"),
        (f"class A:\n{FIELDS}", f"class B:\n{FIELDS.replace('field', 'part')}"),
        ("from x import (\n    a,\n    b,\n    c,\n    d,\n    e,\n    f,\n    g,\n)",) * 2,
    ],
    ids=["other code", "signatures", "fields by shape", "imports"],
)
def test_what_must_not_be_found_is_not(one, two):
    assert not shared({"a.py": one, "b.py": two})


def test_a_reason_without_need_is_seen():
    texts = {"a.py": function("f", BLOCK), "b.py": function("g", OTHER)}
    assert without_need(texts, {("a.py:f", "b.py:g"): "A reason."}) == [
        "a.py:f and b.py:g share no 8 lines: take their reason out of REASONS."
    ]
