"""From a recipe and coefficients to a manifest: every output tensor with its numbers.

The scalars, gradients, filters and coefficients by layer of a recipe are resolved here to one
number for every tensor. The core matches the tensors of different models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.merging.views import views_of
from sensmerge.merging.vocabulary import Alignment
from sensmerge.models.layers import block_of, blocks, layer_of
from sensmerge.models.quantised import refusal
from sensmerge.recipe.numbers import resolve_first

if TYPE_CHECKING:
    from sensmerge.merging.units import Units
    from sensmerge.models import Model, Models
    from sensmerge.recipe import Recipe
    from sensmerge.recipe.methods import Parameter
    from sensmerge.recipe.slices import Slice
    from sensmerge.scaling.sigma import Coefficients

# The parameter that sensitivity's coefficients multiply.
WEIGHT = "weight"

# A parameter's value for one tensor: one number for the merge, or one per model.
Number = float | list[float]


@dataclass(frozen=True)
class Part:
    """Output tensors that are merged from the same models.

    Attributes:
        base: The base as the core sees it: the number of its checkpoint, and rules for its tensors;
            None if the method uses none beside the models.
        models: The merged models, likewise.
        numbers: The numbers of every output tensor, by parameter.
    """

    base: dict[str, Any] | None
    models: list[dict[str, Any]]
    numbers: dict[str, dict[str, Number]]

    def plain(self) -> dict[str, Any]:
        """The part as plain data."""
        return {"base": self.base, "models": self.models, "tensors": self.numbers}

    def with_weights(self, weights: Sequence[dict[str, float]]) -> Part:
        """The same with other weights for those of its tensors that are named."""
        changed = {
            name: {**numbers, WEIGHT: [of_model[name] for of_model in weights]}
            for name, numbers in self.numbers.items()
            if name in weights[0]
        }
        return replace(self, numbers=self.numbers | changed)


@dataclass(frozen=True)
class Request:
    """The core's input for building a manifest.

    Attributes:
        models: The models, in the order in which they are used first.
        checkpoints: Their checkpoints and those of their adapters, in the order in which the
            manifest numbers them.
        settings: The method and the other settings of the whole merge.
        parts: The parts of the output.
        rows: The number of rows that the output has for tokens; None if no tensor has a known name
            of an embedding.
        units: The orders of the models' units; None if the recipe does not align them.
    """

    models: list[Model]
    checkpoints: list[_core.Checkpoint]
    settings: dict[str, Any]
    parts: list[Part]
    rows: int | None = None
    units: Units | None = None

    def manifest(self) -> _core.Manifest:
        """Every output tensor with its inputs and numbers, from headers alone.

        Raises:
            InputError: The models cannot be merged as asked.
        """
        return _core.Manifest.build(json.dumps(self.plain()), self.checkpoints)

    def plain(self) -> dict[str, Any]:
        """The request as plain data, without the models' paths."""
        return self.settings | {"parts": [part.plain() for part in self.parts]}

    @property
    def numbers(self) -> dict[str, dict[str, Number]]:
        """The numbers of every output tensor, by parameter."""
        return {name: each for part in self.parts for name, each in part.numbers.items()}

    def dequantised(self) -> Request:
        """The same with an output that is quantised only if the recipe says so."""
        return replace(self, settings=self.settings | {"dequantised": True})

    def with_dtype(self, dtype: str | None) -> Request:
        """The same with another dtype of the output."""
        return replace(self, settings=self.settings | {"out_dtype": dtype})

    def with_weights(self, weights: Sequence[dict[str, float]]) -> Request:
        """The same with other weights.

        Args:
            weights: For every merged model, the weights of the tensors by name; all models name the
                same tensors. Other tensors keep their weights.
        """
        return replace(self, parts=[part.with_weights(weights) for part in self.parts])


def request(
    recipe: Recipe,
    found: Coefficients | None,
    models: Models,
    *,
    weights: bool = True,
    threads: int | None = None,
    progress: bool = False,
) -> Request:
    """Resolve a recipe to numbers for every output tensor.

    Args:
        recipe: The recipe.
        found: The coefficients; None for a plain merge.
        models: The recipe's models.
        weights: Whether the models' weights are known. Without them, units are not aligned.
        threads: Threads to align units with; all cores by default.
        progress: Show progress of that.

    Raises:
        InputError: A number is missing or not finite, two models are of different architectures,
            an expert is zero throughout, or a model is quantised in a way that is not read.
    """
    recipe.require_numbers()
    check_architectures(models)
    models.check_filled()
    method = recipe.method
    parts = [(part, views_of(recipe, part, models)) for part in recipe.parts]
    alignment = Alignment(recipe, models)
    found_models = {id(view.model): view.model for _, views in parts for view in views.all}
    used = list(found_models.values())
    check_quantised(used)
    checkpoints = list({id(each): each for model in used for each in model.checkpoints}.values())
    switches = {
        parameter.name: bool(recipe.value(parameter.name))
        for parameter in method.parameters
        if parameter.kind == "switch"
    }
    settings = {
        "method": method.name,
        "semantics": method.semantics,
        "switches": switches,
        "missing": recipe.missing,
        "seed": recipe.seed,
        "out_dtype": recipe.out_dtype or recipe.dtype,
        "omega": None if recipe.aim is None else recipe.aim.omega,
    }
    units: Units | None = None
    orders = [[dict[str, Any]()] * len(views.all) for _, views in parts]
    if recipe.align is not None and weights:
        from sensmerge.merging.units import align

        units, orders = align(
            recipe, parts, models, checkpoints, threads=threads, progress=progress
        )
    resolved = []
    for (part, views), of_part in zip(parts, orders, strict=True):
        rows = alignment.rows(part, views)
        plain = [
            view.plain(checkpoints, chosen, reordered)
            for view, chosen, reordered in zip(views.all, rows, of_part, strict=True)
        ]
        resolved.append(
            Part(
                base=None if views.base is None else plain.pop(0),
                models=plain,
                numbers=numbers(recipe, part, found, views.template.outputs),
            )
        )
    settings["notes"] = [*alignment.notes(), *([] if units is None else units.notes())]
    return Request(used, checkpoints, settings, resolved, alignment.output.rows, units)


