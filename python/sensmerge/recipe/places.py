"""The model for which a name stands, however the name is spelled."""

from __future__ import annotations

import os
from pathlib import Path


def place_of(model: str, folder: Path) -> str:
    """The place that a model's name resolves to: the same for every spelling of one model.

    Args:
        model: A path, relative to ``folder``; or a Hub id, with a revision if one is named.
        folder: The recipe's folder.

    Returns:
        The absolute path with links followed, if it exists; otherwise the name, normalised (without
        doubled slashes and the like).
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
