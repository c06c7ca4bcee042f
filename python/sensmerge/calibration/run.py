"""The calibrate verb: every expert on its own samples, then every pair of experts."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from sensmerge import __version__, _core
from sensmerge.calibration import samples
from sensmerge.calibration.record import Calibration, Expert
from sensmerge.errors import InputError
from sensmerge.layers import block_of, blocks
from sensmerge.progress import bar
from sensmerge.recipe import Sensitivity
from sensmerge.sources import resolve

try:
    import torch
    import transformers
except ImportError as error:
    raise InputError(
        f"calibration needs torch and transformers ({error}); pip install 'sensmerge[calibrate]'"
    ) from None

from sensmerge.calibration import alignment, models, sensitivity

if TYPE_CHECKING:
    from sensmerge.recipe import Recipe


def run(recipe: Recipe, *, progress: bool, threads: int | None) -> Calibration:
    """Measure a recipe's experts; see :func:`sensmerge.calibrate`."""
    options = recipe.sensitivity or Sensitivity()
    base = None if recipe.base_model is None else resolve(recipe.base_model, recipe.folder)
    sources = [
        models.open_source(expert.model, resolve(expert.model, recipe.folder), base)
        for expert in recipe.experts
    ]
    tasks = [
        _task(recipe, place, source.tokenizer, options) for place, source in enumerate(sources)
    ]
    for place, source in enumerate(sources):
        for other in sources[:place]:
            models.check_same_tokens(other, source)

    with _torch_threads(threads):
        start = time.monotonic()
        experts, sums = _sensitivities(sources, tasks, options, progress, threads)
        middle = time.monotonic()
        g = _alignments(sources, tasks, [e.vocabulary for e in experts], options, progress, threads)
        end = time.monotonic()
    order = list(sums[0])
    for source, found in zip(sources, sums, strict=True):
        if list(found) != order:
            raise InputError(
                f"expert '{source.name}': its layers are not those of '{sources[0].name}'; only "
                "experts of one architecture can be merged"
            )
    inner = blocks(f"{layer}.weight" for layer in order)
    outer = [layer for layer in order if block_of(f"{layer}.weight") is None]
    return Calibration(
        base=recipe.base_model,
        experts=experts,
        layers=inner,
        sensitivity=np.array([[found[layer] for layer in inner] for found in sums]),
        outside_layers=outer,
        outside_sensitivity=np.array([[found[layer] for layer in outer] for found in sums]),
        order=order,
        alignment=g,
        options=options.model_dump(include=_MEASURED),
        notes=_notes(sources, tasks, experts),
        versions={
            "sensmerge": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        seconds={"sensitivity": middle - start, "alignment": end - middle},
    )


# The options that change what is measured; the others only change how it is used.
_MEASURED = {"positions", "distance", "dtype", "samples", "max_length", "seed"}


def _task(
    recipe: Recipe,
    place: int,
    tokenizer: transformers.PreTrainedTokenizerBase,
    options: Sensitivity,
) -> samples.Task:
    expert = recipe.experts[place]
    if expert.calibration is None:
        raise InputError(
            f"expert '{expert.model}' has no calibration samples; add 'calibration: FILE.jsonl' to "
            "it, or give a calibration with --calibration"
        )
    task = expert.calibration
    return samples.load(
        recipe.folder / task.path,
        task.path,
        tokenizer,
        count=task.samples or options.samples,
        seed=options.seed,
        max_length=task.max_length or options.max_length,
        positions=options.positions,
    )


def _sensitivities(
    sources: list[models.Source],
    tasks: list[samples.Task],
    options: Sensitivity,
    progress: bool,
    threads: int | None,
) -> tuple[list[Expert], list[dict[str, float]]]:
    experts, sums = [], []
    total = sum(len(task.samples) for task in tasks)
    with bar(total, "sensitivity", "samples", enabled=progress) as advance:
        for source, task in zip(sources, tasks, strict=True):
            fingerprint = _core.Checkpoint(str(source.path)).fingerprint()
            model = models.load(source, options.dtype)
            _check_vocabulary(source.name, models.vocabulary(model), task)
            found, loss = sensitivity.measure(
                model,
                models.parameter_layers(model, source.path),
                task.samples,
                expert=source.name,
                threads=threads,
                advance=advance,
            )
            sums.append(found)
            experts.append(
                Expert(source.name, fingerprint, models.vocabulary(model), loss, task.record)
            )
            del model
    return experts, sums


def _alignments(
    sources: list[models.Source],
    tasks: list[samples.Task],
    vocabularies: list[int],
    options: Sensitivity,
    progress: bool,
    threads: int | None,
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    count = len(sources)
    g = np.zeros((count, count))
    for source, size in zip(sources, vocabularies, strict=True):
        for task in tasks:
            _check_vocabulary(source.name, size, task)
    total = (count - 1) * sum(len(task.samples) for task in tasks)
    with bar(total, "alignment", "samples", enabled=progress) as advance:
        for i in range(count - 1):
            one = models.load(sources[i], options.dtype)
            for j in range(i + 1, count):
                other = models.load(sources[j], options.dtype)
                for row, column in ((i, j), (j, i)):
                    # Row i, column j: model i against expert j, on the samples of task j.
                    g[row, column] = alignment.distance(
                        one,
                        other,
                        tasks[column].samples,
                        positions=options.positions,
                        form=options.distance,
                        threads=threads,
                        advance=advance,
                    )
                del other
            del one
    return g


def _check_vocabulary(name: str, size: int, task: samples.Task) -> None:
    for sample in task.samples:
        if max(sample.ids) >= size:
            raise InputError(
                f"{sample.place}: holds token {max(sample.ids)}, and '{name}' knows {size} tokens; "
                "leave the sample out, or give the experts one vocabulary"
            )


def _notes(
    sources: list[models.Source], tasks: list[samples.Task], experts: list[Expert]
) -> list[str]:
    notes = []
    for source, task in zip(sources, tasks, strict=True):
        if source.borrowed:
            notes.append(f"expert '{source.name}' has no tokenizer; the base's was used")
        if task.record.left_out:
            notes.append(
                f"expert '{source.name}': {task.record.left_out} of {len(task.record.drawn)} "
                "samples had every scored token cut away and were left out"
            )
    if len({expert.vocabulary for expert in experts}) > 1:
        sizes = ", ".join(f"{expert.model} {expert.vocabulary}" for expert in experts)
        notes.append(f"vocabularies differ ({sizes}); logits were compared on their common prefix")
    return notes


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
