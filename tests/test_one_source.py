"""Methods, parameters and defaults are stated once, by the core: Python repeats none of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from sensmerge.recipe import methods
from test_package import PACKAGE

# The oracle shares nothing, and the demo writes recipes of its own, with the paper's settings.
APART: tuple[str, ...] = ("reference/", "demo/")

# What is measured of models has a name of its own, which may be that of the method it is for.
METHODS = set(methods.names()) - {method.statistic for method in methods.every()}
# What matplotlib calls alpha is an opacity.
PARAMETERS = set(methods.parameter_names()) - {"alpha"}


def is_literal(node: ast.AST | None) -> bool:
    """Whether an expression is a number or a switch, or holds nothing else."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | int | float)
    if isinstance(node, ast.UnaryOp):
        return is_literal(node.operand)
    if isinstance(node, ast.BinOp):
        return is_literal(node.left) and is_literal(node.right)
    if isinstance(node, ast.Dict):
        return bool(node.values) and all(map(is_literal, node.values))
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return bool(node.elts) and all(map(is_literal, node.elts))
    return False


def named(text: object) -> bool:
    """Whether a name is a parameter's, such as ``lambda_``, ``_DENSITY`` or ``DEFAULT_LAMBDA``."""
    if not isinstance(text, str):
        return False
    plain = text.strip("_")
    constant = plain.isupper() and len(plain) > 1
    return plain in PARAMETERS or (constant and not PARAMETERS.isdisjoint(plain.lower().split("_")))


def names_of(node: ast.AST) -> Iterator[object]:
    """Names, attributes and texts in an expression."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr
        elif isinstance(part, ast.Constant):
            yield part.value


def stated(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines that name a method, or give a parameter a value of their own."""
    documentation = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        pairs: list[tuple[object, ast.AST | None]] = []
        if isinstance(node, ast.Constant) and node not in documentation and node.value in METHODS:
            yield node.lineno, f"names the method {node.value}"
        elif isinstance(node, ast.Assign):
            pairs = [(name, node.value) for each in node.targets for name in _bound(each)]
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
            pairs = [(name, node.value) for name in _bound(node.target)]
        elif isinstance(node, ast.keyword):
            pairs = [(node.arg, node.value)]
        elif isinstance(node, ast.Dict):
            pairs = [
                (name, value)
                for key, value in zip(node.keys, node.values, strict=True)
                if key is not None
                for name in names_of(key)
            ]
        elif isinstance(node, ast.arguments):
            positional = [*node.posonlyargs, *node.args]
            pairs = [
                (argument.arg, default)
                for argument, default in [
                    *zip(reversed(positional), reversed(node.defaults), strict=False),
                    *zip(node.kwonlyargs, node.kw_defaults, strict=True),
                ]
            ]
        elif isinstance(node, ast.BoolOp):
            pairs = [(name, part) for name in names_of(node) for part in node.values]
        elif isinstance(node, ast.IfExp):
            pairs = [(name, part) for name in names_of(node) for part in (node.body, node.orelse)]
        elif isinstance(node, ast.Call):
            # As in `get("density", 1.0)`: a parameter by name, and a number beside it.
            texts = [name for part in node.args for name in _texts(part)]
            pairs = [(name, part) for name in texts for part in node.args]
        for name, value in pairs:
            if named(name) and is_literal(value):
                yield getattr(value, "lineno", 0), f"gives {name} a value"


def _bound(target: ast.AST) -> Iterator[object]:
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Attribute):
        yield target.attr
    elif isinstance(target, ast.Subscript):
        yield from names_of(target.slice)
    elif isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            yield from _bound(part)


def _texts(node: ast.AST) -> Iterator[str]:
    """The texts in an argument, those of calls in it too."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def modules() -> list[Path]:
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if not path.relative_to(PACKAGE).as_posix().startswith(APART)
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_python_repeats_nothing(path: Path) -> None:
    found = sorted(set(stated(ast.parse(path.read_text()))))
    assert not found, "\n".join(f"{path}:{line}: {what}" for line, what in found)


@pytest.mark.parametrize(
    "source",
    [
        "density = 0.5",
        "self.density = -1",
        "density: float = 1.0",
        "DEFAULT_DENSITY = 0.5",
        "_LAMBDA_LOW, high = 0.25",
        "DENSITIES = {'ties': 0.3}",
        "settings['lambda'] = 1",
        "settings = {'normalize': True}",
        "settings = dict(rescale=False)",
        "def merge(models, lambda_=1.0): pass",
        "def merge(models, *, density=(0.1, 1.0)): pass",
        "density = parameters.get('density', 1.0)",
        "number = parameters.density or 0.5",
        "number = 1.0 if said is None else said.density",
        "number = resolve(recipe.settings(expert, 'weight'), 1.0)",
        "if (density := 0.5): pass",
        "if method == 'linear': pass",
        "SPARSE = ('ties', other)",
        "match method:\n    case 'slerp': pass",
    ],
)
def test_the_look_at_python_sees(source: str) -> None:
    assert list(stated(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "'''ties'''\ndensity = found.search.start",
        "def merge():\n    '''Not about linear: 0.5.'''\n    return 0.5",
        "weights = [1.0]",
        "density = None",
    ],
)
def test_the_look_at_python_lets_pass(source: str) -> None:
    assert not list(stated(ast.parse(source)))
