"""The calibrate verb: sensitivity of every expert, then alignment of every pair of experts."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sensmerge import __version__, _core
from sensmerge.calibration import samples
from sensmerge.calibration.kept import Kept, Part
from sensmerge.calibration.record import MEASURED, Calibration, Expert, StatisticsFile
from sensmerge.errors import InputError
from sensmerge.models.layers import block_of, blocks
from sensmerge.progress import bar
from sensmerge.recipe import Sensitivity

try:
    import torch
    import transformers
except ImportError as error:
    raise InputError(
        f"calibration needs torch and transformers ({error}); pip install 'sensmerge[calibrate]'"
    ) from None

from sensmerge.calibration import loading, statistics
from sensmerge.calibration.base import OfBase, measure_base
from sensmerge.calibration.entering import Entering, States
from sensmerge.calibration.pairs import Pairs, distances
from sensmerge.calibration.runner import Opened, Runner
from sensmerge.calibration.sources import open_sources
from sensmerge.calibration.surroundings import quiet_transformers, torch_threads
from sensmerge.calibration.vocabularies import Vocabulary, translated

if TYPE_CHECKING:
    from sensmerge.recipe import Recipe


def run(
    recipe: Recipe,
    *,
    progress: bool,
    threads: int | None,
    memory: str,
    device: str,
    keep: Path | None,
) -> Calibration:
    """Measure a recipe's experts; see :func:`sensmerge.calibrate`."""
    if threads is not None and threads < 1:
        raise InputError(f"threads: {threads} is no number of threads; give 1 or more")
    options = recipe.sensitivity or Sensitivity()
    kind = recipe.method.statistic
    if kind is not None and keep is None:
        raise InputError(
            f"{recipe.merge_method} needs statistics that are too large for memory: name the file "
            "that the calibration will be saved as (keep=), beside which they are written"
        )
    if recipe.aim is not None and keep is None:
        raise InputError(
            "aim: what is measured of the base is written beside the calibration: name the file "
            "that it will be saved as (keep=)"
        )
    runner = Runner(memory, device, options.dtype)
    kept = Kept(keep, options.model_dump())
    with quiet_transformers(), torch_threads(threads):
        base = measure_base(recipe, options, runner, kept, keep, progress)
        if not recipe.measures_experts:
            return _of_base(recipe, options, base, keep)
        sources = open_sources(recipe, recipe.measured, progress=progress)
        tasks = [
            samples.task(recipe, place, source.tokenizer, options)
            for place, source in enumerate(sources)
        ]
        # Refusals come before the long measurement.
        _check_blocks(sources)
        known = [loading.known(source) for source in sources]
        read = readings(tasks, known, known)
        start = time.monotonic()
        files = None if kind is None or keep is None else _Files(kind, keep)
        parts, states = _sensitivities(
            sources, tasks, options, runner, kept, progress, threads, files
        )
        middle = time.monotonic()
        experts = [part.expert for part in parts]
        g = distances(
            Pairs(sources, experts, known, read), options, runner, kept, states, progress, threads
        )
        end = time.monotonic()
    order = _order(parts)
    sums = [_by_layer(source, part, order) for source, part in zip(sources, parts, strict=True)]
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
        options=options.model_dump(include=MEASURED),
        notes=[*_notes(sources, tasks, parts, known), *runner.notes, *base.notes],
        versions=_versions(),
        seconds={"sensitivity": middle - start, "alignment": end - middle} | base.seconds,
        statistics=[part.statistics for part in parts if part.statistics and kind is not None],
        activations=base.file,
        folder=None if keep is None else keep.absolute().parent,
    )


