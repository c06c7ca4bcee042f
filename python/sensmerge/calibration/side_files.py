"""Safetensors files that are written while their entries are computed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sensmerge.files import replacing
from sensmerge.models.dtypes import STORED


@dataclass(frozen=True)
class Entry:
    """A tensor to be written.

    Attributes:
        name: Its name.
        dtype: Its dtype in the format, such as ``BF16``.
        shape: Its shape.
        pieces: Gives its bytes, little-endian, in pieces.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[bytes]]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * STORED[self.dtype].size


def write_safetensors(path: Path, entries: list[Entry], metadata: dict[str, str]) -> None:
    """Write a file, whole or not at all; one piece is held at a time.

    Args:
        path: The file.
        entries: Its tensors, in their order in the file.
        metadata: Texts of its header.

    Raises:
        InputError: It cannot be written.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for entry in entries:
        end = start + entry.nbytes
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            for piece in entry.pieces():
                file.write(piece)
