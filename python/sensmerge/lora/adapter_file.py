"""Writing of ``adapter_model.safetensors``, tensor by tensor."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

# Room in the header for a tensor besides its name: dtype, shape and offsets.
_ENTRY = 160


class AdapterFile:
    """A safetensors file whose header is written last, into room that is left for it."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self._file = file
        self._room = room
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._end = 0
        file.seek(8 + room)

    def add(
        self,
        name: str,
        dtype: str,
        values: NDArray[Any],
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Append a tensor.

        Args:
            name: Its name.
            dtype: Its dtype in the safetensors format.
            values: Its entries.
            shape: Its shape; that of ``values`` by default.
        """
        content = np.ascontiguousarray(values)
        start, self._end = self._end, self._end + content.nbytes
        self._header[name] = {
            "dtype": dtype,
            "shape": list(content.shape if shape is None else shape),
            "data_offsets": [start, self._end],
        }
        self._file.write(content.reshape(-1).view(np.uint8).data)

    def finish(self) -> None:
        """Write the header."""
        text = json.dumps(self._header).encode()
        assert len(text) <= self._room, "the room for the header was measured beforehand"
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._room) + text.ljust(self._room))


@contextmanager
def adapter_file(path: Path, names: list[str]) -> Iterator[AdapterFile]:
    """A file to add tensors to, which is in place once all are.

    Args:
        path: The file; its folder is made if it does not exist.
        names: Names of all tensors that may be added.

    Raises:
        OSError: It cannot be written.
    """
    room = 64 + sum(len(json.dumps(name)) + _ENTRY for name in names)
    temporary = path.with_name(f".{path.name}.partial")
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            writer = AdapterFile(file, room + -room % 8)
            yield writer
            writer.finish()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()
        # Folders that were made for nothing; one that holds the file is not removed.
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
