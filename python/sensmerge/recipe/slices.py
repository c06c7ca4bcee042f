"""Slices: parts of the output's depth, each merged from a range of layers of some models.

A recipe that lists whole ``models`` is one slice of all their layers.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr

from sensmerge.recipe.fields import Model, ModelName, Strict, section
from sensmerge.recipe.findings import Findings
from sensmerge.recipe.parameters import Parameters
from sensmerge.recipe.places import place_of


def _range(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    whole = isinstance(value, list | tuple) and len(value) == 2
    if not whole or not all(type(end) is int for end in value):
        raise ValueError("expected two whole numbers: the first layer, and the one after the last")
    first, end = value
    if first < 0 or end <= first:
        raise ValueError(f"[{first}, {end}] has no layers; the second number is to be larger")
    return first, end


LayerRange = Annotated[tuple[int, int] | None, BeforeValidator(_range)]


class Source(Model):
    """A model of a slice.

    Attributes:
        layer_range: Its first layer, and the one after the last, counted from 0; None for all.
    """

    layer_range: LayerRange = None


def _sources(value: list[Source]) -> list[Source]:
    lengths = {
        source.layer_range[1] - source.layer_range[0]
        for source in value
        if source.layer_range is not None
    }
    if len(lengths) > 1:
        said = " and ".join(map(str, sorted(lengths)))
        raise ValueError(f"its sources have {said} layers; all need the same number")
    return value


class Slice(Strict):
    """A part of the output's depth.

    Attributes:
        sources: The models of which layers are merged.
        parameters: Settings for all of its sources; the recipe's settings come after them.
        base_model: The base of this slice; None takes the recipe's.
    """

    sources: Annotated[list[Source], Field(min_length=1), AfterValidator(_sources)]
    parameters: Annotated[Parameters, BeforeValidator(section)] = Parameters({})
    base_model: ModelName | None = None

    _module: str | None = PrivateAttr(default=None)
    _key: str = PrivateAttr(default="")

    @property
    def module(self) -> str | None:
        """The module of the model that it is a part of; None if the recipe has no modules."""
        return self._module

    @property
    def key(self) -> str:
        """Where the user wrote it, such as ``slices[0]``; empty for whole models."""
        return self._key

    def placed(self, key: str, module: str | None) -> None:
        """Say where in the recipe it stands."""
        self._key, self._module = key, module


def whole(models: list[Model]) -> Slice:
    """Whole models as one slice. Its sources are the models themselves, without a range."""
    return Slice.model_construct(sources=cast("list[Source]", models))


def check(slices: list[Slice], folder: Any, found: Findings) -> None:
    """Refuse a model that is merged with itself within a slice, as mergekit does."""
    for place, each in enumerate(slices):
        seen: list[str] = []
        for at, source in enumerate(each.sources):
            model = place_of(source.model, folder)
            if model in seen:
                found.refuse(
                    ("slices", place, "sources", at),
                    f"{source.model} is among the sources of this slice already, and a slice "
                    "merges its sources; to stack layers, write each range into a slice of its own",
                )
                break
            seen.append(model)