def _versions() -> dict[str, str]:
    return {
        "sensmerge": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _of_base(recipe: Recipe, options: Sensitivity, base: OfBase, keep: Path | None) -> Calibration:
    """The calibration of a recipe that needs the base's activations alone."""
    nothing = np.zeros((0, 0))
    return Calibration(
        base=recipe.base_model,
        experts=[],
        layers=[],
        sensitivity=nothing,
        outside_layers=[],
        outside_sensitivity=nothing,
        order=[],
        alignment=nothing,
        options=options.model_dump(include=MEASURED),
        notes=base.notes,
        versions=_versions(),
        seconds=base.seconds,
        activations=base.file,
        folder=None if keep is None else keep.absolute().parent,
    )


@dataclass(frozen=True)
class _Files:
    """The files of statistics.

    Attributes:
        kind: What is measured.
        beside: The calibration file that they lie beside.
    """

    kind: str
    beside: Path

    def of(self, place: int, name: str) -> Path:
        """The file of an expert."""
        said = re.sub(r"[^\w.-]+", "-", name.rstrip("/").rsplit("/", 1)[-1]).strip("-.")
        stem = self.beside.name.removesuffix(".json")
        return self.beside.with_name(f"{stem}.{self.kind}.{place}-{said}.safetensors")


def _check_blocks(sources: list[loading.Source]) -> None:
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


def readings(
    tasks: list[samples.Task], owners: list[Vocabulary], readers: list[Vocabulary]
) -> list[list[list[samples.Sample]]]:
    """The samples of every task, by reader and by task, with the reader's ids.

    Args:
        tasks: The tasks.
        owners: The expert of every task.
        readers: The models that read them.

    Raises:
        InputError: A sample has a token that a reader does not know.
    """
    return [
        [
            [translated(sample, owner, reader) for sample in task.samples]
            for task, owner in zip(tasks, owners, strict=True)
        ]
        for reader in readers
    ]


def _sensitivities(
    sources: list[loading.Source],
    tasks: list[samples.Task],
    options: Sensitivity,
    runner: Runner,
    kept: Kept,
    progress: bool,
    threads: int | None,
    files: _Files | None,
) -> tuple[list[Part], dict[int, States]]:
    """The sensitivity of every expert; of those measured now, what entered their heads, too."""
    fingerprints = [source.fingerprint() for source in sources]
    found = [
        kept.part(fingerprint, task.record.token_ids, None if files is None else files.kind)
        for fingerprint, task in zip(fingerprints, tasks, strict=True)
    ]
    missing = [task for part, task in zip(found, tasks, strict=True) if part is None]
    parts: list[Part] = []
    states: dict[int, States] = {}
    total = sum(len(task.samples) for task in missing)
    with bar(total, "sensitivity", "samples", enabled=progress) as advance:
        for place, (source, task, fingerprint, part) in enumerate(
            zip(sources, tasks, fingerprints, found, strict=True)
        ):
            if part is None:
                opened = runner.open(source)
                # A single expert has none to be compared with.
                entering = Entering(opened.model, options.positions) if len(tasks) > 1 else None
                with _statistics(files, place, opened, source, task, runner) as measured:
                    sums, loss = runner.sensitivity(
                        opened, task.samples, threads, advance, options.measure,
                        measured.squares, entering,
                    )  # fmt: skip
                if entering is not None:
                    states[place] = entering.states()
                size = loading.vocabulary(opened.model)
                expert = Expert(source.name, fingerprint, size, loss, task.record)
                part = Part(expert, sums, opened.layers.tied, measured.file)
                kept.add(part)
                # Freed before the next expert is loaded.
                del opened, entering
            # An earlier run may have called the expert otherwise.
            expert = replace(part.expert, model=source.name, task=task.record)
            parts.append(replace(part, expert=expert))
    return parts, states


@dataclass
class _Measured:
    """What is measured of an expert while its sensitivity is.

    Attributes:
        squares: Given every gradient; None if they are not needed.
        file: The file of it, once it is written.
    """

    squares: statistics.Squares | None = None
    file: StatisticsFile | None = None


@contextmanager
def _statistics(
    files: _Files | None,
    place: int,
    opened: Opened,
    source: loading.Source,
    task: samples.Task,
    runner: Runner,
) -> Iterator[_Measured]:
    """Measure an expert's statistics, and write them at the end."""
    measured = _Measured()
    if files is None:
        yield measured
        return
    path, checkpoint = files.of(place, source.name), _core.Checkpoint(str(source.path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with statistics.scratch(path) as folder:
        if files.kind == "fisher":
            measured.squares = statistics.Squares(opened.model, folder, len(task.samples))
            yield measured
            measured.file = measured.squares.write(path, checkpoint)
        else:
            yield measured
            grams = statistics.Grams(opened.model, folder)
            with grams.watching():
                runner.states(opened, task.samples, "completion", lambda _: None)
            measured.file = grams.write(path, checkpoint)


def _order(parts: list[Part]) -> list[str]:
    """All layers in the model's order: those of the expert that ties the fewest."""
    return list(max(parts, key=lambda part: len(part.of)).of)


def _by_layer(source: loading.Source, sums: Part, order: list[str]) -> dict[str, float]:
    """One expert's sums for all layers; a tied layer has the sum of the layer it is tied to."""
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


def _tied_to(sums: Part, home: str) -> list[str]:
    return [layer for layer, owner in sums.tied.items() if owner == home]


def _notes(
    sources: list[loading.Source],
    tasks: list[samples.Task],
    parts: list[Part],
    known: list[Vocabulary],
) -> list[str]:
    experts = [part.expert for part in parts]
    notes = []
    for source, task in zip(sources, tasks, strict=True):
        if source.borrowed:
            notes.append(f"expert '{source.name}' has no tokenizer; the base's was used")
        if task.record.left_out:
            notes.append(
                f"expert '{source.name}': {task.record.left_out} of {len(task.record.drawn)} "
                "samples had every scored token cut away and were left out"
            )
    if not all(known[0].agrees(other) for other in known[1:]):
        notes.append(
            "the experts' tokenizers give some tokens other ids; samples and logits were matched "
            "by token"
        )
    elif len({expert.vocabulary for expert in experts}) > 1:
        sizes = ", ".join(f"{expert.model} {expert.vocabulary}" for expert in experts)
        notes.append(f"vocabularies differ ({sizes}); logits were compared on their common prefix")
    if len({len(part.of) for part in parts}) > 1:
        tied = ", ".join(part.expert.model for part in parts if part.tied)
        notes.append(
            f"some experts tie layers ({tied}) that others do not; what is tied counts in each"
        )
    return notes
