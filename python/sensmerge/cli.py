"""The command line: reads arguments, calls one function per command, maps errors to exit codes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sensmerge import InputError, __version__

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.recipe import Recipe

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

# Hints at the option that would have avoided an error, by the keyword that the error names.
_HINTS = {
    "allow_nan": "--allow-nan writes such values instead of refusing them",
    "overwrite": "--force replaces what an earlier merge wrote",
}

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_PATH = click.Path(path_type=Path)

_threads = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads to use; all cores by default."
)
_quiet = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
_calibration = click.option(
    "--calibration", type=_FILE, help="A calibration.json made earlier for these experts."
)


def main() -> None:
    """Run the command line; exit 0 done, 2 bad input, 130 interrupted, 1 anything else."""
    # By default, torch's idle threads spin; on a busy machine that starves the threads at work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Recipes use no pydantic plugins, and searching for them takes a tenth of a merge's start-up.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        commands(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(EXIT_BAD_INPUT)
    except (InputError, click.ClickException) as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(error.ctx.get_usage(), err=True)
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        _fail(message, EXIT_BAD_INPUT, _HINTS.get(getattr(error, "option", None) or ""))
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of the output is gone, and so is the terminal for a message.
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error}", 1)


def _fail(message: str, code: int, hint: str | None = None) -> None:
    # The message about a recipe has one line per fault.
    for line in message.splitlines() or [""]:
        click.echo(f"error: {line}", err=True)
    if hint is not None:
        click.echo(f"hint: {hint}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sensmerge")
def commands() -> None:
    """Merge fine-tuned LLM checkpoints, each layer weighted by its importance."""


@commands.command()
@click.argument("recipe", type=_FILE)
@click.argument("out", type=_FOLDER)
@_calibration
@_threads
@click.option(
    "--max-shard-size",
    default="5GB",
    show_default=True,
    help="Largest size of a weight file, such as 5GB or 500MiB.",
)
@click.option("--no-sync", is_flag=True, help="Do not flush the output to disk.")
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan; write nothing.")
@click.option("--force", is_flag=True, help="Replace the output of an earlier merge in OUT.")
@click.option("--allow-nan", is_flag=True, help="Write NaN and infinity instead of refusing them.")
@_quiet
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
    quiet: bool,
) -> None:
    """Merge the models of RECIPE into the folder OUT.

    Calibrates first if the recipe has a `sensitivity:` section and no --calibration is given.
    """
    from sensmerge import workflow

    loaded = _load(recipe)
    measured = _load_calibration(calibration)
    if dry_run:
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
    )
    if not quiet:
        for note in result.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(result.describe())


@commands.command()
@click.argument("recipe", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="The plan.json to write.")
@_calibration
@_quiet
def plan(recipe: Path, output: Path, calibration: Path | None, quiet: bool) -> None:
    """Write the plan of the merge of RECIPE: every output tensor, its inputs and its numbers.

    No tensor is merged. The plan names the models' files with digests, so that changes are noticed.
    """
    from sensmerge import workflow
    from sensmerge.files import write_atomically

    _check_writable(output)
    planned = workflow.plan(_load(recipe), calibration=_load_calibration(calibration))
    write_atomically(output, planned.to_json())
    if not quiet:
        for note in planned.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(f"wrote {output}")


@commands.command()
@click.argument("recipe", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="The calibration.json to write.")
@click.option(
    "--memory",
    type=click.Choice(["auto", "whole", "stream"]),
    default="auto",
    show_default=True,
    help="Run models whole, or block by block for models larger than memory.",
)
@click.option("--device", default="cpu", show_default=True, help="A torch device, such as cuda.")
@_threads
@_quiet
def calibrate(
    recipe: Path, output: Path, memory: str, device: str, threads: int | None, quiet: bool
) -> None:
    """Measure sensitivity and alignment of the experts of RECIPE.

    Results in OUTPUT, or of an earlier run that was stopped, are not measured again.
    """
    from sensmerge.calibration import calibrate as run
    from sensmerge.calibration import forget

    loaded = _load(recipe, say=not quiet)
    _check_writable(output)
    calibration = run(
        loaded, progress=not quiet, threads=threads, memory=memory, device=device, keep=output
    )
    calibration.save(output)
    forget(output)
    if not quiet:
        for note in calibration.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(f"wrote {output}")


@commands.command()
@click.argument("recipe", type=_FILE)
@_calibration
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "mergekit"]),
    default="table",
    show_default=True,
)
def coefficients(recipe: Path, calibration: Path | None, form: str) -> None:
    """Print the coefficients of every expert and layer."""
    from sensmerge import workflow
    from sensmerge.scaling import sigma
    from sensmerge.scaling.matching import matching

    loaded = _load(recipe, say=True)
    if calibration is None:
        raise InputError("--calibration: name the file that `sensmerge calibrate` wrote")
    measured = matching(loaded, _require_calibration(calibration))
    found = sigma.coefficients(measured, loaded)
    if form == "json":
        click.echo(found.to_json())
    elif form == "mergekit":
        click.echo(workflow.as_mergekit(loaded, found), nl=False)
    else:
        click.echo(found.table())


@commands.command()
@click.argument("recipe", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="The recipe to write.")
@click.option(
    "--steps", type=click.IntRange(min=1), default=30, show_default=True, help="Steps at most."
)
@click.option(
    "--groups",
    type=click.Choice(["global", "block", "tensor"]),
    default="block",
    show_default=True,
    help="Tensors that share a weight: all, those of a block, or none.",
)
@click.option(
    "--loss",
    type=click.Choice(["nll", "distill"]),
    default="nll",
    show_default=True,
    help="Loss on the completions, or divergence from each expert's predictions.",
)
@click.option(
    "--validation",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.3,
    show_default=True,
    help="Share of each task's samples that is kept for validation.",
)
@click.option("--learning-rate", type=float, default=0.05, show_default=True, help="Adam's.")
@click.option(
    "--pull",
    type=float,
    default=0.05,
    show_default=True,
    help="Factor of the penalty on the distance from the first weights.",
)
@_calibration
@_threads
@_quiet
def learn(
    recipe: Path,
    output: Path,
    steps: int,
    groups: str,
    loss: str,
    validation: float,
    learning_rate: float,
    pull: float,
    calibration: Path | None,
    threads: int | None,
    quiet: bool,
) -> None:
    """Learn the weights of RECIPE from its samples, by gradient descent.

    OUTPUT is a plain recipe. Every step is kept beside it, in OUTPUT's name with .history.json: run
    the command again to go on after a stop, or to add steps with a larger --steps.
    """
    from sensmerge.search.descent import Options
    from sensmerge.search.descent import learn as run

    options = Options(steps, groups, loss, validation, learning_rate, pull)
    _check_writable(output)
    loaded = _load(recipe, say=not quiet)
    found = run(
        loaded,
        options,
        calibration=_calibrated(loaded, calibration, output, threads, quiet),
        history=output.with_suffix(".history.json"),
        home=output.parent,
        threads=threads,
        progress=not quiet,
    )
    written = found.write(output)
    if not quiet:
        for note in found.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(f"wrote {' and '.join(map(str, written))}")


@commands.command()
@click.argument("recipe", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="The recipe to write.")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Total number of trials.",
)
@click.option(
    "--search",
    default="temperature,lambda,density,cross_task,mode",
    show_default=True,
    metavar="KEYS",
    help="The settings to search for.",
)
@click.option("--methods", metavar="NAMES", help="Methods to try; the recipe's by default.")
@click.option(
    "--sampler",
    type=click.Choice(["tpe", "cmaes", "grid", "random"]),
    default="tpe",
    show_default=True,
    help="The algorithm that proposes trials.",
)
@click.option(
    "--objective",
    type=click.Choice(["mean", "worst"]),
    default="mean",
    show_default=True,
    help="Minimise the mean of the tasks' losses, or the largest one.",
)
@click.option("--task-weights", metavar="NUMBERS", help="The tasks' weights in the mean: 2,1,1.")
@click.option(
    "--validation",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.3,
    show_default=True,
    help="Share of each task's samples that is kept for validation.",
)
@click.option(
    "--study", type=_FILE, help="The file of all trials; OUTPUT's name with .study by default."
)
@click.option("--seed", type=int, default=0, show_default=True, help="The sampler's seed.")
@_calibration
@_threads
@_quiet
def tune(
    recipe: Path,
    output: Path,
    trials: int,
    search: str,
    methods: str | None,
    sampler: str,
    objective: str,
    task_weights: str | None,
    validation: float,
    study: Path | None,
    seed: int,
    calibration: Path | None,
    threads: int | None,
    quiet: bool,
) -> None:
    """Search temperature, lambda and the rest of RECIPE for the lowest loss on its samples.

    OUTPUT is the best trial's recipe; all trials are written beside it. Run the command again to go
    on after a stop, or to add trials with a larger --trials.
    """
    from sensmerge.search.judge import Objective
    from sensmerge.search.trials import Options
    from sensmerge.search.trials import tune as run

    options = Options(
        trials=trials,
        keys=_names(search),
        methods=_methods(methods),
        sampler=sampler,
        objective=Objective(objective, _numbers("--task-weights", task_weights)),
        validation=validation,
        seed=seed,
    )
    _check_writable(output)
    loaded = _load(recipe, say=not quiet)
    found = run(
        loaded,
        options,
        calibration=_calibrated(loaded, calibration, output, threads, quiet),
        study=study or output.with_suffix(".study"),
        home=output.parent,
        threads=threads,
        progress=not quiet,
    )
    written = found.write(output)
    if not quiet:
        click.echo(found.table())
        for note in found.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(f"wrote {', '.join(map(str, written))}")


@commands.command()
@click.argument("source", metavar="FILE_OR_OUT", type=_PATH)
@click.option("-o", "--output", type=_FILE, required=True, help="The HTML file to write.")
@click.option("--png", type=_FILE, help="Also write the figure as a picture.")
@click.option("--recipe", type=_FILE, help="The recipe whose coefficients are shown.")
def report(source: Path, output: Path, png: Path | None, recipe: Path | None) -> None:
    """Write a report of a calibration file or of a merged model's folder."""
    from sensmerge.report import write_for

    write_for(source, output, png=png, recipe=recipe)
    for written in (output, png):
        if written is not None:
            click.echo(f"wrote {written}")


