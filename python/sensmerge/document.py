"""Results as JSON: the one form in which commands and results say it, read by programs."""

from __future__ import annotations

import json
import math
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


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
