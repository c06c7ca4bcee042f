"""The models of a slice as the core sees them, with the names of their tensors in the output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sensmerge.errors import InputError
from sensmerge.models.layers import Decoder, decoder_of
from sensmerge.models.vocabulary.names import INPUT_EMBEDDINGS, OUTPUT_HEADS

if TYPE_CHECKING:
    from sensmerge import _core
    from sensmerge.models import Model, Models
    from sensmerge.recipe import Recipe
    from sensmerge.recipe.slices import Slice, Source


@dataclass(frozen=True)
class View:
    """A model as a slice of the output sees it.

    Attributes:
        model: The model.
        names: The stored tensor of every output tensor; None if all have their own names.
    """

    model: Model
    names: dict[str, str] | None = None

    @property
    def outputs(self) -> list[str]:
        """The names of its tensors in the output."""
        return self.model.tensors if self.names is None else list(self.names)

    def plain(
        self, checkpoints: list[_core.Checkpoint], rows: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The view as the core's request has it.

        Args:
            checkpoints: The checkpoints of the request; the core knows them by their place.
            rows: The rows of the tensors of the vocabulary; None for its own.
        """
        return self.model.plain(checkpoints) | {
            "names": self.names,
            "aliases": _aliases(self.model),
            "rows": rows,
        }


@dataclass(frozen=True)
class Views:
    """The models of a slice.

    Attributes:
        base: The base; None if there is none beside the merged models.
        experts: The merged models, in their order.
    """

    base: View | None
    experts: list[View]

    @property
    def all(self) -> list[View]:
        """The base, if there is one, and every merged model."""
        return [*([] if self.base is None else [self.base]), *self.experts]

    @property
    def template(self) -> View:
        """The model whose tensors the slice has."""
        return self.experts[0] if self.base is None else self.base


def views_of(recipe: Recipe, part: Slice, models: Models) -> Views:
    """The models of a slice, with the names that their tensors get.

    Raises:
        InputError: A model does not have the layers of the slice.
    """
    experts = recipe.experts_of(part)
    named = recipe.base_of(part)
    role = recipe.method.base
    # A base that is not merged tells whole models' tensors; a slice has those of its sources.
    beside = role != "merged" and (role != "unused" or recipe.slices is None)
    base = models.find(named) if beside and named is not None else None
    views = Views(
        None if base is None else View(base), [View(models.find(each.model)) for each in experts]
    )
    if recipe.slices is None:
        return views
    stack = Stack.of(recipe, models)
    place = next(place for place, each in enumerate(recipe.parts) if each is part)
    return stack.views(place, views)


@dataclass(frozen=True)
class Stack:
    """The slices of an output, one upon the other.

    Attributes:
        recipe: The recipe.
        models: Its models.
        starts: The first layer of every slice in the output, and at the end the number of layers.
    """

    recipe: Recipe
    models: Models
    starts: list[int]

    @classmethod
    def of(cls, recipe: Recipe, models: Models) -> Stack:
        """Place the slices of a recipe.

        Raises:
            InputError: A model does not have the layers of a slice.
        """
        starts = [0]
        for place, part in enumerate(recipe.parts):
            lengths = set()
            for at, source in enumerate(part.sources):
                first, end = _layers(models.find(source.model), source, (place, at))
                lengths.add(end - first)
            if len(lengths) > 1:
                said = " and ".join(map(str, sorted(lengths)))
                raise InputError(
                    f"slices[{place}]: its sources have {said} layers; all need the same number"
                )
            starts.append(starts[-1] + lengths.pop())
        return cls(recipe, models, starts)

    def views(self, place: int, whole: Views) -> Views:
        """The views of one slice, with the names of its tensors in the output."""
        base = whole.base
        ranges = self._ranges(place)
        return Views(
            None
            if base is None
            else self._view(place, base, self._base_range(place, base, ranges)),
            [self._view(place, view, self._range(view, ranges)) for view in whole.experts],
        )

    def layers(self, place: int) -> list[tuple[Model, int]]:
        """The layers of one slice in its first source: the model, and the number there."""
        source = self.recipe.parts[place].sources[0]
        model = self.models.find(source.model)
        first, end = _layers(model, source, (place, 0))
        return [(model, layer) for layer in range(first, end)]

    def _ranges(self, place: int) -> list[tuple[Model, tuple[int, int]]]:
        sources = enumerate(self.recipe.parts[place].sources)
        found = [(self.models.find(source.model), source, at) for at, source in sources]
        return [(model, _layers(model, source, (place, at))) for model, source, at in found]

    def _range(self, view: View, ranges: list[tuple[Model, tuple[int, int]]]) -> tuple[int, int]:
        return next(layers for model, layers in ranges if model is view.model)

    def _base_range(
        self, place: int, base: View, ranges: list[tuple[Model, tuple[int, int]]]
    ) -> tuple[int, int]:
        """The base's layers; those of all sources where the base is not among them."""
        if any(model is base.model for model, _ in ranges):
            return self._range(base, ranges)
        if len({layers for _, layers in ranges}) > 1:
            raise InputError(
                f"slices[{place}]: its sources are of different layers, so that it is unclear "
                f"which layers of {base.model.name} they were tuned from; list it among them, "
                "with its layer_range"
            )
        return ranges[0][1]

    def _view(self, place: int, view: View, layers: tuple[int, int]) -> View:
        decoder = _decoder(view.model)
        first, end = layers
        shift = self.starts[place] - first
        names = {}
        for name in view.model.tensors:
            layer = decoder.layer(name)
            if layer is None:
                outermost = 0 if _is_before(name) else len(self.recipe.parts) - 1
                if place == outermost:
                    names[name] = name
            elif first <= layer < end:
                names[decoder.renumbered(name, layer + shift)] = name
        return replace(view, names=names)


def _decoder(model: Model) -> Decoder:
    found = decoder_of(model.tensors, model.config)
    if found is None:
        raise InputError(
            f"{model.path}: has no numbered layers, or several kinds of them, and its config.json "
            "does not say how many make up the model: it cannot be sliced"
        )
    return found


def _layers(model: Model, source: Source, place: tuple[int, int]) -> tuple[int, int]:
    """The first layer of a source, and the one after the last."""
    count = _decoder(model).count
    if source.layer_range is None:
        return 0, count
    first, end = source.layer_range
    if end > count:
        raise InputError(
            f"slices[{place[0]}].sources[{place[1]}].layer_range: {model.name} has {count} layers, "
            f"and [{first}, {end}] ends beyond them"
        )
    return first, end


def _is_before(name: str) -> bool:
    """Whether a tensor outside the layers comes before them, like an embedding."""
    if name.endswith(OUTPUT_HEADS):
        return False
    return any(part in name for part in ("embed", "wte", "wpe", "project_in"))


def _aliases(model: Model) -> dict[str, str]:
    """Output heads that a model may lack, each with the tensor to which it is tied."""
    if model.checkpoint.in_memory:
        return model.checkpoint.tied
    if not model.config.get("tie_word_embeddings", False):
        return {}
    embedding = next((name for name in model.tensors if name.endswith(INPUT_EMBEDDINGS)), None)
    return {} if embedding is None else dict.fromkeys(OUTPUT_HEADS, embedding)
