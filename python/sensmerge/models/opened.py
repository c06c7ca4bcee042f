"""The models of a recipe, opened: from disk, or in the caller's memory."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.models.folders import read_config
from sensmerge.models.layers import text_config
from sensmerge.models.references import resolve
from sensmerge.models.vocabulary.names import has_rows
from sensmerge.models.vocabulary.tokens import Tokens, Vocabularies
from sensmerge.recipe.places import parts_of, place_of

if TYPE_CHECKING:
    from sensmerge.models.adapters import Adapter, Change
    from sensmerge.recipe import Recipe
    from sensmerge.recipe.places import Places


@dataclass(frozen=True)
class Statistics:
    """What was measured of a model on samples, tensor by tensor.

    Attributes:
        checkpoint: The file of it.
        tensors: For every tensor of the model of which something was measured: its name there.
    """

    checkpoint: _core.Checkpoint
    tensors: dict[str, str]


@dataclass(frozen=True)
class Activations:
    """What was measured of a model's activations.

    Attributes:
        checkpoint: The file of it, by the names of the model's tensors.
        transposed: Tensors of the model whose inputs are rows rather than columns.
    """

    checkpoint: _core.Checkpoint
    transposed: list[str]


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        name: Its name in the recipe.
        path: Its folder or file; the name of a model in memory. Adapters have folders of their own.
        checkpoint: Its tensors without adapters, of which only headers are read.
        config: Its ``config.json``; empty if it has none.
        adapters: The adapters that are added to it, in their order.
        changes: What they change in its tensors, in that order.
        adapter_notes: Notes for the user on them.
        statistics: What was measured of it, if the method needs that.
        activations: What was measured of its activations, if the recipe needs that.
    """

    name: str
    path: Path
    checkpoint: _core.Checkpoint
    config: dict[str, Any]
    adapters: tuple[Adapter, ...] = ()
    changes: tuple[Change, ...] = ()
    adapter_notes: tuple[str, ...] = ()
    statistics: Statistics | None = None
    activations: Activations | None = None

    @cached_property
    def tensors(self) -> list[str]:
        """Names of its tensors."""
        return [tensor.name for tensor in self.checkpoint.tensors]

    @property
    def checkpoints(self) -> list[_core.Checkpoint]:
        """Its checkpoint, those of its adapters, and those of what was measured of it."""
        own = [self.checkpoint, *(adapter.checkpoint for adapter in self.adapters)]
        measured = (self.statistics, self.activations)
        return [*own, *(each.checkpoint for each in measured if each is not None)]

    @property
    def paths(self) -> list[Path]:
        """Its folder or file and the folders of its adapters."""
        return [self.path, *(adapter.path for adapter in self.adapters)]

    def plain(self, checkpoints: list[_core.Checkpoint]) -> dict[str, Any]:
        """The model as the core's request has it, without rules for the names of its tensors.

        Args:
            checkpoints: All checkpoints of the request; the core knows them by their place.
        """

        def number(of: _core.Checkpoint) -> int:
            return next(place for place, each in enumerate(checkpoints) if each is of)

        patches: dict[str, list[dict[str, Any]]] = {}
        for change in self.changes:
            patch = change.plain | {"checkpoint": number(change.checkpoint)}
            patches.setdefault(change.tensor, []).append(patch)
        found: dict[str, Any] = {"checkpoint": number(self.checkpoint), "patches": patches}
        if self.statistics is not None:
            measured = number(self.statistics.checkpoint)
            found["statistics"] = {"checkpoint": measured, "tensors": self.statistics.tensors}
        if self.activations is not None:
            measured = number(self.activations.checkpoint)
            found["activations"] = {
                "checkpoint": measured,
                "transposed": self.activations.transposed,
            }
        return found

    def fingerprint(self) -> str:
        """A short digest of its weights: of its checkpoint and of what adapters add to it."""
        own = self.checkpoint.fingerprint()
        if not self.adapters:
            return own
        parts = [own, *(adapter.checkpoint.fingerprint() for adapter in self.adapters)]
        said = json.dumps([parts, self.plain(self.checkpoints)["patches"]], sort_keys=True)
        return f"adapted-blake2:{hashlib.blake2b(said.encode(), digest_size=16).hexdigest()}"

    @cached_property
    def shapes(self) -> dict[str, list[int]]:
        """The shape of every tensor, as adapters leave it."""
        found = {tensor.name: list(tensor.shape) for tensor in self.checkpoint.tensors}
        for change in self.changes:
            if change.shape is not None:
                found[change.tensor] = change.shape
        return found

    @cached_property
    def token_rows(self) -> int | None:
        """The number of rows that it has for tokens; None without a tensor of a known name."""
        found = [shape[0] for name, shape in self.shapes.items() if has_rows(name) and shape]
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
        aligned: What was found of the order of their units, by pairs of models as slices see them.
    """

    base: Model | None
    experts: list[Model]
    places: dict[str, Model]
    home: Places
    vocabularies: Vocabularies = field(default_factory=Vocabularies, compare=False)
    aligned: dict[object, Any] = field(default_factory=dict, compare=False)

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

    def measured(self, found: Mapping[str, Statistics]) -> Models:
        """The same with statistics of some of them, by their names in the recipe."""
        by_place = {place_of(name, self.home): each for name, each in found.items()}
        return self._with(
            {place: replace(self.places[place], statistics=by_place[place]) for place in by_place}
        )

    def damped(self, base: str, found: Activations) -> Models:
        """The same with what was measured of the activations of the base, by its name."""
        place = place_of(base, self.home)
        return self._with({place: replace(self.places[place], activations=found)})

    def _with(self, changed: Mapping[str, Model]) -> Models:
        """The same with other models at some places."""
        places = {place: changed.get(place, model) for place, model in self.places.items()}
        others = {id(old): places[place] for place, old in self.places.items()}
        return replace(
            self,
            base=None if self.base is None else others[id(self.base)],
            experts=[others[id(expert)] for expert in self.experts],
            places=places,
        )

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
            raise InputError(list(dict.fromkeys(found)))

    @property
    def notes(self) -> list[str]:
        """Notes for the user on the models' files and content, each once."""
        said = [
            note
            for model in self.all
            for note in [
                *model.checkpoint.notes,
                *model.checkpoint.suspicions(),
                *model.adapter_notes,
            ]
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
        bases = [place_of(parts_of(known, recipe.places)[0], recipe.places) for known in names]
        if place_of(name, recipe.places) not in (*places.values(), *bases):
            raise InputError(f"'{name}' is not a model of the recipe; it has {', '.join(names)}")
    opened: dict[str, Model] = {}
    read = _Read(recipe.places, held, progress)
    for name, place in places.items():
        if place not in opened:
            opened[place] = read.model(name, place)
    return Models(
        base=None if base is None else opened[places[base]],
        experts=[opened[places[expert]] for expert in experts],
        places=opened,
        home=recipe.places,
    )


def open_model(name: str, places: Path | Places, *, progress: bool = True) -> Model:
    """Open one model, with the adapters that its name adds to it.

    Args:
        name: Its name.
        places: The folder that relative names start from, or a recipe's places.
        progress: Show progress of downloads from the Hub.

    Raises:
        InputError: It is missing or malformed.
        OSError: A file cannot be read.
    """
    return _Read(places, {}, progress=progress).model(name, place_of(name, places))


class _Read:
    """Opens models; files that several models share are opened once."""

    def __init__(
        self, places: Path | Places, held: Mapping[str, _core.Checkpoint], progress: bool
    ) -> None:
        """Set out to open models.

        Args:
            places: The folder that relative names start from, or a recipe's places.
            held: Checkpoints that are open already, by the places of their models.
            progress: Show progress of downloads from the Hub.
        """
        self._places = places
        self._held = held
        self._progress = progress
        self._opened: dict[str, Model] = {}
        self._adapters: dict[str, Adapter] = {}

    def model(self, name: str, place: str) -> Model:
        """Open a model."""
        whole, adapters = parts_of(name, self._places)
        if not adapters or place in self._held:
            return self._plain(name, place)
        from sensmerge.models.adapters import changes_of

        model = self._plain(whole, place_of(whole, self._places))
        added = [self._adapter(each) for each in adapters]
        config = copy.deepcopy(model.config)
        shapes = {tensor.name: tensor.shape for tensor in model.checkpoint.tensors}
        changes: list[Change] = []
        notes: list[str] = []
        for adapter in added:
            found, said = changes_of(adapter, model.path, shapes, config)
            for change in found:
                if change.shape is not None:
                    _resize(config, shapes, change.tensor, change.shape)
            changes += found
            notes += said
        return Model(
            name, model.path, model.checkpoint, config, tuple(added), tuple(changes), tuple(notes)
        )

    def _plain(self, name: str, place: str) -> Model:
        """A model without adapters."""
        if place not in self._opened:
            checkpoint, path = self._held.get(place), Path()
            if checkpoint is None:
                path = resolve(name, self._places, progress=self._progress)
                checkpoint = _core.Checkpoint(str(path))
            else:
                path = Path(checkpoint.path)
            config = {} if checkpoint.in_memory else read_config(path)
            self._opened[place] = Model(name, path, checkpoint, config)
        return self._opened[place]

    def _adapter(self, name: str) -> Adapter:
        place = place_of(name, self._places)
        if place not in self._adapters:
            if not name:
                raise InputError("a model's name ends with '+': name the adapter after it")
            from sensmerge.models.adapters import open_adapter

            path = resolve(name, self._places, adapter=True, progress=self._progress)
            self._adapters[place] = open_adapter(name, path)
        return self._adapters[place]


def _resize(
    config: dict[str, Any], shapes: dict[str, list[int]], tensor: str, shape: list[int]
) -> None:
    """Change what is known of a model whose embedding is replaced by one of another size."""
    said = text_config(config)
    old = shapes[tensor]
    if old[:1] != shape[:1] and len(old) > 1 and said.get("vocab_size") == old[0]:
        said["vocab_size"] = shape[0]
    shapes[tensor] = shape
