"""The commands that merge, or say what a merge would write."""

from __future__ import annotations

from pathlib import Path

import click

from sensmerge.cli.options import (
    FILE,
    FOLDER,
    calibration_option,
    check_writable,
    force_option,
    load_calibration,
    load_recipe,
    quiet_option,
    shard_option,
    threads_option,
    unpickle_option,
)


@click.command()
@click.argument("recipe", type=FILE)
@click.argument("out", type=FOLDER)
@calibration_option
@threads_option
@shard_option
@click.option("--no-sync", is_flag=True, help="Do not flush the output to disk.")
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan; write nothing.")
@force_option
@click.option("--allow-nan", is_flag=True, help="Write NaN and infinity instead of refusing them.")
@unpickle_option
@quiet_option
def merge(
    recipe: Path,
    out: Path,
    calibration: Path | None,
    threads: int | None,
    max_shard_size: str,
    no_sync: bool,
    dry_run: bool,
    force: bool,
    allow_nan: bool,
    unpickle: bool,
    quiet: bool,
) -> None:
    """Merge the models of RECIPE into the folder OUT.

    Calibrates first if the recipe has a `sensitivity:` section and no --calibration is given.
    """
    from sensmerge import workflow
    from sensmerge.models.pickles import unpickling

    loaded = load_recipe(recipe)
    measured = load_calibration(calibration)
    if dry_run:
        with unpickling(out, enabled=unpickle, progress=not quiet):
            plan = workflow.plan(loaded, calibration=measured, max_shard_size=max_shard_size)
            if not quiet:
                click.echo(plan.describe())
        return
    result = workflow.merge(
        loaded,
        out,
        calibration=measured,
        threads=threads,
        progress=not quiet,
        max_shard_size=max_shard_size,
        sync=not no_sync,
        overwrite=force,
        allow_nan=allow_nan,
        unpickle=unpickle,
    )
    if not quiet:
        for note in result.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(result.describe())


@click.command()
@click.argument("recipe", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The plan.json to write.")
@calibration_option
@quiet_option
def plan(recipe: Path, output: Path, calibration: Path | None, quiet: bool) -> None:
    """Write the plan of the merge of RECIPE: every output tensor, its inputs and its numbers.

    No tensor is merged. The plan names the models' files with digests, so that changes are noticed.
    """
    from sensmerge import workflow
    from sensmerge.files import write_atomically

    check_writable(output)
    planned = workflow.plan(load_recipe(recipe), calibration=load_calibration(calibration))
    write_atomically(output, planned.to_json())
    if not quiet:
        for note in planned.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(f"wrote {output}")
