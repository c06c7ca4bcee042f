"""The models of a recipe, opened: from disk, or in memory that the caller holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.models.folders import read_config, resolve

if TYPE_CHECKING:
    from sensmerge.recipe import Recipe


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        name: What the recipe calls it.
        path: Its folder or file; its name where it lies in memory.
        checkpoint: Its tensors: headers read, data not.
        config: Its ``config.json``; empty where it has none.
    """

    name: str
    path: Path
    checkpoint: _core.Checkpoint
    config: dict[str, Any]

    @property
    def tensors(self) -> list[str]:
        """Names of its tensors."""
        return [tensor.name for tensor in self.checkpoint.tensors]


@dataclass(frozen=True)
class Models:
    """All models of a recipe.

    Opening is reading headers: it is worth keeping where many merges use the same models.

    Attributes:
        base: The base, where the recipe has one.
        experts: The experts, in the recipe's order.
    """

    base: Model | None
    experts: list[Model]

    @property
    def all(self) -> list[Model]:
        """The base, where there is one, and every expert."""
        return [*([] if self.base is None else [self.base]), *self.experts]

    @property
    def template(self) -> Model:
        """The model whose tensors the output has: the base, or the first expert."""
        return self.all[0]

    @property
    def notes(self) -> list[str]:
        """What the user should know about which of their files were read, each said once."""
        return list(dict.fromkeys(note for model in self.all for note in model.checkpoint.notes))


def open_models(recipe: Recipe, given: Mapping[str, _core.Checkpoint] | None = None) -> Models:
    """Open the models of a recipe.

    Args:
        recipe: The recipe.
        given: Checkpoints that are open already, by the name that the recipe gives the model.

    Raises:
        InputError: A model is not there or malformed, or ``given`` names one that the recipe does
            not.
    """
    given = given or {}
    base = recipe.base_model
    names = [*([] if base is None else [base]), *(expert.model for expert in recipe.experts)]
    for name in given:
        if name not in names:
            raise InputError(f"'{name}' is no model of the recipe; it has {', '.join(names)}")
    opened = {name: _open(recipe, name, given.get(name)) for name in names}
    return Models(
        base=None if base is None else opened[base],
        experts=[opened[expert.model] for expert in recipe.experts],
    )


def _open(recipe: Recipe, name: str, checkpoint: _core.Checkpoint | None) -> Model:
    if checkpoint is None:
        path = resolve(name, recipe.folder)
        return Model(name, path, _core.Checkpoint(str(path)), read_config(path))
    path = Path(checkpoint.path)
    return Model(name, path, checkpoint, {} if checkpoint.in_memory else read_config(path))
