"""The model for which a name stands, however the name is spelled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Places:
    """Where a recipe's models lie.

    Attributes:
        folder: The folder that relative paths start from.
        stages: The folders of models that earlier stages of the recipe wrote, by their names.
    """

    folder: Path
    stages: Mapping[str, Path] = field(default_factory=dict)


def place_of(model: str, places: Path | Places) -> str:
    """The place that a model's name resolves to: the same for every spelling of one model.

    Args:
        model: A path; a Hub id, with a revision if one is named; or a stage's name.
        places: The recipe's folder, or its places.

    Returns:
        The absolute path with links followed, if it exists; otherwise the name, normalised (without
        doubled slashes and the like).
    """
    path = path_of(model, places)
    if path.exists():
        return os.path.realpath(path)
    return os.path.normpath(path_of(model, Path()))


def path_of(model: str, places: Path | Places) -> Path:
    """The path that a model's name is, if it is one; ``~`` is the user's home.

    A path that leads nowhere from the recipe's folder, but somewhere from the current one, is
    taken from there, as mergekit does.

    Args:
        model: The name.
        places: What it is relative to, if it is not whole; or a recipe's places, whose stages come
            before paths.
    """
    if isinstance(places, Places):
        if model in places.stages:
            return places.stages[model]
        places = places.folder
    try:
        plain = Path(model).expanduser()
    except RuntimeError:
        # There is no such user: the name stays what it is.
        return places / model
    return plain if is_from_here(model, places) else places / plain


def is_from_here(model: str, folder: Path) -> bool:
    """Whether a model's name is a path from the current folder, and none from the recipe's."""
    return not _exists(folder / model) and _exists(Path(model))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # It cannot be examined: whoever opens it says why.
        return True
