"""Calibrations, and the JSON files that they are saved in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from sensmerge.errors import InputError
from sensmerge.files import write_atomically
from sensmerge.reading import MIDDLE, parsed, text
from sensmerge.refusals import explain

FORMAT = "sensmerge-calibration"
VERSION = 1

# Options of calibrations that were measured before there was a choice.
WITHOUT_CHOICE = {"measure": "taylor", "base": "origin"}

# The options that change what is measured; the others only change how it is used.
MEASURED = {"measure", "base", "positions", "distance", "dtype", "samples", "max_length", "seed"}

Matrix = NDArray[np.float64]

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FileName = Annotated[str, AfterValidator(lambda name: _bare(name))]
Names = Annotated[list[str], AfterValidator(lambda names: _distinct(names))]


@dataclass(frozen=True)
class SampleFile:
    """One file of samples.

    Attributes:
        path: The file, as the recipe names it.
        rows: Samples in it.
    """

    path: str
    rows: Count


@dataclass(frozen=True)
class TaskRecord:
    """The samples that one expert was measured on.

    Attributes:
        path: The file, as the recipe names it; several are separated by commas.
        rows: Samples in all files.
        drawn: Rows that were drawn, counted from 0.
        used: How many were used: those with at least one scored token.
        left_out: How many had every scored token cut away.
        scored_tokens: Tokens that the loss was taken over.
        token_ids: Digest of the token ids of the used samples.
        max_length: Tokens that a sample was cut to.
        files: The files in the order in which their rows are counted; empty in calibrations of
            versions that read one file only.
    """

    path: str
    rows: Count
    drawn: list[Count]
    used: Count
    left_out: Count
    scored_tokens: Count
    token_ids: str
    max_length: Count
    files: list[SampleFile] = field(default_factory=list)


@dataclass(frozen=True)
class Expert:
    """An expert that was measured.

    Attributes:
        model: Its name in the recipe.
        fingerprint: Digest of its weights.
        vocabulary: Logits that it gives at a position.
        loss: Mean loss over its samples.
        task: Its samples.
    """

    model: str
    fingerprint: str
    vocabulary: Count
    loss: FiniteFloat
    task: TaskRecord


@dataclass(frozen=True)
class StatisticsFile:
    """A file of what was measured of an expert, tensor by tensor.

    Attributes:
        kind: ``fisher`` or ``gram``.
        file: Its name; it lies beside the calibration file.
        fingerprint: Digest of its content.
        tensors: For every tensor of the expert of which something was measured, by its name in the
            checkpoint: the name in the file.
        scale: What its numbers have to be multiplied by: the root mean square of a model's Fisher
            information, 1 elsewhere.
    """

    kind: str
    file: FileName
    fingerprint: str
    tensors: dict[str, str]
    scale: FiniteFloat


@dataclass(frozen=True)
class ActivationsFile:
    """A file of how strong the base's activations are, by input channel.

    Attributes:
        model: The base's name in the recipe.
        weights: Digest of its weights.
        paths: The files of samples, as the recipe names them.
        used: Number of samples.
        token_ids: Digest of their token ids.
        file: The file's name; it lies beside the calibration file.
        fingerprint: Digest of its content.
        transposed: Tensors of the base whose inputs are rows rather than columns.
    """

    model: str
    weights: str
    paths: list[str]
    used: Count
    token_ids: str
    file: str
    fingerprint: str
    transposed: list[str]


@dataclass(frozen=True)
class Calibration:
    """Measurements of K experts with L decoder blocks and M layers outside them.

    Attributes:
        base: The base's name in the recipe, if it has one.
        experts: The experts, in the recipe's order.
        layers: Names of the L blocks, as in the checkpoint.
        sensitivity: K × L, s_i^l of Eq. 3: sums of ``|θ · g|``, or of g² if ``measure`` is
            ``fisher``.
        outside_layers: Names of the M other layers, in the model's order.
        outside_sensitivity: K × M, the same for these.
        order: Names of all L + M layers, in the model's order.
        alignment: K × K, g_ij of Eq. 4: model i against expert j on j's samples.
        options: The options it was measured with.
        notes: Remarks for the user.
        versions: Versions of the software.
        seconds: Seconds by phase.
        statistics: What was measured of every expert for a method that needs it, in their order;
            empty otherwise.
        activations: What was measured of the base's activations, if the recipe needs that. Where it
            needs nothing else, there are no experts.
        folder: Where these files lie; None if that is not known.
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
    statistics: list[StatisticsFile] = field(default_factory=list)
    activations: ActivationsFile | None = None
    folder: Path | None = None

    @property
    def files(self) -> list[str]:
        """The names of the files beside it."""
        own = [] if self.activations is None else [self.activations.file]
        return [*(each.file for each in self.statistics), *own]

    @property
    def measure(self) -> str:
        """What its sensitivities are sums of: ``|θ · g|`` (``taylor``) or g² (``fisher``)."""
        return str((WITHOUT_CHOICE | self.options)["measure"])

    @property
    def has_base(self) -> bool:
        """Whether the base was measured like an expert; it is the first then."""
        return bool((WITHOUT_CHOICE | self.options)["base"] == "expert")

    def require_measure(self, asked: str) -> None:
        """Refuse the calibration for a recipe that asks for another measure.

        Args:
            asked: The recipe's ``sensitivity.measure``, given or by default.

        Raises:
            InputError: It was measured otherwise.
        """
        if self.measure != asked:
            raise InputError(
                f"sensitivity.measure: the recipe asks for {asked} and the calibration was "
                f"measured with {self.measure}; calibrate again, or write measure: {self.measure}"
            )

    def __repr__(self) -> str:
        models = [expert.model for expert in self.experts]
        return f"Calibration(experts={models}, layers={len(self.layers)}, measure={self.measure!r})"

    def _repr_html_(self) -> str:
        from sensmerge.calibration.notebook import html_of

        return html_of(self)

    def summary(self) -> dict[str, Any]:
        """The measurements without their matrices, as keys and values; see docs/json.md."""
        return {
            "base": self.base,
            "experts": [
                {
                    "model": expert.model,
                    "fingerprint": expert.fingerprint,
                    "loss": expert.loss,
                    "samples": expert.task.path,
                    "used": expert.task.used,
                    "left_out": expert.task.left_out,
                    "scored_tokens": expert.task.scored_tokens,
                }
                for expert in self.experts
            ],
            "layers": self.order,
            "options": self.options,
            "seconds": self.seconds,
            "notes": self.notes,
        }

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
        if self.statistics:
            data["statistics"] = [asdict(each) for each in self.statistics]
        if self.activations is not None:
            data["activations"] = asdict(self.activations)
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            InputError: It cannot be written there.
        """
        write_atomically(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a calibration.

        Raises:
            InputError: The file cannot be read, or is no calibration; the message names the key.
        """
        path = Path(path)
        try:
            found = cls.from_json(text(path, MIDDLE))
            return replace(found, folder=path.absolute().parent)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        except InputError as error:
            said = str(error)
            named = said.startswith(f"{path}: ")
            raise InputError(said if named else f"{path}: {said}") from None

    @classmethod
    def from_json(cls, written: str) -> Calibration:
        """Read a calibration from its text.

        Raises:
            InputError: It is no calibration; the message names the key.
        """
        try:
            data = parsed(written, MIDDLE)
        except ValueError as error:
            raise InputError(f"not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"format: not a {FORMAT} file")
        if data.get("version") != VERSION:
            raise InputError(
                f"version: {data.get('version')} is not known; this sensmerge reads {VERSION}"
            )
        try:
            return _File.model_validate_json(written).calibration()
        except ValidationError as error:
            raise InputError(explain(error, _File)) from None

    def select(self, fingerprints: list[str]) -> Calibration:
        """The part that belongs to these experts, in this order.

        Args:
            fingerprints: Digests of the experts' weights.

        Raises:
            InputError: It was measured on other weights.
        """
        if fingerprints and not self.experts:
            raise InputError(
                "the calibration has the base's activations alone; calibrate again with this recipe"
            )
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
            statistics=[self.statistics[row] for row in rows] if self.statistics else [],
        )


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Outside(_Strict):
    layers: Names
    sensitivity: list[list[Amount]]


