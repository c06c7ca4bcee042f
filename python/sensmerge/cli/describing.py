"""The commands that describe models, methods and recipes, and the demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sensmerge.cli import printing
from sensmerge.cli.options import (
    FILE,
    FOLDER,
    PATH,
    check_writable,
    format_option,
    leniency_options,
    load_staged,
    threads_option,
)

if TYPE_CHECKING:
    from sensmerge.recipe import Leniency


@click.command()
@click.argument("model", type=PATH)
@format_option()
def inspect(model: Path, form: str) -> None:
    """List the tensors, dtypes, sizes and layers of MODEL."""
    from sensmerge.models import inspection

    found = inspection.inspect(model)
    told = printing.held(form, found.notes)
    printing.give(form, found.as_dict(), found.describe(), told=told)


@click.command()
@click.argument("name", required=False)
@click.option(
    "--semantics",
    type=click.Choice(["mergekit", "original"]),
    default="mergekit",
    show_default=True,
    help="The variant of the methods: mergekit's or the papers'.",
)
@format_option()
def methods(name: str | None, semantics: Any, form: str) -> None:
    """List the merge methods and their parameters, or describe the method NAME in full."""
    from sensmerge.recipe import tables

    data = tables.as_dict(name, semantics)
    text = tables.listed(semantics) if name is None else tables.described(name, semantics)
    printing.give(form, data, text, told=printing.held(form, data["notes"]))


@click.command()
@click.argument("recipe", type=FILE)
@leniency_options
@format_option()
def explain(recipe: Path, leniency: Leniency | None, form: str) -> None:
    """Say in words what a merge of RECIPE does, and what mergekit would do otherwise.

    No weights are read; the models need not be here.
    """
    from sensmerge.merging.explained import explain as explained

    found = explained(load_staged(recipe, leniency))
    told = printing.held(form, found.notes)
    printing.give(form, found.as_dict(), found.describe(), told=told)


@click.command()
@click.option("-o", "--output", type=FILE, help="The file to write; by default it is printed.")
@click.option("--farm", is_flag=True, help="The schema of farm files.")
def schema(output: Path | None, farm: bool) -> None:
    """Print a JSON Schema of recipes or of farm files, for editors."""
    if farm:
        from sensmerge.farm.settings import farm_schema as made
    else:
        from sensmerge.recipe.schema import recipe_schema as made

    text = json.dumps(made(), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    check_writable(output)
    output.write_text(text, encoding="utf-8")
    printing.show(f"wrote {output}")


@click.command()
@click.argument("folder", metavar="[DIR]", type=FOLDER, default=Path("demo"), required=False)
@click.option("--seed", default=0, show_default=True, help="Seed of training and merging.")
@threads_option
def demo(folder: Path, seed: int, threads: int | None) -> None:
    """Train a small family of models, merge it in every way, and compare."""
    from sensmerge.demo import run

    run(folder, seed=seed, threads=threads)
