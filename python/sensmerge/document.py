"""Results as JSON: the one form in which commands and results say it, read by programs."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def document(data: Mapping[str, Any]) -> str:
    """One JSON document, with a line break at its end.

    Numbers have all their digits. What JSON has no number for (NaN and infinity) is null. All that
    is not ASCII is escaped, so that a name can neither steer a terminal nor fail to be encoded.

    Args:
        data: Keys and values; mappings, sequences, text, numbers, paths, None.
    """
    return json.dumps(_plain(data), indent=2, allow_nan=False) + "\n"


class Documented(ABC):
    """A result that has a document."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """What was found, as keys and values; docs/json.md has those of every command."""

    def to_json(self) -> str:
        """The same as JSON; null for what was not computed or does not exist."""
        return document(self.as_dict())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
