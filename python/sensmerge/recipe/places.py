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
    path = path_of(model, folder)
    if path.exists():
        return os.path.realpath(path)
    return os.path.normpath(path_of(model, Path()))


def path_of(model: str, folder: Path) -> Path:
    """The path that a model's name is, if it is one; ``~`` is the user's home.

    Args:
        model: The name.
        folder: What it is relative to, if it is not whole.
    """
    try:
        return folder / Path(model).expanduser()
    except RuntimeError:
        # There is no such user: the name stays what it is.
        return folder / model
