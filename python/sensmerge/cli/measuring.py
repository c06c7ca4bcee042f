"""The commands that calibrate, and show what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sensmerge.cli import printing
from sensmerge.cli.options import (
    FILE,
    PATH,
    calibration_option,
    check_writable,
    device_option,
    format_option,
    leniency_options,
    load_recipe,
    quiet_option,
    require_calibration,
    threads_option,
    unpickle_option,
)
from sensmerge.errors import InputError

if TYPE_CHECKING:
    from sensmerge.recipe import Leniency


@click.command()
@click.argument("recipe", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The calibration.json to write.")
@click.option(
    "--memory",
    type=click.Choice(["auto", "whole", "stream"]),
    default="auto",
    show_default=True,
    help="Run models whole, or block by block for models larger than memory.",
)
@device_option
@threads_option
@unpickle_option
@leniency_options
@format_option()
@quiet_option
def calibrate(
    recipe: Path,
    output: Path,
    memory: str,
    device: str,
    threads: int | None,
    unpickle: bool,
    leniency: Leniency | None,
    form: str,
    quiet: bool,
) -> None:
    """Measure sensitivity and alignment of the experts of RECIPE.

    Results in OUTPUT, or of an earlier run that was stopped, are not measured again.
    """
    from sensmerge.calibration import calibrate as run
    from sensmerge.calibration import forget

    loaded = load_recipe(recipe, leniency, say=not quiet)
    check_writable(output)
    calibration = run(
        loaded,
        progress=not quiet,
        threads=threads,
        memory=memory,
        device=device,
        keep=output,
        unpickle=unpickle,
    )
    calibration.save(output)
    forget(output)
    written = [output, *(output.with_name(each) for each in calibration.files)]
    notes = list(dict.fromkeys([*loaded.notes, *calibration.notes]))
    data = calibration.summary() | {"written": written, "notes": notes}
    text = f"wrote {', '.join(map(str, written))}"
    printing.give(form, data, text, quiet=quiet, told=loaded.notes)


@click.command()
@click.argument("recipe", type=FILE)
@calibration_option
@format_option("mergekit")
@leniency_options
def coefficients(
    recipe: Path, calibration: Path | None, form: str, leniency: Leniency | None
) -> None:
    """Print the coefficients of every expert and layer."""
    from sensmerge import workflow
    from sensmerge.scaling import sigma
    from sensmerge.scaling.matching import matching

    loaded = load_recipe(recipe, leniency, say=True)
    if not loaded.measures_experts:
        raise InputError(
            "the recipe needs no coefficients: beside aim, it has no sensitivity section"
        )
    if calibration is None:
        raise InputError("--calibration: name the file that `sensmerge calibrate` wrote")
    measured = matching(loaded, require_calibration(calibration))
    found = sigma.coefficients(measured, loaded)
    if form == "mergekit":
        click.echo(workflow.as_mergekit(loaded, found), nl=False)
        return
    data = found.as_dict() | {"notes": [*loaded.notes, *found.notes()]}
    told = [*loaded.notes, *printing.held(form, found.notes())]
    printing.give(form, data, found.table(), told=told)


@click.command()
@click.argument("source", metavar="FILE_OR_OUT", type=PATH)
@click.option("-o", "--output", type=FILE, required=True, help="The HTML file to write.")
@click.option("--png", type=FILE, help="Also write the figure as a picture.")
@click.option("--recipe", type=FILE, help="The recipe whose coefficients are shown.")
@click.option("--losses", type=FILE, help="The .trials.json of `tune`, to show the losses in it.")
@leniency_options
@format_option()
def report(
    source: Path,
    output: Path,
    png: Path | None,
    recipe: Path | None,
    losses: Path | None,
    leniency: Leniency | None,
    form: str,
) -> None:
    """Write a report of a calibration file or of a merged model's folder."""
    from sensmerge.recipe import DEFAULT_LENIENCY
    from sensmerge.report import write_for

    strictness = leniency or DEFAULT_LENIENCY
    write_for(source, output, png=png, recipe=recipe, losses=losses, leniency=strictness)
    written = [path for path in (output, png) if path is not None]
    text = "\n".join(f"wrote {path}" for path in written)
    printing.give(form, {"written": written, "notes": []}, text)
