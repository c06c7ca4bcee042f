"""The command that says whether an output is what its merge wrote."""

from __future__ import annotations

from pathlib import Path

import click

from sensmerge.cli import printing
from sensmerge.cli.options import FILE, FOLDER, load_recipe, quiet_option, threads_option
from sensmerge.errors import InputError


@click.command()
@click.argument("out", type=FOLDER)
@click.option(
    "--check", "recipe", type=FILE, help="Merge this recipe again, in memory, and compare."
)
@threads_option
@quiet_option
def verify(out: Path, recipe: Path | None, threads: int | None, quiet: bool) -> None:
    """Hash the files of OUT and compare with what its merge listed."""
    from sensmerge.merging import verification
    from sensmerge.models.inspection import human_size

    found = verification.verify(out, threads=threads)
    faults = list(found.faults)
    if recipe is not None and not faults:
        faults += verification.check(out, load_recipe(recipe, None), threads=threads)
    if faults:
        raise InputError(faults)
    if quiet:
        return
    if found.unlisted:
        printing.note(f"not written by the merge: {', '.join(found.unlisted)}")
    again = "" if recipe is None else f"; merged again from {recipe}: the same"
    printing.show(f"{out}: {found.files} files, {human_size(found.bytes)}, as written{again}")