def numbers(
    recipe: Recipe,
    part: Slice,
    found: Coefficients | None,
    names: list[str],
    *,
    depth: list[str] | None = None,
) -> dict[str, dict[str, Number]]:
    """Every parameter's number for every tensor of a slice.

    Args:
        recipe: The recipe.
        part: The slice; one of the recipe's.
        found: The coefficients, whose K·σ multiplies the weights; None for a plain merge.
        names: Names of the output's tensors.
        depth: Names of all tensors of the model, if these are but some of them: they tell how deep
            in it a tensor lies.

    Raises:
        InputError: A parameter without a default is not given for some tensor, or a weight is not
            finite.
    """
    scale = None if found is None else _scale(found)
    resolvers = {
        parameter.name: _resolver(
            recipe, part, parameter, scale if parameter.name == WEIGHT else None
        )
        for parameter in recipe.method.parameters
        if parameter.kind == "number"
    }
    same = {key: resolve for key, resolve in resolvers.items() if not callable(resolve)}
    if len(same) == len(resolvers):
        return dict.fromkeys(names, same)
    position = _positions(names if depth is None else depth)
    resolved = {}
    for name in names:
        place = position(name)
        resolved[name] = {
            key: resolve(name, place) if callable(resolve) else resolve
            for key, resolve in resolvers.items()
        }
    return resolved


def _scale(found: Coefficients) -> Callable[[str], list[float]]:
    """K·σ of every expert, by the name of a tensor."""
    of_layer = cache(lambda layer: [float(factor) for factor in found.scale_of(layer)])
    return lambda name: of_layer(layer_of(name))


def _resolver(
    recipe: Recipe,
    part: Slice,
    parameter: Parameter,
    scale: Callable[[str], list[float]] | None,
) -> Number | Callable[[str, float], Number]:
    """A parameter's value where it is the same for all tensors; elsewhere by tensor and depth."""
    name = parameter.name
    if parameter.owner == "merge":
        return _of_one(parameter, [part.parameters.get(name), recipe.parameters.get(name)])
    experts = recipe.experts_of(part)
    models = [_of_one(parameter, recipe.settings(expert, name, part)) for expert in experts]
    if scale is None:
        same = [number for number in models if not callable(number)]
        if len(same) == len(models):
            return same
    factors = scale or (lambda name: [1.0] * len(models))

    def resolve(name: str, place: float) -> list[float]:
        numbers = [
            (number(name, place) if callable(number) else number) * factor
            for number, factor in zip(models, factors(name), strict=True)
        ]
        for number in numbers:
            if not math.isfinite(number):
                raise InputError(f"{parameter.name} for '{name}' is {number}, not a finite number")
        return numbers

    return resolve


def _of_one(parameter: Parameter, said: list[Any]) -> float | Callable[[str, float], float]:
    """The number of a model, or of the merge, from what the recipe says, the strongest first."""
    default = math.nan if parameter.default is None else float(parameter.default)
    strongest = next((setting for setting in said if setting is not None), default)
    if isinstance(strongest, float) and not math.isnan(strongest):
        return strongest

    def resolve(name: str, place: float) -> float:
        number = resolve_first(said, name, place, default)
        if math.isnan(number):
            raise InputError(
                f"parameters.{parameter.name}: is not given for tensor '{name}'; no filter is part "
                "of its name: add a value without a filter"
            )
        return number

    return resolve


def check_architectures(models: Models) -> None:
    """Refuse models whose configs name different architectures, even if their tensors match.

    Raises:
        InputError: Two configs name different model types.
    """
    said = [model for model in models.all if model.config.get("model_type") is not None]
    for model in said[1:]:
        kind, first = model.config["model_type"], said[0].config["model_type"]
        if kind != first:
            raise InputError(
                f"{model.path}: its config says model_type '{kind}' and that of {said[0].path} "
                f"'{first}'; only models of one architecture can be merged"
            )


def check_quantised(models: Sequence[Model]) -> None:
    """Refuse models that are quantised in a way that is not read, of which only copies can be made.

    Raises:
        InputError: It has a line for each of them.
    """
    found = {model.path: refusal(model.path, model.checkpoint) for model in models}
    lines = [line for line in found.values() if line is not None]
    if lines and len(found) > 1:
        raise InputError(lines)


def _positions(names: list[str]) -> Callable[[str], float]:
    """Positions of tensors in the model's depth: first block 0, last block 1, outside 0."""
    depth = {block: place for place, block in enumerate(blocks(names))}
    last = len(depth) - 1

    def position(name: str) -> float:
        block = block_of(name)
        if block is None:
            return 0.0
        return depth[block] / last if last > 0 else 1.0

    return position
