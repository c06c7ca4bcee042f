"""The command line of this example."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import click

# Threads that spin while they wait starve, on a busy machine, those they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PATH = click.Path(path_type=Path)


@click.group()
def commands() -> None:
    """Rerun the paper's tables on the models that a file names."""


@commands.command()
@click.argument("folder", type=PATH)
def shapes(folder: Path) -> None:
    """Make models of the shapes of the paper's, but small, in FOLDER, and merge them."""
    import shapes as made

    made.run(folder)


@commands.command()
@click.argument("folder", type=PATH)
@click.option("--quick", is_flag=True, help="Train far too little, for a trial of the machinery.")
def trial(folder: Path, quick: bool) -> None:
    """Train a small family in FOLDER, with tasks of its own, to try the other commands on."""
    from trial import make

    if folder.exists() and any(folder.iterdir()):
        raise click.ClickException(f"{folder}: is not empty; name another folder")
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s] {text}", file=sys.stderr, flush=True)

    print(make(folder, quick=quick, say=say))


def _table(name: str, about: str) -> click.Command:
    """A command that makes one of the paper's tables."""

    @click.argument("folder", type=PATH)
    @click.option(
        "--models",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        required=True,
        help="The file that names base, experts and samples; see models/ beside this example.",
    )
    @click.option("--limit", type=click.IntRange(min=1), help="Samples of each task; all.")
    @click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True)
    @click.option("--device", default="cpu", show_default=True, help="Such as cuda.")
    @click.option("--run-code", is_flag=True, help="Run the programs that models write.")
    @click.option("--trust-tasks", is_flag=True, help="Run the code of task files.")
    @click.option("--unpickle", is_flag=True, help="Read models stored as pickles.")
    def run(folder: Path, models: Path, **how: Any) -> None:
        from experts import Experts
        from sensmerge.files import write_atomically
        from tabled import TABLES, evaluated, page

        table, experts = TABLES[name], Experts.load(models)
        found = evaluated(table, experts, folder, **how)
        write_atomically(folder / f"{name}.md", page(table, experts, found))
        print(found.table())
        for note in [*found.notes, *found.differences()]:
            print(f"note: {note}", file=sys.stderr)
        print(folder / f"{name}.md")

    return click.command(name, help=about)(run)


ABOUT = {
    "three-experts": "All experts merged, plain and with Sens-Merging (Tables 1 to 3).",
    "two-experts": "Pairs of experts (Table 5).",
    "ablation": "Task-specific and cross-task scaling, each alone (Table 4).",
    "samples": "Coefficients by 10 and by 20 samples of each expert (Table 8).",
}
for _name, _about in ABOUT.items():
    commands.add_command(_table(_name, f"{_about} FOLDER keeps results and recipes."))


@commands.command()
@click.argument("folder", type=PATH)
@click.option("--models", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--device", default="cpu", show_default=True, help="Such as cuda.")
@click.option("--unpickle", is_flag=True, help="Read models stored as pickles.")
def timing(folder: Path, models: Path, device: str, unpickle: bool) -> None:
    """Measure what coefficients and merges take (Table 6); nothing of it is kept but the page."""
    from timing import measure

    print(measure(folder, models, device=device, unpickle=unpickle), end="")
