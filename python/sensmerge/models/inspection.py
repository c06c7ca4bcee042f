"""A description of a checkpoint, as text."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from sensmerge import _core
from sensmerge.models.layers import block_of, blocks, layer_of
from sensmerge.models.references import resolve
from sensmerge.terminal import plain

_BYTES_PER_UNIT = 1000


def describe(model: str | Path) -> str:
    """A table of a model's tensors, a table of its layers, totals, and notes on its files.

    Raises:
        InputError: The checkpoint cannot be read as it is.
        OSError: A file cannot be read.
    """
    checkpoint = _core.Checkpoint(str(resolve(str(model), Path())))
    tensors = checkpoint.tensors
    layers = {tensor.name: layer_of(tensor.name) for tensor in tensors}
    shown = {name: plain(name) for name in [*layers, *layers.values()]}
    width = max([4, *map(len, shown.values())])
    lines = [f"{'name':<{width}}  {'dtype':<7}  {'shape':<16}  {'size':>9}  file"]
    for tensor in tensors:
        shape = " × ".join(map(str, tensor.shape)) or "scalar"
        size = human_size(tensor.nbytes)
        lines.append(
            f"{shown[tensor.name]:<{width}}  {tensor.code or tensor.dtype:<7}  {shape:<16}  "
            f"{size:>9}  {plain(tensor.file)}"
        )
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[layers[tensor.name]] += tensor.nbytes
    lines += ["", f"{'layer':<{width}}  {'size':>9}"]
    inner = blocks(tensor.name for tensor in tensors)
    outer = sorted({layers[t.name] for t in tensors if block_of(t.name) is None})
    lines += [
        f"{shown[layer]:<{width}}  {human_size(sizes[layer]):>9}" for layer in [*inner, *outer]
    ]
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    total = sum(tensor.nbytes for tensor in tensors)
    files = len({tensor.file for tensor in tensors})
    dtypes = ", ".join(sorted({tensor.code or tensor.dtype for tensor in tensors}))
    lines += [
        "",
        f"{len(tensors)} tensors, {parameters:,} parameters, {human_size(total)} in {files} "
        f"{'file' if files == 1 else 'files'}; {dtypes}; {len(inner)} blocks",
        f"fingerprint {checkpoint.fingerprint()}",
        *_quantised(checkpoint),
        *(f"note: {plain(note)}" for note in [*checkpoint.notes, *checkpoint.suspicions()]),
    ]
    return "\n".join(lines)


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
