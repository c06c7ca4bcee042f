"""Write ``python/sensmerge/_core.pyi`` from the Rust sources, or check that it is up to date.

maturin extracts functions, classes, signatures and docstrings from the compiled extension. This
script does the rest: it unquotes annotations that the Rust source spells out, adds the imports that
they need and ``__all__``, and formats the text.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "python" / "sensmerge" / "_core.pyi"
INDENT = "    "


class Completion(ast.NodeTransformer):
    """Unquotes annotations, collects the modules they name and strips docstrings."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.depth = 0

    def visit_arg(self, node: ast.arg) -> ast.arg:
        """An argument with its annotation unquoted."""
        node.annotation = self.unquote(node.annotation)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """A function with the annotations of its arguments and result unquoted."""
        self.visit(node.args)
        node.returns = self.unquote(node.returns)
        self.straighten(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        """A class and its methods."""
        self.straighten(node)
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.Attribute:
        """A dotted name in an annotation: all but its last part is a module."""
        self.modules.add(ast.unparse(node.value))
        return node

    def unquote(self, annotation: ast.expr | None) -> ast.expr | None:
        """The expression in ``annotation`` if that is a string; otherwise ``annotation``."""
        if not isinstance(annotation, ast.Constant) or not isinstance(annotation.value, str):
            return annotation
        expression = ast.parse(annotation.value, mode="eval").body
        self.visit(expression)
        return expression

    def straighten(self, node: ast.FunctionDef | ast.ClassDef | ast.Module) -> None:
        """Let the docstring of ``node`` start right after its quotes, as in the package."""
        documentation = ast.get_docstring(node)
        if documentation is None:
            return
        margin = "" if isinstance(node, ast.Module) else INDENT * (self.depth + 1)
        first, *rest = documentation.splitlines()
        lines = [first, *(margin + line if line else "" for line in rest)]
        closing = "\n" + margin if rest else ""
        node.body[0] = ast.Expr(ast.Constant("\n".join(lines) + closing))


def complete(generated: str) -> str:
    """The stub in ``generated``, its annotations as expressions, with the imports they need.

    Raises:
        LookupError: The introspection data lacks something that the module exports.
    """
    completion = Completion()
    tree = ast.parse(generated)
    completion.straighten(tree)
    tree = completion.visit(tree)
    if any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body):
        raise LookupError("_core exports something that introspection does not see")
    after_docstring = int(ast.get_docstring(tree) is not None)
    imports = [ast.Import([ast.alias(name)]) for name in sorted(completion.modules)]
    tree.body[after_docstring:after_docstring] = imports
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def generate() -> str:
    """The extension's stub for the current Rust sources, complete and formatted."""
    with tempfile.TemporaryDirectory() as folder:
        maturin = ["maturin", "generate-stubs", "--quiet", "--locked", "--features=stubs"]
        # The profile of the core's tests: its dependencies are built once for both.
        command = [*maturin, "--profile=checked", f"--out={folder}"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if run.returncode != 0:
            sys.exit(f"{run.stderr}error: maturin could not generate the stub")
        text = complete(Path(folder, "sensmerge", "_core.pyi").read_text())
    for command in (["check", "--select=I,F401", "--fix"], ["format"]):
        ruff = ["ruff", *command, "--quiet", f"--stdin-filename={STUB}", "-"]
        run = subprocess.run(ruff, cwd=ROOT, input=text, capture_output=True, text=True, check=True)
        text = run.stdout
    return text


def main() -> int:
    """Write the stub; with ``--check``, print differences instead, and return 1 if any."""
    parser = argparse.ArgumentParser(description="Write _core.pyi from the Rust sources.")
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    check = parser.parse_args().check
    generated = generate()
    if not check:
        STUB.write_text(generated)
        return 0
    committed = STUB.read_text() if STUB.exists() else ""
    difference = list(
        difflib.unified_diff(
            committed.splitlines(keepends=True),
            generated.splitlines(keepends=True),
            "_core.pyi as committed",
            "_core.pyi as generated",
        )
    )
    if difference:
        sys.stderr.writelines([*difference, f"error: {STUB.name} is stale; run: make stubs\n"])
    return int(bool(difference))


if __name__ == "__main__":
    sys.exit(main())
