"""What signatures of the source say: no `Any`, and a shape with every array."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "tightbound"

# Generators of random numbers: one key, or as many as there are lanes; `_numerics.key_words` and
# JAX check them. A loop's counter that its body does not read is called `_`.
KEYS = ("key", "keys", "k", "_")
# file:function -> why its arrays have no shape.
SHAPELESS = {
    "targets/support.py:log_abs_det_jacobian": "a method of NumPyro's, of any shape",
    "testing/families.py:both": "its two arguments are keys",
}
# file:function -> why the arguments of a function that it takes or returns are not said.
ANY_ARGUMENTS = {
    "families/exponential/base.py:each": "as many members as trees are passed",
    "targets/numpyro_model.py:from_numpyro": "the user's model has the arguments that follow it",
    "targets/tracing.py:trace": "a user's function, of one argument or more",
}


def functions(text: str) -> Iterator[ast.FunctionDef]:
    """Public functions and methods, those within functions too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def arguments(node: ast.FunctionDef) -> list[ast.arg]:
    a = node.args
    return [
        *a.posonlyargs,
        *a.args,
        *a.kwonlyargs,
        *([a.vararg] if a.vararg else []),
        *([a.kwarg] if a.kwarg else []),
    ]


def marks(node: ast.FunctionDef) -> list[ast.expr]:
    """All annotations of a signature, those in quotation marks as the expressions they hold."""
    written = [a.annotation for a in arguments(node) if a.annotation] + [node.returns]
    return [unquoted(mark) for mark in written if mark is not None]


def unquoted(mark: ast.expr) -> ast.expr:
    if isinstance(mark, ast.Constant) and isinstance(mark.value, str):
        return ast.parse(mark.value, mode="eval").body
    return mark


def says_any(text: str) -> list[str]:
    """Names of the functions whose signature says `Any`."""
    return [
        node.name
        for node in functions(text)
        if any(ast.unparse(x) in ("Any", "typing.Any") for m in marks(node) for x in ast.walk(m))
    ]


def says_any_arguments(text: str) -> list[str]:
    """Names of the functions whose signature says `Callable[..., X]`."""
    return [
        node.name
        for node in functions(text)
        if any(
            re.match(r"(\w+\.)*Callable\[\.\.\.", ast.unparse(x))
            for m in marks(node)
            for x in ast.walk(m)
        )
    ]


def says_no_shape(text: str) -> list[str]:
    """`function argument` of arrays annotated as arrays and no more, alternatives included."""
    bare = ("Array", "jax.Array", "np.ndarray", "np.generic")

    def alternatives(mark: ast.expr) -> list[str]:
        mark = unquoted(mark)
        if isinstance(mark, ast.BinOp):
            return alternatives(mark.left) + alternatives(mark.right)
        return [ast.unparse(mark)]

    return [
        f"{node.name} {a.arg}"
        for node in functions(text)
        for a in arguments(node)
        if a.annotation
        and a.arg not in KEYS
        and any(said in bare for said in alternatives(a.annotation))
    ]


def found_in_source(look) -> dict[str, list[str]]:
    """`file:function` -> what `look` finds there."""
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for what in look(path.read_text(encoding="utf-8")):
            name = f"{path.relative_to(SOURCE).as_posix()}:{what.partition(' ')[0]}"
            found.setdefault(name, []).append(what)
    return found


def test_no_public_function_says_any():
    assert found_in_source(says_any) == {}


def test_the_arguments_of_functions_are_said():
    assert found_in_source(says_any_arguments).keys() == ANY_ARGUMENTS.keys()


def test_arrays_are_annotated_with_their_shapes():
    found = found_in_source(says_no_shape)
    assert found.keys() == SHAPELESS.keys(), found


def test_shapes_are_written_without_leading_blanks():
    """`" n"` was a remedy for ruff's F722 and F821, which are off."""
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if leading_blanks(path.read_text(encoding="utf-8"))
    }
    assert found == set()


def leading_blanks(text: str) -> list[str]:
    return re.findall(r', " +[A-Za-z*#.0-9_+-][^"\n]*"\]', text)


# Negative controls.


def test_any_is_seen():
    for text, found in (
        ("def f(x: Any): ...", ["f"]),
        ("def f(x: 'dict[str, Any]'): ...", ["f"]),
        ("class A:\n    def f(self, *x: typing.Any): ...", ["f"]),
        ("def f() -> list[Any]: ...", ["f"]),
        ("def f(x, /, *, y: Any): ...", ["f"]),
        ("def _f(x: Any): ...", []),
        ("def f(x: Anything) -> object: ...", []),
    ):
        assert says_any(text) == found, text


def test_arguments_that_are_not_said_are_seen():
    for text, found in (
        ("def f() -> Callable[..., int]: ...", ["f"]),
        ("def f(x: list[abc.Callable[..., int]]): ...", ["f"]),
        ("def f(x: Callable[[int], int]): ...", []),
        ("def f(x: tuple[int, ...]): ...", []),
    ):
        assert says_any_arguments(text) == found, text


def test_a_missing_shape_is_seen():
    for text, found in (
        ("def f(x: Array): ...", ["f x"]),
        ("def f(x: np.ndarray | None, y: jax.Array): ...", ["f x", "f y"]),
        ("class A:\n    def f(self, *, x: 'Array'): ...", ["f x"]),
        ("def _f():\n    def g(x: Array): ...", ["g x"]),
        ("def f(key: jax.Array, x: Float[Array, 'n']): ...", []),
        ("def f(x: Validated[Array, 'checked']): ...", []),
    ):
        assert says_no_shape(text) == found, text


def test_a_leading_blank_is_seen():
    assert leading_blanks('x: Float[Array, " n"]')
    assert not leading_blanks('x: Float[Array, "n dim"]\ny: Float[Array, ""]\nprint(", ", " n")')