@commands.command()
@click.argument("model", type=_PATH)
def inspect(model: Path) -> None:
    """List the tensors, dtypes, sizes and layers of MODEL."""
    from sensmerge.models.inspection import describe

    click.echo(describe(model))


@commands.command()
@click.argument("name", required=False)
@click.option(
    "--semantics",
    type=click.Choice(["mergekit", "original"]),
    default="mergekit",
    show_default=True,
    help="The variant of the methods: mergekit's or the papers'.",
)
def methods(name: str | None, semantics: Any) -> None:
    """List the merge methods and their parameters, or describe the method NAME in full."""
    from sensmerge.recipe import tables

    if name is None:
        click.echo(tables.listed(semantics))
    else:
        click.echo(tables.described(name, semantics))


@commands.command()
@click.option("-o", "--output", type=_FILE, help="The file to write; by default it is printed.")
def schema(output: Path | None) -> None:
    """Print a JSON Schema of recipes, for editors."""
    from sensmerge.recipe.schema import recipe_schema

    text = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    _check_writable(output)
    output.write_text(text, encoding="utf-8")
    click.echo(f"wrote {output}")


@commands.command()
@click.argument("folder", metavar="[DIR]", type=_FOLDER, default=Path("demo"), required=False)
@click.option("--seed", default=0, show_default=True, help="Seed of training and merging.")
@_threads
def demo(folder: Path, seed: int, threads: int | None) -> None:
    """Train a small family of models, merge it in every way, and compare."""
    from sensmerge.demo import run

    run(folder, seed=seed, threads=threads)


