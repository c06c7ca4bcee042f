"""A description of a checkpoint, as text and as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sensmerge import _core
from sensmerge.document import Documented
from sensmerge.models.layers import block_of, blocks, layer_of
from sensmerge.models.references import resolve
from sensmerge.terminal import plain

_BYTES_PER_UNIT = 1000


@dataclass(frozen=True)
class Inspection(Documented):
    """A checkpoint, as its headers describe it.

    Attributes:
        model: Its name, as it was given.
        checkpoint: The checkpoint.
    """

    model: str
    checkpoint: _core.Checkpoint

    @cached_property
    def tensors(self) -> list[_core.TensorInfo]:
        """Its tensors."""
        return self.checkpoint.tensors

    @property
    def blocks(self) -> list[str]:
        """Its decoder blocks, in their order."""
        return blocks(tensor.name for tensor in self.tensors)

    @property
    def layers(self) -> dict[str, int]:
        """The size of every layer in bytes: blocks in their order, then what lies outside them."""
        names = [tensor.name for tensor in self.tensors]
        outer = sorted({layer_of(name) for name in names if block_of(name) is None})
        sizes = dict.fromkeys([*self.blocks, *outer], 0)
        for tensor in self.tensors:
            sizes[layer_of(tensor.name)] += tensor.nbytes
        return sizes

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def files(self) -> list[str]:
        """Names of the weight files."""
        return list(dict.fromkeys(tensor.file for tensor in self.tensors))

    @property
    def dtypes(self) -> list[str]:
        """What its tensors are stored in."""
        return sorted({_stored(tensor) for tensor in self.tensors})

    @cached_property
    def fingerprint(self) -> str:
        """Digest of its weights, which are read for it."""
        return self.checkpoint.fingerprint()

    @property
    def notes(self) -> list[str]:
        """Notes for the user."""
        return [*self.checkpoint.notes, *self.checkpoint.suspicions()]

    def describe(self) -> str:
        """A table of tensors, a table of layers, totals, and notes on the files."""
        tensors, layers = self.tensors, self.layers
        shown = {name: plain(name) for name in [*(tensor.name for tensor in tensors), *layers]}
        width = max([4, *map(len, shown.values())])
        lines = [f"{'name':<{width}}  {'dtype':<7}  {'shape':<16}  {'size':>9}  file"]
        for tensor in tensors:
            shape = " × ".join(map(str, tensor.shape)) or "scalar"
            size = human_size(tensor.nbytes)
            lines.append(
                f"{shown[tensor.name]:<{width}}  {_stored(tensor):<7}  {shape:<16}  "
                f"{size:>9}  {plain(tensor.file)}"
            )
        lines += ["", f"{'layer':<{width}}  {'size':>9}"]
        lines += [f"{shown[name]:<{width}}  {human_size(size):>9}" for name, size in layers.items()]
        files = len(self.files)
        lines += [
            "",
            f"{len(tensors)} tensors, {self.parameter_count:,} parameters, "
            f"{human_size(self.bytes)} in {files} {'file' if files == 1 else 'files'}; "
            f"{', '.join(self.dtypes)}; {len(self.blocks)} blocks",
            f"fingerprint {self.fingerprint}",
            *_quantised(self.checkpoint),
            *(f"note: {plain(note)}" for note in self.notes),
        ]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The same as keys and values; see docs/json.md."""
        quantised = self.checkpoint.quantised
        return {
            "model": self.model,
            "tensors": {
                tensor.name: {
                    "dtype": tensor.dtype,
                    "quantised": tensor.code,
                    "shape": tensor.shape,
                    "bytes": tensor.nbytes,
                    "file": tensor.file,
                    "layer": layer_of(tensor.name),
                }
                for tensor in self.tensors
            },
            "layers": {name: {"bytes": size} for name, size in self.layers.items()},
            "blocks": self.blocks,
            "tensor_count": len(self.tensors),
            "parameter_count": self.parameter_count,
            "bytes": self.bytes,
            "shards": self.files,
            "dtypes": self.dtypes,
            "fingerprint": self.fingerprint,
            "quantised": None
            if quantised is None
            else {"words": quantised.words, "advice": quantised.advice},
            "notes": self.notes,
        }


def inspect(model: str | Path) -> Inspection:
    """Look at a model's headers.

    Args:
        model: A model's folder, weight file or Hub id.

    Raises:
        InputError: The checkpoint cannot be read as it is.
        OSError: A file cannot be read.
    """
    return Inspection(str(model), _core.Checkpoint(str(resolve(str(model), Path()))))


def _stored(tensor: _core.TensorInfo) -> str:
    return tensor.code or tensor.dtype


def _quantised(checkpoint: _core.Checkpoint) -> list[str]:
    found = checkpoint.quantised
    if found is None:
        return []
    if found.advice is not None:
        return [f"quantised ({found.words}), which is not read: {found.advice}"]
    count = sum(tensor.code is not None for tensor in checkpoint.tensors)
    tensors = f"{count} {'tensor' if count == 1 else 'tensors'}"
    return [f"quantised ({found.words}): {tensors}, dequantised when they are merged or measured"]


def human_size(size: float) -> str:
    """A number of bytes as text, in decimal units like the Hub's."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < _BYTES_PER_UNIT:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _BYTES_PER_UNIT
    return f"{size:.1f} TB"
