"""Matrices that are put aside in a temporary file, so that memory holds those of one module."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from sensmerge.lora.core_space import Matrix


@dataclass(frozen=True)
class Place:
    """Where a matrix lies.

    Attributes:
        first: Index of its first entry in the file.
        shape: Its shape.
    """

    first: int
    shape: tuple[int, int]


class Shelf:
    """A file of float64 matrices: first all are put there, then they are looked at."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._end = 0
        self._mapped: NDArray[np.float64] | None = None

    def put(self, values: Matrix) -> Place:
        """Put a matrix aside."""
        place = self.room((values.shape[0], values.shape[1]))
        self._file.write(np.ascontiguousarray(values).data)
        return place

    def room(self, shape: tuple[int, int]) -> Place:
        """Leave room for a matrix, of zeros until it is written."""
        assert self._mapped is None, "everything is put there before anything is looked at"
        place = Place(self._end, shape)
        self._file.seek(8 * place.first)
        self._end += math.prod(shape)
        return place

    def at(self, place: Place) -> Matrix:
        """A matrix, as a view of the file."""
        if self._mapped is None:
            self._file.flush()
            self._file.truncate(8 * self._end)
            self._mapped = np.asarray(np.memmap(self._file, np.float64, "r+"))
        return self._mapped[place.first :][: math.prod(place.shape)].reshape(place.shape)


@contextmanager
def shelf_beside(path: Path) -> Iterator[Shelf]:
    """A shelf on the file system that a path is on; its file has no name and goes with it."""
    folder = next(place for place in path.absolute().parents if place.is_dir())
    with tempfile.TemporaryFile(dir=folder) as file:
        yield Shelf(file)
