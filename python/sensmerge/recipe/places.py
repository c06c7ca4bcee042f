"""The model for which a name stands, however the name is spelled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sensmerge.errors import InputError
from sensmerge.reading import mode_of

# The most names in one, joined by plus signs.
_MOST_PARTS = 64


@dataclass(frozen=True)
class Places:
    """Where a recipe's models lie.

    Attributes:
        folder: The folder that relative paths start from.
        stages: The folders of models that earlier stages of the recipe wrote, by their names.
    """

    folder: Path
    stages: Mapping[str, Path] = field(default_factory=dict)


def parts_of(model: str, places: Path | Places) -> tuple[str, list[str]]:
    """The names of a model and of the adapters that are added to it, in their order.

    ``name+adapter`` names an adapter after the model; several follow one another. A path that
    exists is one name, whatever characters it has.

    Args:
        model: The name.
        places: The recipe's folder, or its places.

    Raises:
        InputError: It names more adapters than anybody adds.
    """
    parts: list[str] = []
    words = model.split("+")
    if len(words) > _MOST_PARTS:
        raise InputError(f"model '{model}': names more than {_MOST_PARTS} adapters")
    while words:
        joined = ["+".join(words[:count]) for count in range(len(words), 0, -1)]
        there = next((name for name in joined if name and exists(path_of(name, places))), words[0])
        parts.append(there)
        words = words[there.count("+") + 1 :]
    return parts[0], parts[1:]


def place_of(model: str, places: Path | Places) -> str:
    """The place that a model's name resolves to: the same for every spelling of one model.

    A model with adapters is another place than the model.

    Args:
        model: A path; a Hub id, with a revision if one is named; or a stage's name.
        places: The recipe's folder, or its places.

    Returns:
        The absolute path with links followed, if it exists; otherwise the name, normalised (without
        doubled slashes and the like).
    """
    base, adapters = parts_of(model, places)
    return "+".join(_place_of(part, places) for part in (base, *adapters))


def _place_of(name: str, places: Path | Places) -> str:
    path = path_of(name, places)
    if exists(path):
        return os.path.realpath(path)
    return os.path.normpath(path_of(name, Path()))


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
    plain = at_home(model)
    return plain if is_from_here(model, places) else places / plain


def at_home(name: str) -> Path:
    """The path of a name, in which ``~`` is the user's home, and ``~user`` that of a user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        # There is no such user: the name stays what it is.
        return Path(name)


def is_from_here(model: str, folder: Path) -> bool:
    """Whether a model's name is a path from the current folder, and none from the recipe's."""
    return not exists(folder / model) and exists(Path(model))


def exists(path: Path) -> bool:
    """Whether there is something at a path, or may be: whoever opens it says why it cannot."""
    try:
        return mode_of(path) is not None
    except OSError:
        return True
