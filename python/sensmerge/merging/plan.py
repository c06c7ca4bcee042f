"""The plan of a merge: its manifest and the files it would write, as text and as JSON."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sensmerge import markup
from sensmerge.document import document
from sensmerge.errors import InputError
from sensmerge.models.inspection import human_size
from sensmerge.terminal import plain

if TYPE_CHECKING:
    from sensmerge import _core
    from sensmerge.models import Model
    from sensmerge.scaling.sigma import Coefficients

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(size: str | int, key: str = "max_shard_size") -> int:
    """A number of bytes from ``5GB``, ``500MiB`` or a plain number.

    Args:
        size: What is written.
        key: The option or key that it is written for, for the message.

    Raises:
        InputError: The size is not written like that, or is not positive.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", str(size).strip().upper())
    if found is not None:
        number, unit, binary = found.groups()
        factor = _BINARY_UNITS.get(unit) if binary else _UNITS[unit]
        if factor is not None and (value := int(float(number) * factor)) > 0:
            return value
    raise InputError(f"{key}: '{size}' is not a size; write it like 5GB or 500MiB")


@dataclass(frozen=True)
class MergePlan:
    """The plan of a merge.

    Attributes:
        manifest: Every output tensor with its inputs and numbers.
        models: The models, in the order in which they are used first.
        checkpoints: The checkpoints of the manifest, in its order.
        max_shard_bytes: Largest size of a weight file's data, in bytes.
        coefficients: The coefficients in its weights; None for a plain merge.
        notes: Notes for the user.
    """

    manifest: _core.Manifest
    models: list[Model]
    checkpoints: list[_core.Checkpoint]
    max_shard_bytes: int
    coefficients: Coefficients | None
    notes: list[str]

    @cached_property
    def data(self) -> dict[str, Any]:
        """The manifest as plain data."""
        data: dict[str, Any] = json.loads(self.manifest.to_json())
        return data

    def to_json(self) -> str:
        """The manifest as JSON, with digests of the weights, so that changed models are noticed."""
        sealed = json.loads(self.manifest.with_fingerprints(self.checkpoints).to_json())
        return document(sealed)

    def __repr__(self) -> str:
        models = [model.name for model in self.models]
        written = self.manifest.tensors
        return f"MergePlan({self.data['method']['name']!r}, {models=}, tensors={len(written)})"

    def _repr_html_(self) -> str:
        data = self.as_dict()
        rows = [
            [
                name,
                tensor["file"],
                tensor["quantised"] or tensor["dtype"],
                _said(tensor["numbers"]) or "copied",
                human_size(tensor["bytes"]),
            ]
            for name, tensor in data["tensors"].items()
        ]
        size, files = human_size(data["bytes"]), len(data["shards"])
        return markup.shown(
            f"Plan: {self._merged()}",
            markup.facts(
                {"tensors": len(rows), "parameters": f"{data['parameter_count']:,}", "size": size}
                | {"weight files": files}
            ),
            markup.notes(self.notes),
            markup.table(["tensor", "file", "dtype", "numbers", "size"], rows, words=4),
        )

    def as_dict(self) -> dict[str, Any]:
        """What :meth:`describe` says, as keys and values; see docs/json.md."""
        files = self.manifest.files(self.max_shard_bytes)
        places = {name: file for file, names in files for name in names}
        method, names = self.data["method"], [model.name for model in self.models]
        written, tensors = self.manifest.tensors, dict[str, Any]()
        for tensor, output in zip(self.data["tensors"], written, strict=True):
            merged = tensor["content"].get("merge")
            tensors[tensor["name"]] = {
                "dtype": tensor["dtype"],
                "quantised": None if output.packing is None else output.packing.words,
                "shape": output.shape,
                "bytes": output.nbytes,
                "file": places[output.parts[0][0]],
                "numbers": None if merged is None else merged["numbers"],
            }
        return {
            "method": method["name"],
            "semantics": method["semantics"],
            "base_model": names.pop(0) if method["base"] else None,
            "models": names,
            "tensors": tensors,
            "tensor_count": len(written),
            "parameter_count": sum(math.prod(tensor.shape) for tensor in written),
            "bytes": sum(tensor.nbytes for tensor in written),
            "shards": [file for file, _ in files],
            "coefficients": None if self.coefficients is None else self.coefficients.as_dict(),
            "notes": self.notes,
        }

    def describe(self) -> str:
        """The plan as text: the merge as a whole, then one line per tensor."""
        files = self.manifest.files(self.max_shard_bytes)
        places = {name: file for file, names in files for name in names}
        lines = [self._merged()]
        written = self.manifest.tensors
        for tensor, output in zip(self.data["tensors"], written, strict=True):
            name, made_of = tensor["name"], "copied"
            if "merge" in tensor["content"]:
                stored = tensor["dtype"] if output.packing is None else output.packing.words
                made_of = "  ".join([stored, _said(tensor["content"]["merge"]["numbers"])]).rstrip()
            lines.append(f"{places[output.parts[0][0]]}  {plain(name)}  {made_of}")
        total = sum(tensor.nbytes for tensor in written)
        lines.append(
            f"{len(written)} tensors, {human_size(total)} in {len(files)} "
            f"{'file' if len(files) == 1 else 'files'}; nothing was written"
        )
        lines.extend(f"note: {plain(note)}" for note in self.notes)
        return "\n".join(lines)

    def _merged(self) -> str:
        """The method, and the models in the order of their numbers."""
        method, names = self.data["method"], [model.name for model in self.models]
        base = f"; base_model: {names.pop(0)}" if method["base"] else ""
        return plain(f"{method['name']} of {', '.join(names)}{base}")


def _said(numbers: dict[str, Any] | None) -> str:
    return "  ".join(f"{key} {_written(value)}" for key, value in (numbers or {}).items())


def _written(value: float | list[float]) -> str:
    numbers = value if isinstance(value, list) else [value]
    return ", ".join(f"{number:.6g}" for number in numbers)
