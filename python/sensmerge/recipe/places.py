"""Which model a name stands for, however it is spelled."""

from __future__ import annotations

import os
from pathlib import Path


def place_of(model: str, folder: Path) -> str:
    """What a model's name resolves to; the same for every spelling of one model.

    Args:
        model: A path, relative to ``folder``; or a Hub id, with its revision where one is named.
        folder: The recipe's folder.

    Returns:
        The whole path with links followed, where something is there; else the name, with doubled
        slashes and the like taken out.
    """
    path = folder / Path(model).expanduser()
    if path.exists():
        return os.path.realpath(path)
    return os.path.normpath(Path(model).expanduser())
