"""The models of a recipe, opened: from disk, or in the caller's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.models.folders import read_config
from sensmerge.models.references import resolve
from sensmerge.models.vocabulary.names import has_rows
from sensmerge.models.vocabulary.tokens import Tokens, Vocabularies
from sensmerge.recipe.places import place_of

if TYPE_CHECKING:
    from sensmerge.recipe import Recipe
    from sensmerge.recipe.places import Places


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        name: Its name in the recipe.
        path: Its folder or file; the name of a model in memory.
        checkpoint: Its tensors, of which only headers are read.
        config: Its ``config.json``; empty if it has none.
    """

    name: str
    path: Path
    checkpoint: _core.Checkpoint
    config: dict[str, Any]

    @cached_property
    def tensors(self) -> list[str]:
        """Names of its tensors."""
        return [tensor.name for tensor in self.checkpoint.tensors]

    @cached_property
    def token_rows(self) -> int | None:
        """The number of rows that it has for tokens; None without a tensor of a known name."""
        found = [
            tensor.shape[0]
            for tensor in self.checkpoint.tensors
            if has_rows(tensor.name) and tensor.shape
        ]
        return min(found, default=None)


@dataclass(frozen=True)
class Models:
    """All models of a recipe.

    Opening reads all headers; keep the result if many merges use the same models.

    Attributes:
        base: The base; None if the recipe has none.
        experts: The experts, in the recipe's order.
        places: Every model by the place that its name resolves to.
        home: The recipe's places, by which names are resolved.
        vocabularies: The tokens of their folders, each read when it is asked for.
    """

    base: Model | None
    experts: list[Model]
    places: dict[str, Model]
    home: Places
    vocabularies: Vocabularies = field(default_factory=Vocabularies, compare=False)

    def named(self, name: str) -> Model | None:
        """The model of a name; None where the recipe has no such model."""
        return self.places.get(place_of(name, self.home))

    def tokens(self, model: Model) -> Tokens | None:
        """The tokens of a model; None if it is in memory, or no file tells them."""
        return None if model.checkpoint.in_memory else self.vocabularies.of(model.path)

    def find(self, name: str) -> Model:
        """The model of a name in the recipe."""
        return self.places[place_of(name, self.home)]

    @property
    def all(self) -> list[Model]:
        """The base, if there is one, and every expert."""
        return [*([] if self.base is None else [self.base]), *self.experts]

    @property
    def template(self) -> Model:
        """The model whose tensors the output has: the base, or the first expert."""
        return self.all[0]

    def check_filled(self) -> None:
        """Refuse experts without content: no merge with them is right.

        Raises:
            InputError: Every tensor of an expert is zero.
        """
        empty = [model for model in self.experts if model.checkpoint.is_zero()]
        if empty:
            found = [said for model in empty for said in model.checkpoint.suspicions()]
            raise InputError("\n".join(dict.fromkeys(found)))

    @property
    def notes(self) -> list[str]:
        """Notes for the user on the models' files and content, each once."""
        said = [
            note
            for model in self.all
            for note in [*model.checkpoint.notes, *model.checkpoint.suspicions()]
        ]
        return list(dict.fromkeys(said))


def open_models(
    recipe: Recipe,
    given: Mapping[str, _core.Checkpoint] | None = None,
    *,
    progress: bool = True,
) -> Models:
    """Open the models of a recipe.

    Args:
        recipe: The recipe.
        given: Checkpoints that are open already, by the models' names in the recipe.
        progress: Show progress of downloads from the Hub.

    Raises:
        InputError: A model is missing or malformed, or ``given`` names one that the recipe does not
            name.
        OSError: A file cannot be read.
    """
    base = recipe.base_model
    bases = [named for part in recipe.parts if (named := recipe.base_of(part)) is not None]
    experts = [expert.model for expert in recipe.experts]
    names = list(dict.fromkeys([*([] if base is None else [base]), *bases, *experts]))
    # One model may have several spellings; it is opened once.
    places = {name: place_of(name, recipe.places) for name in names}
    held = {}
    for name, checkpoint in (given or {}).items():
        held[place_of(name, recipe.places)] = checkpoint
        if place_of(name, recipe.places) not in places.values():
            raise InputError(f"'{name}' is not a model of the recipe; it has {', '.join(names)}")
    opened: dict[str, Model] = {}
    for name, place in places.items():
        if place not in opened:
            opened[place] = _open(recipe, name, held.get(place), progress)
    return Models(
        base=None if base is None else opened[places[base]],
        experts=[opened[places[expert]] for expert in experts],
        places=opened,
        home=recipe.places,
    )


def _open(recipe: Recipe, name: str, checkpoint: _core.Checkpoint | None, progress: bool) -> Model:
    if checkpoint is None:
        path = resolve(name, recipe.places, progress=progress)
        return Model(name, path, _core.Checkpoint(str(path)), read_config(path))
    path = Path(checkpoint.path)
    return Model(name, path, checkpoint, {} if checkpoint.in_memory else read_config(path))
