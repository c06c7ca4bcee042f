"""Dtypes and their names in safetensors files, in torch and in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dtype:
    """A dtype that both safetensors and torch know.

    Attributes:
        stored: Its name in safetensors files.
        torch: Its name in torch and in recipes.
        size: Bytes of an entry.
        numpy: Its name in NumPy; None if NumPy has no such dtype.
        merged: Whether tensors of this dtype are merged; others are copied.
    """

    stored: str
    torch: str
    size: int
    numpy: str | None
    merged: bool = False


_ALL = (
    Dtype("BOOL", "bool", 1, "bool"),
    Dtype("U8", "uint8", 1, "uint8"),
    Dtype("I8", "int8", 1, "int8"),
    Dtype("F8_E4M3", "float8_e4m3fn", 1, None),
    Dtype("F8_E5M2", "float8_e5m2", 1, None),
    Dtype("U16", "uint16", 2, "uint16"),
    Dtype("I16", "int16", 2, "int16"),
    Dtype("F16", "float16", 2, "float16", merged=True),
    Dtype("BF16", "bfloat16", 2, None, merged=True),
    Dtype("U32", "uint32", 4, "uint32"),
    Dtype("I32", "int32", 4, "int32"),
    Dtype("F32", "float32", 4, "float32", merged=True),
    Dtype("U64", "uint64", 8, "uint64"),
    Dtype("I64", "int64", 8, "int64"),
    Dtype("F64", "float64", 8, "float64", merged=True),
)

STORED = {dtype.stored: dtype for dtype in _ALL}
TORCH = {dtype.torch: dtype for dtype in _ALL}


def dtype_name(tensor: Any) -> str:
    """The name of a torch or NumPy tensor's dtype, such as ``bfloat16``."""
    return str(tensor.dtype).removeprefix("torch.")


def is_float(stored: str) -> bool:
    """Whether a dtype, by its name in safetensors files, is a floating-point format."""
    return stored.startswith(("F", "BF"))