def _calibrated(
    recipe: Recipe, given: Path | None, output: Path, threads: int | None, quiet: bool
) -> Calibration | None:
    """The calibration that a search needs: given, or measured now and written beside the output."""
    from sensmerge.scaling.matching import needs_calibration

    if given is not None or not needs_calibration(recipe):
        return _load_calibration(given)
    from sensmerge.calibration import calibrate, forget

    beside = output.with_suffix(".calibration.json")
    measured = calibrate(recipe, progress=not quiet, threads=threads, keep=beside)
    measured.save(beside)
    forget(beside)
    return measured


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _methods(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    from sensmerge.recipe import methods

    for name in _names(text):
        if methods.find(name) is None:
            raise InputError(f"--methods: '{name}' is none of {', '.join(methods.names())}")
    return _names(text)


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{option}: '{text}' is not a list of numbers; write it like 2,1,1"
        ) from None


def _check_writable(output: Path) -> None:
    """Refuse a path that cannot be written to, before long work rather than after it."""
    nearest = next(place for place in [output, *output.absolute().parents] if place.exists())
    if not os.access(nearest, os.W_OK):
        raise InputError(f"{output}: cannot be written there")


def _load(path: Path, *, say: bool = False) -> Recipe:
    """Read a recipe; with ``say``, print its notes, for commands whose result lacks them."""
    from sensmerge.recipe import Recipe

    recipe = Recipe.load(path)
    for note in recipe.notes if say else []:
        click.echo(f"note: {note}", err=True)
    return recipe


def _load_calibration(path: Path | None) -> Calibration | None:
    return None if path is None else _require_calibration(path)


def _require_calibration(path: Path) -> Calibration:
    from sensmerge.calibration import Calibration

    return Calibration.load(path)


if __name__ == "__main__":
    main()
