"""Rules for the repository as a whole: which module may import which, and the cost of imports."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import click
import pytest

import sensmerge
from families import tensor_family
from sensmerge import _core
from sensmerge.cli import table

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "sensmerge"
CORE = ROOT / "rust" / "sensmerge-core" / "src"

HEAVY = {"torch", "transformers", "matplotlib"}
# What a plain merge does without, if it is not shown on a terminal.
IDLE = HEAVY | {
    "huggingface_hub",
    "jinja2",
    "numpy",
    "tqdm",
    "sensmerge.calibration",
    "sensmerge.merging.units",
    "sensmerge.models.adapters",
    "sensmerge.models.hub",
    "sensmerge.search",
}
# What saying what there is does without.
SILENT = IDLE | {"pydantic", "ruamel.yaml", "sensmerge._core", "sensmerge.recipe"}

# The rooms of the package in the order in which data passes through them: each may import itself
# and those before it. The first entry is used everywhere and uses no room.
PYTHON_ROOMS = [
    {
        "",
        "_core",
        "document",
        "errors",
        "files",
        "markup",
        "progress",
        "reading",
        "refusals",
        "terminal",
    },
    {"recipe"},
    {"models"},
    {"unpickling"},
    {"calibration"},
    {"scaling"},
    {"merging"},
    {"comparison"},
    {"lora"},
    {"report"},
    {"search"},
    {"distributed"},
    {"workflow"},
    {"evaluation"},
    {"farm"},
    {"demo"},
    {"cli", "start"},
]
# The oracle of the tests: it imports no room, and no room imports it.
APART = "reference"
# The rooms that run models, and the process that reads pickles.
TORCH_ROOMS = {"calibration", "demo", "evaluation", "search", "unpickling.py"}

UNSAFE_FILES = {
    "rust/sensmerge-core/src/checkpoint/mapping.rs",
    "rust/sensmerge-core/src/processor.rs",
    "rust/sensmerge-py/src/buffers.rs",
    "rust/sensmerge-py/src/native.rs",
}
# What each room of the core may use of the others.
ARROWS = {
    "error": set(),
    "processor": set(),
    "dtype": {"error", "processor"},
    "random": {"processor"},
    "kernel": {"dtype", "processor", "random"},
    "checkpoint": {"dtype", "error"},
    "linear": set(),
    "numbers": set(),
    "program": {"dtype", "error", "kernel", "linear", "numbers", "random"},
    "method": {"error", "program"},
    "manifest": {"checkpoint", "dtype", "error", "method", "numbers", "program"},
    "engine": {
        "checkpoint",
        "dtype",
        "error",
        "kernel",
        "linear",
        "manifest",
        "method",
        "numbers",
        "processor",
        "program",
    },
}


def python_modules() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def rust_sources(folder: Path = ROOT / "rust") -> list[Path]:
    """Every Rust source below ``folder``."""
    return sorted(folder.rglob("*.rs"))


def without_comments(source: str) -> str:
    """Rust ``source`` without line comments and without the contents of string literals."""
    literal_or_comment = r'"(?:[^"\\]|\\.)*"|//[^\n]*'
    return re.sub(literal_or_comment, lambda m: '""' if m[0][0] == '"' else "", source, flags=re.S)


def imports(tree: ast.AST) -> Iterator[str]:
    """The top-level packages that run-time code in ``tree`` imports."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        else:
            yield from imports(node)


