"""A checkpoint's weights as torch tensors, without reading them.

The files are mapped read-only and shared: their pages are the system's to drop and to read again,
so that weights cost no memory of the process, whatever their size.
"""

from __future__ import annotations

import mmap
import warnings
from pathlib import Path

import torch

from sensmerge import _core
from sensmerge.errors import InputError

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}


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
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InputError(
            f"{path / tensor.file}, tensor '{tensor.name}': torch does not know {tensor.dtype}"
        )
    if tensor.nbytes == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    with warnings.catch_warnings():
        # torch warns that the buffer is read-only, which is what is wanted.
        warnings.simplefilter("ignore")
        raw = torch.frombuffer(file, dtype=torch.uint8, count=tensor.nbytes, offset=tensor.start)
    if tensor.start % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).view(tensor.shape)
