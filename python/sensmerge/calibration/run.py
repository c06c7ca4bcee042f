"""The calibrate verb: every expert on its own samples, then every pair of experts."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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
    if threads is not None and threads < 1:
        raise InputError(f"threads: {threads} is no number of threads; give 1 or more")
    options = recipe.sensitivity or Sensitivity()
    with models.quiet(), _torch_threads(threads):
        sources = _sources(recipe)
        tasks = [
            _task(recipe, place, source.tokenizer, options) for place, source in enumerate(sources)
        ]
        # What can be refused is refused before the long measurement.
        _check_blocks(sources)
        _check_tokens(sources, tasks)
        start = time.monotonic()
        experts, found = _sensitivities(sources, tasks, options, progress, threads)
        middle = time.monotonic()
        g = _alignments(sources, tasks, options, progress, threads)
        end = time.monotonic()
    order = _order(found)
    sums = [_by_layer(source, one, order) for source, one in zip(sources, found, strict=True)]
    inner = blocks(f"{layer}.weight" for layer in order)
    outer = [layer for layer in order if block_of(f"{layer}.weight") is None]
    return Calibration(
        base=recipe.base_model,
        experts=experts,
        layers=inner,
        sensitivity=np.array([[row[layer] for layer in inner] for row in sums]),
        outside_layers=outer,
        outside_sensitivity=np.array([[row[layer] for layer in outer] for row in sums]),
        order=order,
        alignment=g,
        options=options.model_dump(include=_MEASURED),
        notes=_notes(sources, tasks, experts, found),
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


@dataclass(frozen=True)
class _Sums:
    """What one expert's backward passes gave.

    Attributes:
        of: Σ|θ · g| of every layer, in the model's order.
        tied: For every other layer that shares a parameter: the layer it is counted in.
    """

    of: dict[str, float]
    tied: dict[str, str]


def _sources(recipe: Recipe) -> list[models.Source]:
    base = None if recipe.base_model is None else resolve(recipe.base_model, recipe.folder)
    return [
        models.open_source(expert.model, resolve(expert.model, recipe.folder), base)
        for expert in recipe.experts
    ]


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
        recipe.folder / Path(task.path).expanduser(),
        task.path,
        tokenizer,
        count=task.samples or options.samples,
        seed=options.seed,
        max_length=task.max_length or options.max_length,
        positions=options.positions,
    )


def _check_blocks(sources: list[models.Source]) -> None:
    """Refuse experts that do not have the same decoder blocks."""
    first, *others = [
        blocks(tensor.name for tensor in _core.Checkpoint(str(source.path)).tensors)
        for source in sources
    ]
    for source, found in zip(sources[1:], others, strict=True):
        if found != first:
            raise InputError(
                f"expert '{source.name}' has {len(found)} blocks, {_ends(found)}, and "
                f"'{sources[0].name}' {len(first)}, {_ends(first)}; only experts of one "
                "architecture can be merged"
            )


def _ends(found: list[str]) -> str:
    return f"{found[0]} to {found[-1]}" if found else "none"


def _check_tokens(sources: list[models.Source], tasks: list[samples.Task]) -> None:
    """Refuse experts whose tokens differ, and samples with a token that one does not know."""
    for place, source in enumerate(sources):
        for other in sources[:place]:
            models.check_same_tokens(other, source)
    for source in sources:
        size = models.known_tokens(source)
        for task, owner in zip(tasks, sources, strict=True):
            for sample in task.samples:
                if max(sample.ids) >= size:
                    token = owner.tokenizer.convert_ids_to_tokens(max(sample.ids))
                    raise InputError(
                        f"{sample.place}: holds token {max(sample.ids)} ({token!r}), and "
                        f"'{source.name}' knows {size} tokens; leave the sample out, or give the "
                        "experts one vocabulary"
                    )


def _sensitivities(
    sources: list[models.Source],
    tasks: list[samples.Task],
    options: Sensitivity,
    progress: bool,
    threads: int | None,
) -> tuple[list[Expert], list[_Sums]]:
    experts, sums = [], []
    total = sum(len(task.samples) for task in tasks)
    with bar(total, "sensitivity", "samples", enabled=progress) as advance:
        for source, task in zip(sources, tasks, strict=True):
            fingerprint = _core.Checkpoint(str(source.path)).fingerprint()
            model = models.load(source, options.dtype)
            layers = models.parameter_layers(model, source.path)
            found, loss = sensitivity.measure(
                model,
                layers.of,
                task.samples,
                expert=source.name,
                threads=threads,
                advance=advance,
            )
            sums.append(_Sums(found, layers.tied))
            experts.append(
                Expert(source.name, fingerprint, models.vocabulary(model), loss, task.record)
            )
            # Before the next one is loaded.
            del model
    return experts, sums


def _alignments(
    sources: list[models.Source],
    tasks: list[samples.Task],
    options: Sensitivity,
    progress: bool,
    threads: int | None,
) -> NDArray[np.float64]:
    count = len(sources)
    g = np.zeros((count, count))
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
                        pair=f"experts '{sources[i].name}' and '{sources[j].name}'",
                        positions=options.positions,
                        form=options.distance,
                        threads=threads,
                        advance=advance,
                    )
                del other
            del one
    return g


def _order(sums: list[_Sums]) -> list[str]:
    """All layers in the model's order, from the expert that has the most: the least tied one."""
    return list(max(sums, key=lambda one: len(one.of)).of)


def _by_layer(source: models.Source, sums: _Sums, order: list[str]) -> dict[str, float]:
    """One expert's sums for the layers that all have; a tied layer has what it is tied to."""
    found = dict(sums.of)
    found |= {layer: sums.of[home] for layer, home in sums.tied.items()}
    missing = [layer for layer in order if layer not in found]
    extra = [layer for layer in sums.of if not {layer, *_tied_to(sums, layer)} & set(order)]
    if missing or extra:
        raise InputError(
            f"expert '{source.name}': {'has no layer' if missing else 'alone has layer'} "
            f"{[*missing, *extra][0]}; only experts of one architecture can be merged"
        )
    return {layer: found[layer] for layer in order}


def _tied_to(sums: _Sums, home: str) -> list[str]:
    return [layer for layer, owner in sums.tied.items() if owner == home]


def _notes(
    sources: list[models.Source],
    tasks: list[samples.Task],
    experts: list[Expert],
    sums: list[_Sums],
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
    if len({len(one.of) for one in sums}) > 1:
        tied = ", ".join(source.name for source, one in zip(sources, sums, strict=True) if one.tied)
        notes.append(
            f"some experts tie layers ({tied}) that others do not; what is tied counts in each"
        )
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
