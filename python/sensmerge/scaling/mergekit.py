"""A plain mergekit recipe that gives the same merged model, with one weight per layer.

mergekit interpolates a list of weights over the depth of a model and evaluates it at
``block / (blocks - 1)`` (at 1 if there is a single block), so that a list with one number per block
gives every block its number exactly. Tensors outside the blocks are evaluated at 0; they get
conditions of their own, which come first.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sensmerge.errors import InputError
from sensmerge.models.dtypes import STORED
from sensmerge.models.layers import block_of, blocks, layer_of
from sensmerge.recipe import Dtype, methods, to_yaml
from sensmerge.recipe.numbers import by_name, resolve, resolve_first
from sensmerge.recipe.places import at_home, exists
from sensmerge.recipe.tokenizer import BASE, with_other_names

if TYPE_CHECKING:
    from sensmerge.recipe import Recipe
    from sensmerge.scaling.sigma import Coefficients

_OURS = ("sensitivity", "semantics", "seed", "models")


def mergekit_recipe(
    recipe: Recipe, found: Coefficients, tensors: list[str], stored: Iterable[str] = ()
) -> str:
    """Write K·σ into the weights of a recipe that mergekit runs.

    mergekit rounds every step to its ``dtype``, so that ``dtype`` is float32 or float64, as in the
    core, and the output's dtype is given as ``out_dtype``. Local models have absolute paths, since
    mergekit's relative paths start from its working directory.

    Args:
        recipe: The recipe.
        found: Its coefficients.
        tensors: Names of the output's tensors.
        stored: Dtypes of the base's tensors, by the names that checkpoints use.

    Raises:
        InputError: mergekit does not have the method, the recipe's semantics are ``original`` and
            the method is one that mergekit computes differently, or the recipe aligns units or
            damps task vectors.
    """
    method = recipe.method
    if not method.in_mergekit:
        raise InputError(
            f"merge_method: mergekit has no {method.name}, so that the recipe cannot be written as "
            "one of mergekit's"
        )
    # The two semantics differ only for methods that make task vectors sparse.
    if method.semantics == "original" and method.parameter("density") is not None:
        raise InputError(
            f"semantics: mergekit has no original {recipe.merge_method}; only semantics: mergekit "
            "can be written as its recipe"
        )
    if recipe.align is not None:
        raise InputError(
            "align: mergekit merges units in the order in which models have them; without align "
            "the recipe can be written as one of mergekit's"
        )
    if recipe.aim is not None:
        raise InputError(
            "aim: mergekit does not damp task vectors; without aim the recipe can be written as "
            "one of mergekit's"
        )
    data = {key: value for key, value in recipe.source.items() if key not in _OURS}
    data |= _dtypes(recipe, stored)
    data["models"] = []
    if method.base == "unused":
        # mergekit would merge the base too.
        data.pop("base_model", None)
    elif recipe.base_model is not None:
        data["base_model"] = _place(recipe.base_model, recipe.folder)
        data["models"].append({"model": data["base_model"]})
    data |= _tokenizer(recipe)
    for place, expert in enumerate(recipe.experts):
        said = [*recipe.settings(expert, "weight"), recipe.default("weight")]
        weight = _weight(said, found, place, tensors)
        parameters: dict[str, Any] = expert.parameters.root | {"weight": weight}
        model = _place(expert.model, recipe.folder)
        data["models"].append({"model": model, "parameters": parameters})
    if isinstance(data.get("parameters"), dict):
        unused = [name for name in methods.parameter_names() if method.parameter(name) is None]
        data["parameters"] = {
            key: value
            for key, value in data["parameters"].items()
            if key not in ("weight", *unused)
        }
    return to_yaml(data, flow=None, width=2**16)


def _dtypes(recipe: Recipe, stored: Iterable[str]) -> dict[str, str]:
    known = [STORED[name] for name in stored if name in STORED]
    floats = {dtype.torch for dtype in known if dtype.merged}
    asked = recipe.out_dtype or recipe.dtype
    # mergekit writes nothing quantised.
    asked = asked if asked is None or asked in get_args(Dtype) else "bfloat16"
    output = asked or (floats.pop() if len(floats) == 1 else None)
    computed = "float64" if output == "float64" or "float64" in floats else "float32"
    return {"dtype": computed} | ({} if output is None else {"out_dtype": output})


def _tokenizer(recipe: Recipe) -> dict[str, Any]:
    """The keys that say which tokenizer the output has."""
    data = with_other_names(recipe.source, lambda name: _place(name, recipe.folder))
    if recipe.method.base == "unused" and recipe.base_model is not None:
        # Without a base there, the word would mean the first model.
        base = _place(recipe.base_model, recipe.folder)
        if data.get("tokenizer_source") == BASE:
            data["tokenizer_source"] = base
        section = data.get("tokenizer", {})
        if section.get("source") == BASE:
            section["source"] = base
    return data


def _place(model: str, folder: Path) -> str:
    path = folder / at_home(model)
    return os.path.abspath(path) if exists(path) else model  # noqa: PTH100


def _weight(
    said: list[Any], found: Coefficients, place: int, tensors: list[str]
) -> list[dict[str, Any]]:
    """The weights of one expert as conditions.

    First those for layers outside the blocks, then a list with one number per block for each of the
    user's own conditions.
    """
    depth = blocks(tensors)
    positions = {
        block: row / (len(depth) - 1) if len(depth) > 1 else 1.0 for row, block in enumerate(depth)
    }
    wanted = {
        name: resolve_first(said, name, positions.get(block_of(name) or "", 0.0), math.nan)
        * float(found.scale_of(layer_of(name))[place])
        for name in tensors
    }
    scale = [float(found.scale_of(block)[place]) for block in depth]
    conditions = _outside(wanted)
    for name, value in _conditions(said):
        at_blocks = [resolve(value, "", positions[block], math.nan) for block in depth]
        weights = [weight * factor for weight, factor in zip(at_blocks, scale, strict=True)]
        if weights:
            conditions.append(({} if name is None else {"filter": name}) | {"value": weights})
    for name, weight in wanted.items():
        reached = resolve(conditions, name, positions.get(block_of(name) or "", 0.0), math.nan)
        if not math.isclose(reached, weight, rel_tol=1e-12, abs_tol=1e-15):
            # A filter matches any part of a name, and this one matched a tensor of another layer.
            return by_name(wanted)
    return conditions


def _outside(wanted: dict[str, float]) -> list[dict[str, Any]]:
    """A condition for each layer outside the blocks, or for each of its tensors if they differ."""
    by_layer: dict[str, dict[str, float]] = {}
    for name, weight in wanted.items():
        if block_of(name) is None:
            by_layer.setdefault(layer_of(name), {})[name] = weight
    said: dict[str, float] = {}
    for layer, weights in by_layer.items():
        same = len(set(weights.values())) == 1
        said |= {layer: next(iter(weights.values()))} if same else weights
    return by_name(said)


def _conditions(said: list[Any]) -> Iterator[tuple[str | None, Any]]:
    """Filters and values in order of precedence, up to the first value without a filter."""
    for setting in said:
        if isinstance(setting, list) and isinstance(setting[0], dict):
            for condition in setting:
                if condition.get("filter") in (None, "*"):
                    yield None, condition["value"]
                    return
                yield condition["filter"], condition["value"]
        elif setting is not None:
            yield None, setting
            return
