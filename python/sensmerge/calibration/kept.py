"""Measurements of earlier runs, which a calibration need not repeat.

They are in a calibration file, or beside it in `calibration.json.partial`, to which every run adds
the sensitivity of an expert as soon as it is measured.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from sensmerge import _core
from sensmerge.calibration.record import (
    WITHOUT_CHOICE,
    ActivationsFile,
    Calibration,
    Expert,
    StatisticsFile,
)
from sensmerge.errors import InputError
from sensmerge.files import write_atomically
from sensmerge.reading import MIDDLE, content

# Options that give other numbers for the same weights and samples.
_DECIDING = ("measure", "positions", "distance", "dtype")


@dataclass(frozen=True)
class Part:
    """The sensitivity of one expert.

    Attributes:
        expert: The expert and its samples.
        of: Σ|θ · g| of every layer, or Σ g², in the model's order.
        tied: Layers that ``of`` leaves out, since they share a parameter with one of its layers,
            and that layer.
        statistics: What was measured of it tensor by tensor; None if nothing was.
    """

    expert: Expert
    of: dict[str, float]
    tied: dict[str, str]
    statistics: StatisticsFile | None = None

    def matches(self, fingerprint: str, token_ids: str) -> bool:
        """Whether it was measured on these weights and samples."""
        return self.expert.fingerprint == fingerprint and self.expert.task.token_ids == token_ids

    def is_sound(self) -> bool:
        """Whether its numbers are possible: finite, and not negative."""
        sums = self.of.values()
        return bool(self.of) and all(math.isfinite(value) and value >= 0 for value in sums)


@dataclass(frozen=True)
class _File:
    format: Literal["sensmerge-calibration-parts"]
    options: dict[str, Any]
    parts: list[Part]


_FILE = TypeAdapter(_File)


class Kept:
    """Earlier measurements, and the file that new ones are added to."""

    def __init__(self, path: Path | None, options: dict[str, Any]) -> None:
        """Look for measurements with the same options.

        Args:
            path: The calibration file that will be written; None: nothing is read or written.
            options: The options of this run.
        """
        self._path = None if path is None else path.with_name(f"{path.name}.partial")
        self._options = {key: options[key] for key in _DECIDING}
        self._finished = None if path is None else self._read_finished(path)
        self._known = self._of_finished()
        self._parts = self._read_parts()

    def part(self, fingerprint: str, token_ids: str, kind: str | None) -> Part | None:
        """What was measured on these weights and samples, if anything was.

        Args:
            fingerprint: Digest of the weights.
            token_ids: Digest of the samples' tokens.
            kind: The kind of statistics that is needed beside the sensitivity, if any is.
        """
        found = (
            part
            for part in (*self._known, *self._parts)
            if part.matches(fingerprint, token_ids)
            and (kind is None or self._has(part.statistics, kind))
        )
        return next(found, None)

    def _has(self, statistics: StatisticsFile | None, kind: str) -> bool:
        """Whether there is a file of statistics, as it was written."""
        return statistics is not None and statistics.kind == kind and self._is_there(statistics)

    def _is_there(self, file: StatisticsFile | ActivationsFile) -> bool:
        if self._path is None:
            return False
        try:
            found = _core.Checkpoint(str(self._path.parent / file.file))
        except (InputError, OSError):
            return False
        return found.fingerprint() == file.fingerprint

    def activations(self, weights: str, token_ids: str) -> ActivationsFile | None:
        """What was measured of a base's activations on these samples, if it is still there."""
        found = None if self._finished is None else self._finished.activations
        if found is None or (found.weights, found.token_ids) != (weights, token_ids):
            return None
        return found if self._is_there(found) else None

    def distance(self, one: Expert, other: Expert) -> float | None:
        """g_ij of two experts on the samples of the second, if it was measured."""
        if self._finished is None:
            return None
        rows = [
            next(
                (
                    row
                    for row, expert in enumerate(self._finished.experts)
                    if expert.fingerprint == wanted.fingerprint
                    and expert.task.token_ids == wanted.task.token_ids
                ),
                None,
            )
            for wanted in (one, other)
        ]
        if None in rows:
            return None
        return float(self._finished.alignment[rows[0], rows[1]])

    def add(self, part: Part) -> None:
        """Add a measurement, and write the file for a later run in case this one is stopped.

        Raises:
            InputError: It cannot be written.
        """
        self._parts.append(part)
        if self._path is None:
            return
        data = asdict(_File("sensmerge-calibration-parts", self._options, self._parts))
        write_atomically(self._path, json.dumps(data, ensure_ascii=False))

    def _read_finished(self, path: Path) -> Calibration | None:
        try:
            found = Calibration.load(path)
        except InputError:
            # Missing or damaged: it is about to be written anyway.
            return None
        return found if self._same_options(found.options) else None

    def _of_finished(self) -> list[Part]:
        finished = self._finished
        if finished is None:
            return []
        names = [*finished.layers, *finished.outside_layers]
        parts = []
        for row, expert in enumerate(finished.experts):
            values = [*finished.sensitivity[row], *finished.outside_sensitivity[row]]
            of = dict(zip(names, map(float, values), strict=True))
            statistics = finished.statistics[row] if finished.statistics else None
            of = {layer: of[layer] for layer in finished.order}
            parts.append(Part(expert, of, {}, statistics))
        return parts

    def _read_parts(self) -> list[Part]:
        if self._path is None or not self._path.is_file():
            return []
        try:
            found = _FILE.validate_json(content(self._path, MIDDLE))
        except (OSError, InputError, ValidationError):
            # A damaged file counts as none.
            return []
        if not self._same_options(found.options):
            return []
        return [part for part in found.parts if part.is_sound()]

    def _same_options(self, options: dict[str, Any]) -> bool:
        known = WITHOUT_CHOICE | options
        return all(known.get(key) == value for key, value in self._options.items())