def module_name(path: Path) -> str:
    """A module's name below the package, such as ``search.trials``; empty for the package's own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def names_imported(tree: ast.AST) -> Iterator[str]:
    """Full names that ``tree`` imports, anywhere in it, except for type checkers only.

    A public name of the package counts as its module: ``from sensmerge import merge`` and
    ``sensmerge.merge`` load ``sensmerge.workflow`` at once, and count as that.
    """
    for node in ast.iter_child_nodes(tree):
        found: list[str] = []
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are by full names"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            found = [name] if (name := ast.unparse(node)).count(".") == 1 else []
        for name in found:
            package, _, public = name.partition(".")
            if package == "sensmerge":
                yield sensmerge._HOMES.get(public, name)
        yield from names_imported(node)


def modules_imported(source: str, modules: set[str]) -> set[str]:
    """The modules of the package that Python ``source`` imports."""
    used = set()
    for name in names_imported(ast.parse(source)):
        below = name.partition(".")[2]
        # The longest beginning that is a module: the rest is a name in it.
        while below not in modules:
            below = below.rpartition(".")[0]
        used.add(below)
    return used


def rooms_used(source: str) -> set[str]:
    """The rooms that Rust ``source`` names by paths from the crate's root."""
    code = without_comments(source)
    used = set(re.findall(r"\bcrate::(\w+)", code))
    for group in re.findall(r"\bcrate::\{([^;]*)\};", code):
        flat = re.sub(r"\{[^{}]*\}", "", group)
        used |= set(re.findall(r"(?:^|,)\s*(\w+)", flat))
    return used


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running ``code``."""
    report = "import sys\nprint('\\n'.join(['loaded:', *sys.modules]))"
    script = f"import contextlib\nwith contextlib.suppress(SystemExit):\n    {code}\n{report}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.partition("loaded:\n")[2].split())


def loaded_by_command(*arguments: str) -> set[str]:
    """The modules that the command has loaded when it is done."""
    return loaded_by(f"import sensmerge.cli; sensmerge.cli.commands({arguments})")


def test_importing_the_package_loads_nothing_else() -> None:
    loaded = loaded_by("import sensmerge")
    assert {name for name in loaded if name.startswith("sensmerge")} == {
        "sensmerge",
        "sensmerge.errors",
    }
    assert loaded.isdisjoint(SILENT)


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("merge", "--help")])
def test_saying_what_there_is_loads_next_to_nothing(arguments: tuple[str, ...]) -> None:
    loaded = loaded_by_command(*arguments)
    assert "sensmerge.cli" in loaded
    assert loaded.isdisjoint(SILENT)
    assert ("sensmerge.cli.merging" in loaded) == ("merge" in arguments)
    assert "sensmerge.cli.searching" not in loaded


def test_a_merge_loads_what_it_needs(tmp_path: Path) -> None:
    tensor_family(tmp_path, experts=2, dtype="float32", shapes={"a.w": (3, 4)})
    recipe = tmp_path / "recipe.json"
    models = [{"model": "e0"}, {"model": "e1"}]
    recipe.write_text(json.dumps({"merge_method": "ties", "base_model": "base", "models": models}))
    loaded = loaded_by_command("merge", str(recipe), str(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "pydantic" in loaded
    assert loaded.isdisjoint(IDLE)


def test_the_table_lists_every_command_by_its_own_words() -> None:
    listed = {
        (module, name, line)
        for module, commands in table.COMMANDS.items()
        for name, line in commands.items()
    }
    modules = {path.stem for path in (PACKAGE / "cli").glob("*.py")} - {"__main__"}
    found = set()
    for module in modules:
        members = vars(importlib.import_module(f"sensmerge.cli.{module}")).values()
        for command in (each for each in members if isinstance(each, click.Command)):
            if not isinstance(command, click.Group):
                first = inspect.cleandoc(command.help or "").partition("\n\n")[0]
                found.add((module, command.name, " ".join(first.split())))
                assert table.command(str(command.name)) is command
    assert found == listed


def test_the_command_is_installed() -> None:
    command = shutil.which("sensmerge", path=str(Path(sys.executable).parent))
    assert command is not None
    run = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"sensmerge, version {sensmerge.__version__}"


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]
    assert project["dynamic"] == ["version"]
    for member in workspace["members"]:
        crate = tomllib.loads((ROOT / member / "Cargo.toml").read_text())["package"]
        assert crate["version"] == {"workspace": True}, member
    assert "version" not in workspace["dependencies"]["sensmerge-core"]
    version = workspace["package"]["version"]
    assert importlib.metadata.version("sensmerge") == sensmerge.__version__ == version
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert newest is not None
    assert newest[1] == version


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
    stub = ast.parse((PACKAGE / "_core.pyi").read_text())
    named = {node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert named == set(_core.__all__)


def test_every_public_name_resolves() -> None:
    for name in sensmerge.__all__:
        assert getattr(sensmerge, name).__doc__, name


def test_only_rooms_that_run_models_import_torch() -> None:
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in python_modules()
        if {"torch", "transformers"} & set(imports(ast.parse(path.read_text())))
    }
    assert importers
    assert importers <= TORCH_ROOMS


def python_arrows() -> dict[str, set[str]]:
    """The modules that each module of the package imports, at its start or in a function."""
    paths = {module_name(path): path for path in python_modules()}
    modules = {*paths, "_core"}
    return {name: modules_imported(paths[name].read_text(), modules) for name in paths}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_python_room_is_known() -> None:
    rooms = {room_of(module_name(path)) for path in python_modules()} | {"_core"}
    assert rooms == set().union(*PYTHON_ROOMS) | {APART}


def test_python_rooms_import_only_those_before_them() -> None:
    rank = {room: place for place, rooms in enumerate(PYTHON_ROOMS) for room in rooms}
    for module, imported in python_arrows().items():
        for other in imported:
            one, two = room_of(module), room_of(other)
            if APART in (one, two):
                assert one == two, f"{module} imports {other}"
            else:
                assert rank[two] <= rank[one], f"{module} imports {other}, which is above it"


def test_no_python_modules_import_each_other_in_a_circle() -> None:
    # Raises CycleError, which names the circle.
    tuple(TopologicalSorter(python_arrows()).static_order())


def test_modules_imported_sees_every_way_of_importing() -> None:
    source = """
    import sensmerge.errors
    from sensmerge import InputError, cli, merge
    from sensmerge.models import folders, open_models
    if TYPE_CHECKING:
        from sensmerge.demo import run
    def function():
        import numpy, sensmerge
        from sensmerge.search.trials import tune
        sensmerge.coefficients(sensmerge.report.write)
    """
    modules = {module_name(path) for path in python_modules()}
    assert modules_imported(textwrap.dedent(source), modules) == {
        "", "cli", "errors", "models", "models.folders", "report", "scaling.sigma",
        "search.trials", "workflow",
    }  # fmt: skip


def test_the_core_knows_no_python() -> None:
    tree = ["cargo", "tree", "--package=sensmerge-core", "--edges=normal,build", "--prefix=none"]
    command = [*tree, "--locked", "--offline", "--format={p}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    crates = {line.split()[0] for line in run.stdout.splitlines()}
    assert {"sensmerge-core", "memmap2"} <= crates
    assert not {crate for crate in crates if crate.startswith(("pyo3", "sensmerge-py"))}


def test_unsafe_stays_in_the_files_named() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for path in rust_sources()
        if re.search(r"\bunsafe\b", without_comments(path.read_text()))
    }
    assert found == UNSAFE_FILES


@pytest.mark.parametrize("name", sorted(UNSAFE_FILES))
def test_every_unsafe_block_says_why_it_is_sound(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    blocks = [number for number, line in enumerate(lines) if re.search(r"\bunsafe\s*\{", line)]
    assert blocks
    for number in blocks:
        above = number - 1
        while lines[above].lstrip().startswith("//") and "SAFETY:" not in lines[above]:
            above -= 1
        assert "// SAFETY:" in lines[above], f"{name}:{number + 1}"


def test_every_room_of_the_core_is_known() -> None:
    rooms = {path.stem if path.is_file() else path.name for path in CORE.iterdir()} - {"lib"}
    assert rooms == set(ARROWS)


@pytest.mark.parametrize("room", sorted(ARROWS))
def test_rooms_of_the_core_use_only_what_they_may(room: str) -> None:
    folder, file = CORE / room, CORE / f"{room}.rs"
    for path in rust_sources(folder) if folder.is_dir() else [file]:
        extra = (rooms_used(path.read_text()) & set(ARROWS)) - ARROWS[room] - {room}
        assert not extra, f"{path.relative_to(ROOT)} uses {sorted(extra)}"


def test_no_room_is_reached_by_climbing() -> None:
    # `super::super::` from a room's file would be an arrow that the test above cannot see.
    for path in rust_sources(CORE):
        code = without_comments(path.read_text())
        assert "super::super" not in code, path
        at_root_of_room = path.name == "mod.rs" or path.parent == CORE
        climbs = re.findall(r"^use super::(\w+)", code, flags=re.M)
        assert not (at_root_of_room and climbs), f"{path.relative_to(ROOT)}: {climbs}"


def test_rooms_used_sees_every_way_of_naming_a_room() -> None:
    source = """
    use crate::kernel::sum; // crate::plan is not used
    use crate::{dtype::{Dtype, Float}, error::Error, random};
    fn f() -> crate::method::Method { panic!("crate::execute") }
    """
    assert rooms_used(source) == {"kernel", "dtype", "error", "random", "method"}


@pytest.mark.parametrize("name", ["docs.txt", "release.txt", "tools.txt", "torch.txt", "uv.txt"])
def test_pins_are_names_versions_and_hashes(name: str) -> None:
    text = (ROOT / "constraints" / name).read_text()
    pin = r"[a-z0-9-]+==[\w.+]+(?: ; [^\n]+)? \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
    assert re.fullmatch(f"(?:{pin})+", text)


def test_tests_cannot_reach_the_network() -> None:
    with pytest.raises(RuntimeError, match=r"tried to reach .*192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)
    with pytest.raises(RuntimeError, match=r"tried to reach .*example\.invalid"):
        socket.create_connection(("example.invalid", 80), timeout=0.1)
