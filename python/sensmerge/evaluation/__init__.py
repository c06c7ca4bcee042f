"""Evaluation: models, and merges in memory, scored on benchmarks by lm-evaluation-harness.

Only evaluating imports torch and the harness: results that were kept can be read without them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge.evaluation.benchmarks import PRESET

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sensmerge.calibration import Calibration
    from sensmerge.evaluation.record import Evaluation
    from sensmerge.recipe import Recipe

    InMemory = tuple[PreTrainedModel, PreTrainedTokenizerBase]
    Model = str | Path | Recipe | InMemory

__all__ = ["evaluate", "scores_of"]


def evaluate(
    models: Model | Sequence[Model] | Mapping[str, Model],
    tasks: str | Sequence[str] = PRESET,
    *,
    results: str | Path | None = None,
    tasks_dir: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    dtype: str = "stored",
    run_code: bool = False,
    trust_tasks: bool = False,
    calibration: Calibration | str | Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    progress: bool = True,
    unpickle: bool = False,
) -> Evaluation:
    """Score models on benchmarks, zero-shot, by lm-evaluation-harness.

    A score that was used for choosing among merges says little about them: choose by other samples
    (:func:`sensmerge.tune`), and evaluate once.

    Args:
        models: Models, by the names that they get in the results, or without names: folders, places
            on the Hub, ``base+adapter``; recipes or their paths, which are merged in memory; a
            transformers model with its tokenizer, as a pair.
        tasks: Names of the harness's tasks, or text with commas; ``paper`` stands for the seven of
            the Sens-Merging paper.
        results: A file of results. What it has of the same weights, samples and conditions is not
            evaluated again; what is new is added, after each task. It need not exist.
        tasks_dir: A folder with task files of your own.
        limit: Samples of each task, from its start; None for all.
        batch_size: Requests that run at a time. It may change the last digits.
        dtype: What models run in: ``stored`` or ``float32``.
        run_code: Run the programs that models write, where a task needs that, each in a process of
            its own with limits; docs/evaluation.md says what these keep off.
        trust_tasks: Run the Python that task files in ``tasks_dir`` name.
        calibration: A calibration of the recipes' experts, or its path; without one, a recipe with
            a ``sensitivity`` section is calibrated first.
        device: The torch device that models run on, such as ``cuda``; weights are merged on the
            processor.
        threads: Threads for torch and for merging; all cores by default.
        progress: Show a progress bar on a terminal and plain lines elsewhere.
        unpickle: Read models that are stored as pickles in a process of their own, through a
            temporary copy beside ``results`` or in the system's folder of temporary files.

    Returns:
        The scores: of these models, and of all that ``results`` has.

    Raises:
        InputError: A model, a recipe, a task or its data cannot be used as they are, a task needs
            to run code and may not, or the harness is not installed.
        OSError: A file cannot be read.
    """
    from sensmerge.evaluation.run import Options, run
    from sensmerge.models import pickles

    beside = Path(tempfile.gettempdir(), "model") if results is None else Path(results)
    options = Options(
        tasks=tasks,
        results=None if results is None else Path(results),
        tasks_dir=None if tasks_dir is None else Path(tasks_dir),
        limit=limit,
        batch_size=batch_size,
        dtype=dtype,
        run_code=run_code,
        trust_tasks=trust_tasks,
        calibration=calibration,
        device=device,
        threads=threads,
        progress=progress,
    )
    # A caller that reads pickles already has copies of them.
    wanted = unpickle and not pickles.enabled()
    with pickles.unpickling(beside, enabled=wanted, progress=progress):
        return run(_named(models), options)


def scores_of(
    model: Model, tasks: str | Sequence[str] = PRESET, **options: Any
) -> dict[str, float]:
    """Score one model; plain numbers.

    Args:
        model: A folder, a recipe, or a transformers model with its tokenizer, as for
            :func:`evaluate`.
        tasks: Names of tasks.
        options: Others of :func:`evaluate`.

    Returns:
        For every task asked for, the share that is its score, between 0 and 1.

    Raises:
        InputError: As :func:`evaluate`.
    """
    from sensmerge.evaluation.benchmarks import named

    found = evaluate({"model": model}, tasks, **options)
    return {task: found.models["model"].scores[task].value for task in named(tasks)}


def _named(models: Model | Sequence[Model] | Mapping[str, Model]) -> dict[str, Model]:
    """Models by their names in the results: paths as they are written, or the place in the list."""
    if isinstance(models, Mapping):
        return dict(models)
    several: list[Any] = models if isinstance(models, list) else [models]
    return {_name(model, place): model for place, model in enumerate(several, start=1)}


def _name(model: Any, place: int) -> str:
    if isinstance(model, str | Path):
        return str(model)
    path = getattr(model, "path", None)
    return f"model {place}" if path is None else str(path)