class _File(_Strict):
    """The keys of the file and the types of their values."""

    format: str
    version: int
    base: str | None
    experts: list[Expert]
    layers: Names
    sensitivity: list[list[Amount]]
    outside: _Outside
    order: Names
    alignment: list[list[Amount]]
    options: Annotated[dict[str, Any], AfterValidator(lambda options: _finite(options))]
    notes: list[str]
    versions: dict[str, str]
    seconds: dict[str, FiniteFloat]
    statistics: list[StatisticsFile] = Field(default_factory=list)
    activations: ActivationsFile | None = None

    def calibration(self) -> Calibration:
        """The calibration, after a check that the parts of the file agree."""
        count, layers, outside = len(self.experts), self.layers, self.outside
        if count == 0 and self.activations is None:
            raise InputError("experts: there is none")
        alignment = _matrix("alignment", self.alignment, count, count)
        if np.any(np.diagonal(alignment)):
            raise InputError("alignment: an expert's distance to itself is not 0")
        if sorted(self.order) != sorted([*layers, *outside.layers]):
            raise InputError("order: does not name the same layers as layers and outside.layers")
        if self.statistics and len(self.statistics) != count:
            raise InputError(
                f"statistics: expected {count} files, and there are {len(self.statistics)}"
            )
        return Calibration(
            base=self.base,
            experts=self.experts,
            layers=layers,
            sensitivity=_matrix("sensitivity", self.sensitivity, count, len(layers)),
            outside_layers=outside.layers,
            outside_sensitivity=_matrix(
                "outside.sensitivity", outside.sensitivity, count, len(outside.layers)
            ),
            order=self.order,
            alignment=alignment,
            options=self.options,
            notes=self.notes,
            versions=self.versions,
            seconds=self.seconds,
            statistics=self.statistics,
            activations=self.activations,
        )


def _bare(name: str) -> str:
    if Path(name).name != name or name == "..":
        raise ValueError(f"'{name}' is no bare file name")
    return name


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a layer is named twice")
    return names


def _finite(options: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(options, allow_nan=False)
    except ValueError:
        raise ValueError("a number is not finite") from None
    return options


def _matrix(key: str, values: list[list[float]], rows: int, columns: int) -> Matrix:
    """A [rows, columns] matrix."""
    if len(values) != rows:
        raise InputError(f"{key}: expected {rows} rows, and there are {len(values)}")
    for place, row in enumerate(values):
        if len(row) != columns:
            raise InputError(
                f"{key}[{place}]: expected {columns} numbers, and there are {len(row)}"
            )
    return np.array(values, dtype=np.float64).reshape(rows, columns)
