"""Slices: parts of the output's depth, each merged from a range of layers of some models.

A recipe that lists whole ``models`` is one slice of all their layers.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import AfterValidator, BeforeValidator, Field

from sensmerge.recipe.fields import Model, ModelName, Strict, section
from sensmerge.recipe.findings import Findings
from sensmerge.recipe.parameters import Parameters
from sensmerge.recipe.places import place_of

# The name under which mergekit has all of a model that is only a decoder.
WHOLE = ("default", "text_decoder")


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


def whole(models: list[Model]) -> Slice:
    """Whole models as one slice. Its sources are the models themselves, without a range."""
    return Slice.model_construct(sources=cast("list[Source]", models))


def hoisted(data: dict[str, Any], found: Findings) -> dict[str, Any]:
    """The recipe with the only module of ``modules`` in its place.

    A module's parameters come before the recipe's, and its base replaces it.
    """
    given = data.get("modules")
    if given is None:
        return {key: value for key, value in data.items() if key != "modules"}
    result = {key: value for key, value in data.items() if key != "modules"}
    if not isinstance(given, dict) or not given or not all(map(_is_module, given.values())):
        found.refuse(("modules",), "expected a mapping of modules, each with models or slices")
        return result
    others = [name for name in given if name not in WHOLE]
    if others or len(given) > 1:
        found.refuse(
            ("modules", str((others or list(given))[0])),
            "parts of a model with several of them are not merged apart; for a model that is a "
            "decoder alone write 'default', otherwise list whole models under 'models'",
        )
        return result
    [(name, module)] = given.items()
    for key in ("models", "slices"):
        if module.get(key) is not None and result.get(key) is not None:
            found.refuse((key,), f"stands beside modules.{name}.{key}; keep one of the two")
    parameters = module.get("parameters")
    if isinstance(parameters, dict) and isinstance(result.get("parameters"), dict | None):
        result["parameters"] = (result.get("parameters") or {}) | parameters
    base = module.get("base_model")
    result |= {} if base is None else {"base_model": base}
    rest = {"parameters", "base_model"}
    return result | {key: value for key, value in module.items() if key not in rest}


def _is_module(value: Any) -> bool:
    return isinstance(value, dict) and any(value.get(key) for key in ("models", "slices"))


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
