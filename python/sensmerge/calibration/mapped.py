"""A checkpoint's weights as torch tensors, without reading them.

The files are mapped read-only and shared. The system may drop their pages and read them again, so
weights take no memory of the process's own, whatever their size.
"""

from __future__ import annotations

import mmap
import warnings
from pathlib import Path

import torch

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.models.dtypes import STORED


def mapped(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a model's folder, by name. They must not be written to.

    Raises:
        InputError: The checkpoint is malformed, or has a dtype that torch does not know.
    """
    files: dict[str, mmap.mmap] = {}
    found = {}
    for tensor in _core.Checkpoint(str(path)).tensors:
        if tensor.file not in files:
            with (path / tensor.file).open("rb") as file:
                files[tensor.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found[tensor.name] = _view(path, tensor, files[tensor.file])
    return found


def _view(path: Path, tensor: _core.TensorInfo, file: mmap.mmap) -> torch.Tensor:
    known = STORED.get(tensor.dtype)
    if known is None:
        raise InputError(
            f"{path / tensor.file}, tensor '{tensor.name}': torch does not know {tensor.dtype}"
        )
    dtype: torch.dtype = getattr(torch, known.torch)
    if tensor.nbytes == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    with warnings.catch_warnings():
        # torch warns that the buffer is read-only, as it should be.
        warnings.simplefilter("ignore")
        raw = torch.frombuffer(file, dtype=torch.uint8, count=tensor.nbytes, offset=tensor.start)
    if tensor.start % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).view(tensor.shape)
