"""Sens-Merging's tables in miniature: ``python examples/miniature run FOLDER``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

# Threads that spin while they wait starve, on a busy machine, those they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent.parent / "docs"


@click.group()
def commands() -> None:
    """Rerun the paper's tables on a small family that is trained on the spot."""


@commands.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Of text and training.")
@click.option("--draws", default=3, show_default=True, help="How often samples are drawn.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads; all cores by default.")
@click.option("--quick", is_flag=True, help="Far too little of all, for a trial of the machinery.")
def run(folder: Path, seed: int, draws: int, threads: int | None, quick: bool) -> None:
    """Train, merge, measure; write FOLDER/results.json, the page and its pictures."""
    from experiment import Experiment
    from family import FULL, QUICK, make
    from page import write
    from sensmerge import report
    from sensmerge.calibration.surroundings import torch_threads
    from tables import QUICK_TEMPERATURES, everything, made
    from ways import TEMPERATURES

    if folder.exists() and any(folder.iterdir()):
        raise click.ClickException(f"{folder}: is not empty; name another folder")
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s] {text}", file=sys.stderr, flush=True)

    with torch_threads(threads):
        size, grid = (QUICK, QUICK_TEMPERATURES) if quick else (FULL, TEMPERATURES)
        family = make(folder, size, seed, say)
        experiment = Experiment(family, draws, threads, say)
        everything(experiment, grid=grid)
        calibration, coefficients = experiment.first()
    minutes = (time.monotonic() - start) / 60
    experiment.results.made = made(family, size, seed, grid, minutes)
    experiment.results.save(folder / "results.json")
    report.write(
        calibration, coefficients, folder / "report.html", png=folder / "miniature-layers.png"
    )
    for path in write(experiment.results, folder):
        print(path)


@commands.command()
@click.argument(
    "results", type=click.Path(exists=True, path_type=Path), default=HERE / "results.json"
)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=DOCS, show_default=True)
def page(results: Path, output: Path) -> None:
    """Write the page and the picture of T from RESULTS."""
    from page import write
    from results import Results

    for path in write(Results.load(results), output):
        print(path)


if __name__ == "__main__":
    commands()
