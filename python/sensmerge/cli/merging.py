"""The commands that merge, or say what a merge would write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sensmerge.cli import mergekit, parts, printing, signals
from sensmerge.cli.options import (
    FILE,
    FOLDER,
    calibration_option,
    check_writable,
    device_option,
    force_option,
    format_option,
    leniency_options,
    load_calibration,
    load_recipe,
    load_staged,
    quiet_option,
    shard_option,
    threads_option,
    unpickle_option,
)

if TYPE_CHECKING:
    from sensmerge.recipe import Leniency, Recipe, StagedRecipe


@click.command(epilog="mergekit's options are understood too: see docs/mergekit.md.")
@click.argument("recipe", type=FILE, required=False)
@click.argument("out", type=FOLDER, required=False)
@calibration_option
@device_option
@threads_option
@shard_option
@click.option("--no-sync", is_flag=True, help="Do not flush the output to disk.")
@click.option("--no-hash", is_flag=True, help="Do not hash the output; it cannot be verified then.")
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan; write nothing.")
@force_option
@click.option("--allow-nan", is_flag=True, help="Write NaN and infinity instead of refusing them.")
@unpickle_option
@click.option(
    "-I",
    "--intermediate-dir",
    "stages",
    type=FOLDER,
    help="Keep the models of a recipe's stages here, and use those that are here already.",
)
@leniency_options
@parts.options
@format_option()
@quiet_option
@mergekit.options
def merge(
    recipe: Path | None,
    out: Path | None,
    calibration: Path | None,
    threads: int | None,
    device: str,
    max_shard_size: str | int,
    no_sync: bool,
    no_hash: bool,
    dry_run: bool,
    force: bool,
    unpickle: bool,
    allow_nan: bool,
    stages: Path | None,
    leniency: Leniency | None,
    form: str,
    quiet: bool,
    out_path: Path | None,
    out_shard_size: int | None,
    random_seed: int | None,
    copy_tokenizer: bool,
    write_model_card: bool,
    lazy: bool,
    **asked: Any,
) -> None:
    """Merge the models of RECIPE into the folder OUT.

    Calibrates first if the recipe has a `sensitivity:` section and no --calibration is given.
    Several processes can merge one model, each some of its weight files: see docs/many-machines.md.
    """
    from sensmerge import workflow
    from sensmerge.models.pickles import unpickling

    part = parts.Part(**asked)
    part.check(recipe)
    if part.plan_file is not None:
        from sensmerge.distributed.plan import PlannedMerge

        planned = PlannedMerge.load(part.plan_file)
        parts.carry_out(planned, part, form, threads=threads, sync=not no_sync, quiet=quiet)
        return
    out = out or out_path
    if recipe is None or out is None:
        raise click.UsageError(f"Missing argument '{'RECIPE' if recipe is None else 'OUT'}'.")
    without_effect = [each for each in (mergekit.note(),) if each is not None]
    if not quiet:
        printing.note(*without_effect)
    loaded = _seeded(load_staged(recipe, leniency), random_seed)
    measured, size = load_calibration(calibration), out_shard_size or max_shard_size
    if dry_run:
        with unpickling(out, enabled=unpickle, progress=not quiet):
            plan = workflow.plan(loaded, calibration=measured, max_shard_size=size)
            data = plan.as_dict() | {"notes": [*without_effect, *plan.notes]}
            told = [*without_effect, *printing.held(form, plan.notes)]
            printing.give(form, data, plan.describe(), quiet=quiet, told=told)
        return
    how: dict[str, Any] = {
        "calibration": measured,
        "threads": threads,
        "progress": not quiet,
        "device": device,
        "max_shard_size": size,
        "overwrite": force,
        "allow_nan": allow_nan,
        "tokenizer": copy_tokenizer,
        "card": write_model_card,
    }
    if part.engine == parts.RAY:
        planned = workflow.plan_merge(loaded, out, **how)
        parts.carry_out(planned, part, form, threads=threads, sync=not no_sync, quiet=quiet)
        return
    result = workflow.merge(
        loaded,
        out,
        sync=not no_sync,
        hash_output=not no_hash,
        unpickle=unpickle,
        stages=stages,
        committed=signals.drop,
        reuse=lazy,
        **how,
    )
    signals.ignore()
    data = result.as_dict() | {"notes": [*without_effect, *result.notes]}
    printing.give(form, data, result.describe(), quiet=quiet, told=without_effect)


@click.command(name="merge-lora")
@click.argument("recipe", type=FILE)
@click.argument("out", type=FOLDER)
@click.option(
    "--rank",
    "--max-rank",
    type=click.IntRange(min=1),
    help="Largest rank of a module; by default as many as the merged change has.",
)
@calibration_option
@threads_option
@click.option("--force", is_flag=True, help="Replace what the folder holds of an adapter.")
@unpickle_option
@leniency_options
@format_option()
@quiet_option
def merge_lora(
    recipe: Path,
    out: Path,
    rank: int | None,
    calibration: Path | None,
    threads: int | None,
    force: bool,
    unpickle: bool,
    leniency: Leniency | None,
    form: str,
    quiet: bool,
) -> None:
    """Merge the LoRA adapters of RECIPE into one adapter in PEFT's format, in the folder OUT.

    The experts are BASE+ADAPTER over one base. They are merged in the low-rank space that they
    share, by any method for task vectors; neither the base nor a full matrix is read or formed.
    """
    from sensmerge.lora import merging

    found = merging.merge_lora(
        load_recipe(recipe, leniency),
        out,
        rank,
        calibration=load_calibration(calibration),
        threads=threads,
        progress=not quiet,
        overwrite=force,
        unpickle=unpickle,
    )
    printing.give(form, found.as_dict(), found.describe(), quiet=quiet)


def _seeded(recipe: Recipe | StagedRecipe, seed: int | None) -> Recipe | StagedRecipe:
    """The recipe with the seed of the command line, if there is one."""
    return recipe if seed is None else recipe.seeded(seed)


@click.command()
@click.argument("recipe", type=FILE)
@click.argument("out", type=FOLDER, required=False)
@click.option("-o", "--output", type=FILE, required=True, help="The plan.json to write.")
@calibration_option
@device_option
@threads_option
@shard_option
@force_option
@click.option("--allow-nan", is_flag=True, help="Write NaN and infinity instead of refusing them.")
@leniency_options
@format_option()
@quiet_option
def plan(
    recipe: Path,
    out: Path | None,
    output: Path,
    calibration: Path | None,
    device: str,
    threads: int | None,
    max_shard_size: str,
    force: bool,
    allow_nan: bool,
    leniency: Leniency | None,
    form: str,
    quiet: bool,
) -> None:
    """Write the plan of the merge of RECIPE: every output tensor, its inputs and its numbers.

    No tensor is merged. The plan names the models' files with digests, so that changes are noticed.
    With the folder OUT, the plan is one that several processes can carry out by `merge --plan`, and
    what the recipe needs to know of the models is measured first.
    """
    from sensmerge import workflow
    from sensmerge.files import write_atomically

    check_writable(output)
    loaded, measured = load_staged(recipe, leniency), load_calibration(calibration)
    if out is not None:
        parted = workflow.plan_merge(
            loaded,
            out,
            measured,
            threads,
            not quiet,
            device=device,
            max_shard_size=max_shard_size,
            overwrite=force,
            allow_nan=allow_nan,
        )
        parted.save(output)
        data = {"written": [output], **parted.as_dict()}
        text = f"{parted.describe()}\nwrote {output}"
        printing.give(form, data, text, quiet=quiet)
        return
    planned = workflow.plan(loaded, calibration=measured)
    write_atomically(output, planned.to_json())
    data = {"written": [output], "notes": planned.notes}
    printing.give(form, data, f"wrote {output}", quiet=quiet)
