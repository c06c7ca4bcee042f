"""The commands that search for coefficients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sensmerge.cli import printing
from sensmerge.cli.options import (
    FILE,
    calibration_option,
    check_writable,
    device_option,
    format_option,
    leniency_options,
    load_calibration,
    load_recipe,
    quiet_option,
    threads_option,
)
from sensmerge.errors import InputError

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.recipe import Leniency, Recipe
    from sensmerge.search.descent import Learned
    from sensmerge.search.soup import Soup
    from sensmerge.search.trials import Tuned


@click.command()
@click.argument("recipe", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The recipe to write.")
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
@calibration_option
@device_option
@threads_option
@leniency_options
@format_option()
@quiet_option
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
    device: str,
    threads: int | None,
    leniency: Leniency | None,
    form: str,
    quiet: bool,
) -> None:
    """Learn the weights of RECIPE from its samples, by gradient descent.

    OUTPUT is a plain recipe. Every step is kept beside it, in OUTPUT's name with .history.json: run
    the command again to go on after a stop, or to add steps with a larger --steps.
    """
    from sensmerge.search.descent import Options
    from sensmerge.search.descent import learn as run

    options = Options(steps, groups, loss, validation, learning_rate, pull)
    check_writable(output)
    loaded = load_recipe(recipe, leniency, say=not quiet)
    found = run(
        loaded,
        options,
        calibration=_calibrated(loaded, calibration, output, device, threads, quiet),
        history=output.with_suffix(".history.json"),
        home=output.parent,
        device=device,
        threads=threads,
        progress=not quiet,
    )
    written = found.write(output)
    _give(form, loaded, found, written, quiet=quiet)


@click.command()
@click.argument("recipe", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The recipe to write.")
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
    "--study", type=FILE, help="The file of all trials; OUTPUT's name with .study by default."
)
@click.option("--seed", type=int, default=0, show_default=True, help="The sampler's seed.")
@calibration_option
@device_option
@threads_option
@leniency_options
@format_option()
@quiet_option
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
    device: str,
    threads: int | None,
    leniency: Leniency | None,
    form: str,
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
    check_writable(output)
    loaded = load_recipe(recipe, leniency, say=not quiet)
    found = run(
        loaded,
        options,
        calibration=_calibrated(loaded, calibration, output, device, threads, quiet),
        study=study or output.with_suffix(".study"),
        home=output.parent,
        device=device,
        threads=threads,
        progress=not quiet,
    )
    written = found.write(output)
    _give(form, loaded, found, written, found.table(), quiet=quiet)


@click.command()
@click.argument("recipe", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The recipe to write.")
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
    default=0.0,
    show_default=True,
    help="Share of each task's samples that is kept for validation.",
)
@device_option
@threads_option
@leniency_options
@format_option()
@quiet_option
def soup(
    recipe: Path,
    output: Path,
    objective: str,
    task_weights: str | None,
    validation: float,
    device: str,
    threads: int | None,
    leniency: Leniency | None,
    form: str,
    quiet: bool,
) -> None:
    """Choose the models of RECIPE greedily: those that lower the loss of the merge on its samples.

    OUTPUT is the recipe with the models that were kept.
    """
    from sensmerge.search.judge import Objective
    from sensmerge.search.soup import soup as run

    check_writable(output)
    loaded = load_recipe(recipe, leniency, say=not quiet)
    found = run(
        loaded,
        objective=Objective(objective, _numbers("--task-weights", task_weights)),
        validation=validation,
        home=output.parent,
        device=device,
        threads=threads,
        progress=not quiet,
    )
    written = found.write(output)
    _give(form, loaded, found, written, found.table(), quiet=quiet)


def _give(
    form: str,
    recipe: Recipe,
    found: Learned | Tuned | Soup,
    written: list[Path],
    *tables: str,
    quiet: bool,
) -> None:
    """Print the outcome of a search, whose recipe's notes were printed before it."""
    data = found.as_dict() | {"written": written, "notes": [*recipe.notes, *found.notes]}
    text = "\n".join([*tables, f"wrote {', '.join(map(str, written))}"])
    printing.give(form, data, text, quiet=quiet, told=recipe.notes)


def _calibrated(
    recipe: Recipe,
    given: Path | None,
    output: Path,
    device: str,
    threads: int | None,
    quiet: bool,
) -> Calibration | None:
    """The calibration that a search needs: given, or measured now and written beside the output."""
    from sensmerge.scaling.matching import needs_calibration

    if given is not None or not needs_calibration(recipe):
        return load_calibration(given)
    from sensmerge.calibration import calibrate, forget

    beside = output.with_suffix(".calibration.json")
    measured = calibrate(recipe, progress=not quiet, threads=threads, device=device, keep=beside)
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
