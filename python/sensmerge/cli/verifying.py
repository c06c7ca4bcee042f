"""The command that says whether an output is what its merge wrote."""

from __future__ import annotations

from pathlib import Path

import click

from sensmerge.cli import printing
from sensmerge.cli.options import (
    FILE,
    FOLDER,
    format_option,
    load_recipe,
    quiet_option,
    threads_option,
)
from sensmerge.errors import InputError


@click.command()
@click.argument("out", type=FOLDER)
@click.option(
    "--check", "recipe", type=FILE, help="Merge this recipe again, in memory, and compare."
)
@threads_option
@format_option()
@quiet_option
def verify(out: Path, recipe: Path | None, threads: int | None, form: str, quiet: bool) -> None:
    """Hash the files of OUT and compare with what its merge listed."""
    from sensmerge.merging import verification

    found = verification.verify(out, threads=threads)
    if recipe is not None and not found.faults:
        found = found.merged_again(load_recipe(recipe, None), threads=threads)
    # What is wrong is a result too, for who reads the document.
    if form == printing.JSON or not found.faults:
        printing.give(form, found.as_dict(), found.describe(), quiet=quiet)
    if found.faults:
        raise InputError(found.faults)
