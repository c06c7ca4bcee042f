"""A calibration as a file that people can read: what was measured, on what, and how."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensmerge.calibration.parts import Part
from sensmerge.errors import InputError

FORMAT = "sensmerge-calibration"
VERSION = 1

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class TaskRecord:
    """The samples that one expert was measured on.

    Attributes:
        path: The file, as the recipe names it.
        rows: Samples in the file.
        drawn: Places of the drawn ones, counted from 0.
        used: How many were used: those with at least one scored token.
        left_out: How many had every scored token cut away.
        scored_tokens: Tokens that the loss was taken over.
        token_ids: Digest of the token ids of the used samples.
        max_length: Tokens that a sample was cut to.
    """

    path: str
    rows: int
    drawn: list[int]
    used: int
    left_out: int
    scored_tokens: int
    token_ids: str
    max_length: int


@dataclass(frozen=True)
class Expert:
    """One expert that was measured.

    Attributes:
        model: Its name in the recipe.
        fingerprint: Digest of its weights.
        vocabulary: Number of logits it gives.
        loss: Mean loss over its samples.
        task: Its samples.
    """

    model: str
    fingerprint: str
    vocabulary: int
    loss: float
    task: TaskRecord


@dataclass(frozen=True)
class Calibration:
    """What was measured of K experts with L decoder blocks and M layers outside them.

    Attributes:
        base: The base's name in the recipe, if it has one.
        experts: The experts, in the recipe's order.
        layers: Names of the L blocks, as in the checkpoint.
        sensitivity: K × L, s_i^l of Eq. 3.
        outside_layers: Names of the M other layers, in the model's order.
        outside_sensitivity: K × M, the same for these.
        order: Names of all L + M layers, in the model's order.
        alignment: K × K, g_ij of Eq. 4: model i against expert j on j's samples.
        options: The options it was measured with.
        notes: What the user should know.
        versions: Versions of the software.
        seconds: Seconds by phase.
    """

    base: str | None
    experts: list[Expert]
    layers: list[str]
    sensitivity: Matrix
    outside_layers: list[str]
    outside_sensitivity: Matrix
    order: list[str]
    alignment: Matrix
    options: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """The file's text."""
        data = {
            "format": FORMAT,
            "version": VERSION,
            "base": self.base,
            "experts": [asdict(expert) for expert in self.experts],
            "layers": self.layers,
            "sensitivity": self.sensitivity.tolist(),
            "outside": {
                "layers": self.outside_layers,
                "sensitivity": self.outside_sensitivity.tolist(),
            },
            "order": self.order,
            "alignment": self.alignment.tolist(),
            "options": self.options,
            "notes": self.notes,
            "versions": self.versions,
            "seconds": self.seconds,
        }
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the file; it is complete or not there.

        Raises:
            InputError: It cannot be written there.
        """
        path = Path(path)
        # Through links: what is replaced is the file, not the link to it.
        target = path.resolve()
        temporary = target.parent / f".sensmerge-{target.name}.{os.getpid()}.partial"
        if target.exists() and not target.is_file():
            raise InputError(f"{path}: is not a regular file")
        if target.parent.exists() and not target.parent.is_dir():
            raise InputError(f"{path}: cannot be written: {target.parent} is not a folder")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("x", encoding="utf-8") as file:
                file.write(self.to_json())
            os.replace(temporary, target)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
        finally:
            with suppress(OSError):
                temporary.unlink()

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a calibration.

        Raises:
            InputError: The file cannot be read, or is no calibration; the message names the key.
        """
        path = Path(path)
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise InputError(f"{path}: is no text") from None
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Read a calibration from its text.

        Raises:
            InputError: It is no calibration; the message names the key.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"format: not a {FORMAT} file")
        if data.get("version") != VERSION:
            raise InputError(
                f"version: {data.get('version')} is not known; this sensmerge reads {VERSION}"
            )
        return _read(Part(data, ""))

    def select(self, fingerprints: list[str]) -> Calibration:
        """The part that belongs to these experts, in this order.

        Args:
            fingerprints: Digests of the experts' weights.

        Raises:
            InputError: It was measured on other weights.
        """
        known = [expert.fingerprint for expert in self.experts]
        rows: list[int] = []
        for place, fingerprint in enumerate(fingerprints):
            found = [row for row, other in enumerate(known) if other == fingerprint]
            if not found:
                raise InputError(
                    f"the calibration does not belong to expert {place + 1} of the recipe: it was "
                    f"measured on {', '.join(expert.model for expert in self.experts)}, and the "
                    "expert's weights are other ones; calibrate again"
                )
            # Weights that were measured twice, on two tasks, are taken in turn.
            rows.append(next((row for row in found if row not in rows), found[0]))
        return replace(
            self,
            experts=[self.experts[row] for row in rows],
            sensitivity=self.sensitivity[rows],
            outside_sensitivity=self.outside_sensitivity[rows],
            alignment=self.alignment[np.ix_(rows, rows)],
        )


def _read(data: Part) -> Calibration:
    experts = [_read_expert(part) for part in data.parts("experts")]
    if not experts:
        raise InputError("experts: there are none")
    outside = data.part("outside")
    layers, outside_layers = data.names("layers"), outside.names("layers")
    count = len(experts)
    calibration = Calibration(
        base=data.text("base", optional=True),
        experts=experts,
        layers=layers,
        sensitivity=data.matrix("sensitivity", count, len(layers)),
        outside_layers=outside_layers,
        outside_sensitivity=outside.matrix("sensitivity", count, len(outside_layers)),
        order=data.names("order"),
        alignment=data.matrix("alignment", count, count),
        options=data.mapping("options"),
        notes=data.texts("notes"),
        versions=data.mapping("versions"),
        seconds=data.mapping("seconds"),
    )
    if sorted(calibration.order) != sorted([*layers, *outside_layers]):
        raise InputError("order: does not name the same layers as layers and outside.layers")
    if np.any(np.diagonal(calibration.alignment)):
        raise InputError("alignment: an expert's distance to itself is not 0")
    return calibration


def _read_expert(data: Part) -> Expert:
    task = data.part("task")
    return Expert(
        model=str(data.text("model")),
        fingerprint=str(data.text("fingerprint")),
        vocabulary=data.count("vocabulary"),
        loss=data.number("loss"),
        task=TaskRecord(
            path=str(task.text("path")),
            rows=task.count("rows"),
            drawn=task.counts("drawn"),
            used=task.count("used"),
            left_out=task.count("left_out"),
            scored_tokens=task.count("scored_tokens"),
            token_ids=str(task.text("token_ids")),
            max_length=task.count("max_length"),
        ),
    )
