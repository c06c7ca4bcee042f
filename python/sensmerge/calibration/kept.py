"""What earlier calibrations measured and this one need not measure again.

A finished calibration file serves, and beside it what a calibration that was stopped had
finished: `calibration.json.partial`, one entry an expert.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sensmerge.calibration.record import Calibration, Expert
from sensmerge.errors import InputError

FORMAT = "sensmerge-calibration-parts"

# What the same samples can be measured with differently.
_DECIDING = ("positions", "distance", "dtype")


@dataclass(frozen=True)
class Part:
    """What one expert's backward passes gave.

    Attributes:
        expert: The expert and its samples.
        of: Σ|θ · g| of every layer, in the model's order.
        tied: For every other layer that shares a parameter: the layer it is counted in.
    """

    expert: Expert
    of: dict[str, float]
    tied: dict[str, str]

    def matches(self, fingerprint: str, token_ids: str) -> bool:
        """Whether it was measured on these weights and samples."""
        return self.expert.fingerprint == fingerprint and self.expert.task.token_ids == token_ids


_PARTS = TypeAdapter(list[Part])


class Kept:
    """Measurements at hand, and where to keep new ones."""

    def __init__(self, path: Path | None, options: dict[str, Any]) -> None:
        """Look for measurements with the same options.

        Args:
            path: The calibration file that is being written; None keeps nothing.
            options: What is measured with.
        """
        self._path = None if path is None else path.with_name(f"{path.name}.partial")
        self._options = {key: options[key] for key in _DECIDING}
        self._finished = None if path is None else self._read_finished(path)
        self._parts = self._of_finished() + self._read_parts()

    def part(self, fingerprint: str, token_ids: str) -> Part | None:
        """What was measured on these weights and samples."""
        found = (part for part in self._parts if part.matches(fingerprint, token_ids))
        return next(found, None)

    def distance(self, one: Expert, other: Expert) -> float | None:
        """g_ij of two experts on the samples of the second."""
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
        """Keep a new measurement, also for a later run should this one be stopped.

        Raises:
            InputError: It cannot be written.
        """
        self._parts.append(part)
        if self._path is None:
            return
        data = {
            "format": FORMAT,
            "options": self._options,
            "parts": [asdict(part) for part in self._parts],
        }
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
            os.replace(temporary, self._path)
        except OSError as error:
            raise InputError(
                f"{self._path}: cannot be written: {error.strerror or error}"
            ) from None
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _read_finished(self, path: Path) -> Calibration | None:
        try:
            found = Calibration.load(path)
        except InputError:
            # Whatever it is, it is about to be replaced.
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
            parts.append(Part(expert, {layer: of[layer] for layer in finished.order}, {}))
        return parts

    def _read_parts(self) -> list[Part]:
        if self._path is None or not self._path.is_file():
            return []
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT or not self._same_options(data["options"]):
                return []
            return _PARTS.validate_python(data["parts"])
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            # Half a file is none.
            return []

    def _same_options(self, options: dict[str, Any]) -> bool:
        return all(options.get(key) == value for key, value in self._options.items())
