"""What several commands share: the types of their arguments, options, and the reading of files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sensmerge.cli import printing
from sensmerge.errors import InputError

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.recipe import Leniency, Recipe, StagedRecipe

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)

threads_option = click.option(
    "-j",
    "--threads",
    "--num-threads",
    "threads",
    type=click.IntRange(min=1),
    help="Threads to use; all cores by default.",
)
quiet_option = click.option(
    "--quiet", is_flag=True, help="Print nothing but errors, and JSON where that is asked for."
)
force_option = click.option(
    "--force", is_flag=True, help="Replace the output of an earlier merge in OUT."
)
shard_option = click.option(
    "--max-shard-size",
    default="5GB",
    show_default=True,
    help="Largest size of a weight file, such as 5GB or 500MiB.",
)
device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="The torch device that models run on, such as cuda; weights are merged on the processor.",
)
unpickle_option = click.option(
    "--unpickle",
    is_flag=True,
    help="Read models stored as pickles (.bin): torch opens them in a process of their own.",
)
calibration_option = click.option(
    "--calibration", type=FILE, help="A calibration.json made earlier for these experts."
)


def format_option(*others: str) -> Callable[..., Any]:
    """The option that says how a command prints what it found; the command gets ``form``.

    Args:
        others: Forms beside text and JSON.
    """
    return click.option(
        "--format",
        "form",
        type=click.Choice([printing.TEXT, printing.JSON, *others]),
        default=printing.TEXT,
        show_default=True,
        help="How the result is printed; json is one document, see docs/json.md.",
    )


def leniency_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command that reads a recipe be told what to do with unknown keys.

    The command gets ``leniency``: ``strict``, ``lenient``, or None.
    """
    for name, help_ in (
        ("lenient", "Note unknown keys of the recipe, slips too, and go on."),
        ("strict", "Refuse every unknown key of the recipe, and keys that stand twice."),
    ):
        command = click.option(f"--{name}", "leniency", flag_value=name, help=help_)(command)
    return command


def check_writable(output: Path) -> None:
    """Refuse a path that cannot be written to, before long work rather than after it."""
    nearest = next(place for place in [output, *output.absolute().parents] if place.exists())
    if not os.access(nearest, os.W_OK):
        raise InputError(f"{output}: cannot be written there")


def load_staged(path: Path, leniency: Leniency | None) -> Recipe | StagedRecipe:
    """Read a recipe of one document or of several."""
    from sensmerge.recipe import DEFAULT_LENIENCY, load

    return load(path, leniency=leniency or DEFAULT_LENIENCY)


def load_recipe(path: Path, leniency: Leniency | None, *, say: bool = False) -> Recipe:
    """Read a recipe; with ``say``, print its notes, for commands whose result lacks them."""
    from sensmerge.recipe import DEFAULT_LENIENCY, Recipe

    recipe = Recipe.load(path, leniency=leniency or DEFAULT_LENIENCY)
    printing.note(*recipe.notes if say else [])
    return recipe


def load_calibration(path: Path | None) -> Calibration | None:
    """The calibration in a file; None where no file is named."""
    return None if path is None else require_calibration(path)


def require_calibration(path: Path) -> Calibration:
    """The calibration in a file."""
    from sensmerge.calibration import Calibration

    return Calibration.load(path)
