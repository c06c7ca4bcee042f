"""Parts of a JSON file, read by key: what is not as it should be is refused by its full key."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensmerge.errors import InputError


@dataclass(frozen=True)
class Part:
    """A JSON object somewhere in a file.

    Attributes:
        data: Its keys and values.
        place: Its own key, such as ``experts[0].``, or nothing for the whole file.

    Every method raises ``InputError`` where the key is missing or its value is of another kind.
    """

    data: dict[str, Any]
    place: str

    def text(self, key: str, *, optional: bool = False) -> str | None:
        """A string; with ``optional``, or null."""
        value = self._get(key)
        if isinstance(value, str) or (optional and value is None):
            return value
        raise self._refusal(key, "text")

    def count(self, key: str) -> int:
        """An integer that is not negative."""
        value = self._get(key)
        if not _is_count(value):
            raise self._refusal(key, "a whole number")
        return int(value)

    def counts(self, key: str) -> list[int]:
        """A list of integers that are not negative."""
        value = self._get(key)
        if not isinstance(value, list) or not all(map(_is_count, value)):
            raise self._refusal(key, "a list of whole numbers")
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = self._get(key)
        if not _is_number(value):
            raise self._refusal(key, "a finite number")
        return float(value)

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self._refusal(key, "a list of texts")
        return value

    def names(self, key: str) -> list[str]:
        """A list of strings, none of them twice."""
        value = self.texts(key)
        if len(set(value)) < len(value):
            raise self._refusal(key, "a list without repetitions")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """An object, whatever is in it."""
        value = self._get(key)
        if not isinstance(value, dict):
            raise self._refusal(key, "an object")
        return value

    def part(self, key: str) -> Part:
        """An object, to be read by key."""
        return Part(self.mapping(key), f"{self.place}{key}.")

    def parts(self, key: str) -> list[Part]:
        """A list of objects."""
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
            raise self._refusal(key, "a list of objects")
        return [Part(part, f"{self.place}{key}[{place}].") for place, part in enumerate(value)]

    def matrix(self, key: str, rows: int, columns: int) -> NDArray[np.float64]:
        """A list of rows of finite numbers, none negative: [rows, columns]."""
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
            raise self._refusal(key, "a list of rows")
        if len(value) != rows:
            raise self._refusal(key, f"{rows} rows, and there are {len(value)}")
        for place, row in enumerate(value):
            where = f"{key}[{place}]"
            if len(row) != columns:
                raise self._refusal(where, f"{columns} numbers, and there are {len(row)}")
            if not all(_is_number(number) and number >= 0 for number in row):
                raise self._refusal(where, "finite numbers, none of them negative")
        return np.array(value, dtype=np.float64).reshape(rows, columns)

    def _get(self, key: str) -> Any:
        if key not in self.data:
            raise InputError(f"{self.place}{key}: is missing")
        return self.data[key]

    def _refusal(self, key: str, expected: str) -> InputError:
        return InputError(f"{self.place}{key}: expected {expected}")


def _is_number(value: Any) -> bool:
    # To JSON's reader NaN and Infinity are numbers, and to Python true and false are.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
