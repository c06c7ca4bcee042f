"""The command that evaluates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sensmerge.cli import printing
from sensmerge.cli.options import (
    FILE,
    FOLDER,
    calibration_option,
    check_writable,
    device_option,
    format_option,
    leniency_options,
    load_calibration,
    load_recipe,
    quiet_option,
    threads_option,
    unpickle_option,
)

if TYPE_CHECKING:
    from sensmerge.recipe import Leniency, Recipe


@click.command(name="eval")
@click.argument("models", nargs=-1, metavar="MODEL_OR_RECIPE...")
@click.option(
    "--tasks",
    default="paper",
    show_default=True,
    metavar="NAMES",
    help="Tasks of lm-evaluation-harness, with commas; paper stands for the seven of the paper.",
)
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="A file of results: what it has is not evaluated again, and what is new is added.",
)
@click.option(
    "--tasks-dir",
    "--include-path",
    "tasks_dir",
    type=FOLDER,
    help="A folder with task files of your own.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Samples of each task; all by default.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Requests that run at a time.",
)
@click.option(
    "--dtype",
    type=click.Choice(["stored", "float32"]),
    default="stored",
    show_default=True,
    help="What models run in.",
)
@click.option(
    "--run-code",
    is_flag=True,
    help="Run the programs that models write for mbpp, humaneval and their like; see "
    "docs/evaluation.md.",
)
@click.option(
    "--trust-tasks",
    is_flag=True,
    help="Run the Python that task files in --tasks-dir name.",
)
@calibration_option
@device_option
@threads_option
@unpickle_option
@leniency_options
@format_option()
@quiet_option
def eval_(
    models: tuple[str, ...],
    output: Path | None,
    calibration: Path | None,
    leniency: Leniency | None,
    form: str,
    quiet: bool,
    **how: Any,
) -> None:
    """Score models on benchmarks, zero-shot: folders, models on the Hub, or recipes.

    A recipe is merged in memory, and calibrated first if it needs to be. Without models, the table
    of OUTPUT is printed.
    """
    from sensmerge.evaluation.kinds import is_recipe
    from sensmerge.evaluation.record import Evaluation

    if not models:
        if output is None:
            raise click.UsageError("Missing argument 'MODEL_OR_RECIPE...'.")
        found = Evaluation.load(output)
        written: list[Path] = []
    else:
        from sensmerge.evaluation import evaluate

        if output is not None:
            check_writable(output)
        chosen: dict[str, str | Recipe] = {
            name: load_recipe(Path(name), leniency) if is_recipe(name) else name for name in models
        }
        found = evaluate(
            chosen,
            results=output,
            calibration=load_calibration(calibration),
            progress=not quiet,
            **how,
        )
        written = [] if output is None else [output]
    data = found.as_dict() | {"written": written}
    text = "\n".join([found.table(), *(f"wrote {path}" for path in written)])
    printing.give(form, data, text, quiet=quiet)
