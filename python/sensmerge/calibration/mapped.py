"""A checkpoint's weights as torch tensors, without reading them.

The files are mapped read-only and shared. The system may drop their pages and read them again, so
weights take no memory of the process's own, whatever their size.

Quantised tensors are dequantised by the core: into memory or, for models that are run block by
block, into a temporary file that is mapped like the others.
"""

from __future__ import annotations

import math
import mmap
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.models.dtypes import STORED

# Addresses of tensors are multiples of this, in files and in memory.
_ALIGNMENT = 64


def mapped(path: Path, *, on_disk: bool = False) -> dict[str, torch.Tensor]:
    """Every tensor of a model's folder, by name. They must not be written to.

    Args:
        path: The folder.
        on_disk: Whether quantised tensors are dequantised into a temporary file, which is gone when
            they are, rather than into memory.

    Raises:
        InputError: The checkpoint is malformed, or has a dtype that torch does not know.
        OSError: The temporary file cannot be written.
    """
    checkpoint = _core.Checkpoint(str(path))
    files: dict[str, mmap.mmap] = {}
    found = {}
    quantised = []
    for tensor in checkpoint.tensors:
        if tensor.code is not None:
            quantised.append(tensor)
            continue
        if tensor.file not in files:
            with (path / tensor.file).open("rb") as file:
                files[tensor.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found[tensor.name] = _view(path, tensor, files[tensor.file])
    return found | _dequantised(path, checkpoint, quantised, on_disk=on_disk)


def dequantised_bytes(checkpoint: _core.Checkpoint) -> int:
    """Bytes of a checkpoint's quantised tensors when they are dequantised."""
    return sum(_size(tensor) for tensor in checkpoint.tensors if tensor.code is not None)


def torch_dtype(path: Path, tensor: _core.TensorInfo) -> torch.dtype:
    """A tensor's dtype in torch.

    Raises:
        InputError: torch does not know it.
    """
    known = STORED.get(tensor.dtype)
    if known is None:
        raise InputError(
            f"{path / tensor.file}, tensor '{tensor.name}': torch does not know {tensor.dtype}"
        )
    dtype: torch.dtype = getattr(torch, known.torch)
    return dtype


def _view(path: Path, tensor: _core.TensorInfo, file: mmap.mmap) -> torch.Tensor:
    dtype = torch_dtype(path, tensor)
    if tensor.nbytes == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    with warnings.catch_warnings():
        # torch warns that the buffer is read-only, as it should be.
        warnings.simplefilter("ignore")
        raw = torch.frombuffer(file, dtype=torch.uint8, count=tensor.nbytes, offset=tensor.start)
    if tensor.start % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).view(tensor.shape)


def _dequantised(
    path: Path, checkpoint: _core.Checkpoint, tensors: list[_core.TensorInfo], *, on_disk: bool
) -> dict[str, torch.Tensor]:
    places = {}
    end = 0
    for tensor in tensors:
        places[tensor.name] = range(end, end + _size(tensor))
        end += math.ceil(_size(tensor) / _ALIGNMENT) * _ALIGNMENT
    if end == 0:
        return {}
    raw = _file(end) if on_disk else torch.empty(end, dtype=torch.uint8)
    views = {name: raw[place.start : place.stop] for name, place in places.items()}
    outputs: dict[str, Any] = {name: view.numpy() for name, view in views.items()}
    checkpoint.read_into(outputs)
    return {
        tensor.name: views[tensor.name].view(torch_dtype(path, tensor)).view(tensor.shape)
        for tensor in tensors
    }


def _file(size: int) -> torch.Tensor:
    """Bytes of a file without a name, which the system removes with the last view of it."""
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)


def _size(tensor: _core.TensorInfo) -> int:
    known = STORED.get(tensor.dtype)
    return math.prod(tensor.shape) * (0 if known is None else known.size)
