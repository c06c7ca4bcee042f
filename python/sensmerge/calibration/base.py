"""The base's part of a calibration: its activations, for recipes with an ``aim`` section."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge import _core
from sensmerge.calibration import loading, samples
from sensmerge.calibration.activations import Activations
from sensmerge.calibration.record import ActivationsFile
from sensmerge.calibration.sources import open_sources
from sensmerge.calibration.vocabularies import translated
from sensmerge.errors import InputError
from sensmerge.models import open_models
from sensmerge.progress import bar

if TYPE_CHECKING:
    from sensmerge.calibration.kept import Kept
    from sensmerge.calibration.runner import Runner
    from sensmerge.recipe import Recipe, Sensitivity


@dataclass(frozen=True)
class OfBase:
    """What was measured of the base.

    Attributes:
        file: The file of its activations; None if they are not needed.
        notes: Notes for the user.
        seconds: Seconds that it took.
    """

    file: ActivationsFile | None = None
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def measure_base(
    recipe: Recipe,
    options: Sensitivity,
    runner: Runner,
    kept: Kept,
    keep: Path | None,
    progress: bool,
) -> OfBase:
    """Measure the base's activations, if the recipe asks for them and they are not kept.

    Args:
        recipe: The recipe.
        options: The options of the calibration.
        runner: Runs models as asked.
        kept: Earlier measurements.
        keep: The calibration file, beside which they are written.
        progress: Show progress.

    Raises:
        InputError: The base or its samples cannot be used as they are, or no file can be written.
    """
    if recipe.aim is None or keep is None:
        return OfBase()
    base = _open_base(recipe, options, progress)
    file = kept.activations(base.source.fingerprint(), base.token_ids)
    if file is not None:
        return OfBase(replace(file, model=base.source.name, paths=base.paths))
    start = time.monotonic()
    with bar(len(base.samples), "activations", "samples", enabled=progress) as advance:
        opened = runner.open(base.source)
        found = Activations(opened.model)
        if opened.streamed and opened.stream is not None:
            # Runs a block on a token that is no sample's.
            opened.stream.learn()
        with found.watching():
            runner.states(opened, base.samples, "completion", advance)
    path = _file(keep, base.source.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    transposed, notes = found.write(path, _core.Checkpoint(str(base.source.path)))
    file = ActivationsFile(
        model=base.source.name,
        weights=base.source.fingerprint(),
        paths=base.paths,
        used=len(base.samples),
        token_ids=base.token_ids,
        file=path.name,
        fingerprint=_core.Checkpoint(str(path)).fingerprint(),
        transposed=transposed,
    )
    return OfBase(file, notes, {"activations": time.monotonic() - start})


def _file(beside: Path, name: str) -> Path:
    said = re.sub(r"[^\w.-]+", "-", name.rstrip("/").rsplit("/", 1)[-1]).strip("-.")
    return beside.with_name(f"{beside.name.removesuffix('.json')}.activations.{said}.safetensors")


@dataclass(frozen=True)
class _Base:
    """The base, and the samples that it is to be run on, with its ids, and their files."""

    source: loading.Source
    samples: list[samples.Sample]
    paths: list[str]

    @property
    def token_ids(self) -> str:
        """A digest of the samples' tokens."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(json.dumps(sample.ids).encode())
        return f"sha256:{digest.hexdigest()}"


def _open_base(recipe: Recipe, options: Sensitivity, progress: bool) -> _Base:
    """Find the base, and read its samples: all experts' together, unless the recipe names some."""
    models, aim = open_models(recipe, progress=progress), recipe.aim
    base = models.base
    assert aim is not None
    assert base is not None, "a recipe with aim has a base"
    # A base without a tokenizer takes that of an expert.
    source = loading.open_source(base.name, base.path, models.experts[0].path, base)
    if aim.calibration is not None:
        own = samples.read_task(recipe, aim.calibration, source.tokenizer, options)
        return _Base(source, own.samples, aim.calibration.files)
    reader, read, paths = loading.known(source), list[samples.Sample](), list[str]()
    experts = open_sources(recipe, recipe.experts, progress=progress)
    for expert, opened in zip(recipe.experts, experts, strict=True):
        task = samples.of_expert(recipe, expert, opened.tokenizer, options)
        owner = loading.known(opened)
        try:
            read += [translated(sample, owner, reader) for sample in task.samples]
        except InputError as error:
            raise InputError(
                f"aim: {error}; or name samples that the base can read, under aim: calibration"
            ) from None
        paths.append(task.record.path)
    return _Base(source, read, paths)
