"""The model for which a name stands, however the name is spelled."""

from __future__ import annotations

import os
from pathlib import Path


def parts_of(model: str, folder: Path) -> tuple[str, list[str]]:
    """The names of a model and of the adapters that are added to it, in their order.

    ``name+adapter`` names an adapter after the model; several follow one another. A path that
    exists is one name, whatever characters it has.

    Args:
        model: The name.
        folder: The recipe's folder.
    """
    parts: list[str] = []
    words = model.split("+")
    while words:
        joined = ["+".join(words[:count]) for count in range(len(words), 0, -1)]
        there = next((name for name in joined if name and path_of(name, folder).exists()), words[0])
        parts.append(there)
        words = words[there.count("+") + 1 :]
    return parts[0], parts[1:]


def place_of(model: str, folder: Path) -> str:
    """The place that a model's name resolves to: the same for every spelling of one model.

    A model with adapters is another place than the model.

    Args:
        model: A path, relative to ``folder``; or a Hub id, with a revision if one is named.
        folder: The recipe's folder.

    Returns:
        The absolute path with links followed, if it exists; otherwise the name, normalised (without
        doubled slashes and the like).
    """
    base, adapters = parts_of(model, folder)
    return "+".join(_place_of(part, folder) for part in (base, *adapters))


def _place_of(name: str, folder: Path) -> str:
    path = path_of(name, folder)
    if path.exists():
        return os.path.realpath(path)
    return os.path.normpath(path_of(name, Path()))


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
