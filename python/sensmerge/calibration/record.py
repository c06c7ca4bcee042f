"""A calibration as a file that people can read: what was measured, on what, and how."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """

    path: str
    rows: int
    drawn: list[int]
    used: int
    left_out: int
    scored_tokens: int
    token_ids: str


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
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=path.parent, prefix=".sensmerge-", delete=False
            ) as file:
                file.write(self.to_json())
            # A temporary file is its owner's alone; this one is a file like any other.
            os.chmod(file.name, 0o666 & ~_umask())
            os.replace(file.name, path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None

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
        except ValueError as error:
            raise InputError(f"not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"format: not a {FORMAT} file")
        if data.get("version") != VERSION:
            raise InputError(
                f"version: {data.get('version')} is not known; this sensmerge reads {VERSION}"
            )
        try:
            experts = [
                Expert(**expert | {"task": TaskRecord(**expert["task"])})
                for expert in data["experts"]
            ]
            outside = data["outside"]
            calibration = cls(
                base=data["base"],
                experts=experts,
                layers=list(data["layers"]),
                sensitivity=np.array(data["sensitivity"], dtype=np.float64),
                outside_layers=list(outside["layers"]),
                outside_sensitivity=np.array(outside["sensitivity"], dtype=np.float64),
                order=list(data["order"]),
                alignment=np.array(data["alignment"], dtype=np.float64),
                options=dict(data["options"]),
                notes=list(data["notes"]),
                versions=dict(data["versions"]),
                seconds=dict(data["seconds"]),
            )
        except KeyError as error:
            raise InputError(f"{error.args[0]}: is missing") from None
        except (TypeError, ValueError) as error:
            raise InputError(f"malformed: {error}") from None
        calibration._check()
        return calibration

    def select(self, fingerprints: list[str]) -> Calibration:
        """The part that belongs to these experts, in this order.

        Args:
            fingerprints: Digests of the experts' weights.

        Raises:
            InputError: It was measured on other weights.
        """
        known = [expert.fingerprint for expert in self.experts]
        for place, fingerprint in enumerate(fingerprints):
            if fingerprint not in known:
                raise InputError(
                    f"the calibration does not belong to expert {place + 1} of the recipe: it was "
                    f"measured on {', '.join(expert.model for expert in self.experts)}, and the "
                    "expert's weights are other ones; calibrate again"
                )
        rows = [known.index(fingerprint) for fingerprint in fingerprints]
        return replace(
            self,
            experts=[self.experts[row] for row in rows],
            sensitivity=self.sensitivity[rows],
            outside_sensitivity=self.outside_sensitivity[rows],
            alignment=self.alignment[np.ix_(rows, rows)],
        )

    def _check(self) -> None:
        count = len(self.experts)
        shapes = {
            "sensitivity": (self.sensitivity, (count, len(self.layers))),
            "outside.sensitivity": (self.outside_sensitivity, (count, len(self.outside_layers))),
            "alignment": (self.alignment, (count, count)),
        }
        if count == 0:
            raise InputError("experts: there are none")
        for key, (matrix, shape) in shapes.items():
            if matrix.shape != shape and matrix.size + shape[1] > 0:
                raise InputError(f"{key}: has shape {matrix.shape}, expected {shape}")
            if not np.all(np.isfinite(matrix)) or np.any(matrix < 0):
                raise InputError(f"{key}: holds a number that is negative or not finite")
        if sorted(self.order) != sorted([*self.layers, *self.outside_layers]):
            raise InputError("order: does not name the same layers as layers and outside.layers")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
