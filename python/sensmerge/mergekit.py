"""A plain mergekit recipe that gives the same merged blocks: one weight a layer.

mergekit interpolates a list of weights over the depth of a model and evaluates it at
``block / (blocks - 1)``, 1 where there is one block; a list with one number a block is hit exactly.
Tensors outside the blocks are evaluated at 0, so they get conditions of their own.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from sensmerge.errors import InputError
from sensmerge.layers import block_of, blocks, layer_of
from sensmerge.settings import resolve

if TYPE_CHECKING:
    from sensmerge.recipe import Recipe
    from sensmerge.scaling import Coefficients


def mergekit_recipe(recipe: Recipe, found: Coefficients, tensors: list[str]) -> str:
    """Write K·σ into the weights of a recipe that mergekit runs.

    Args:
        recipe: What the user wrote.
        found: Its coefficients.
        tensors: Names of the output's tensors.

    Raises:
        InputError: mergekit has no such semantics, or weights differ within a layer.
    """
    if recipe.semantics == "original" and recipe.merge_method in (
        "ties",
        "dare_linear",
        "dare_ties",
    ):
        raise InputError(
            f"semantics: mergekit has no original {recipe.merge_method}; only semantics: mergekit "
            "can be written as its recipe"
        )
    data = {key: value for key, value in recipe._source.items() if key not in _OURS}
    data["models"] = []
    if recipe.merge_method != "linear":
        data["models"].append({"model": recipe.base_model})
    for place, expert in enumerate(recipe.experts):
        own = expert.parameters
        weight = own.weight if own.weight is not None else recipe.parameters.weight
        parameters: dict[str, Any] = {"weight": _weight(weight, found, place, tensors)}
        if own.density is not None:
            parameters["density"] = own.density
        data["models"].append({"model": expert.model, "parameters": parameters})
    if isinstance(data.get("parameters"), dict):
        data["parameters"] = {k: v for k, v in data["parameters"].items() if k != "weight"}
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.default_flow_style = None
    yaml.width = 2**16
    yaml.dump(data, text)
    return text.getvalue()


_OURS = ("sensitivity", "semantics", "seed", "models")


def _weight(weight: Any, found: Coefficients, place: int, tensors: list[str]) -> Any:
    """Conditions for layers outside the blocks, then one number a block."""
    depth = blocks(tensors)
    last = len(depth) - 1
    by_layer: dict[str, float] = {}
    for name in tensors:
        block = block_of(name)
        position = 0.0
        if block is not None:
            position = depth.index(block) / last if last > 0 else 1.0
        layer = layer_of(name)
        value = resolve(weight, name, position, 1.0) * float(found.scale_of(layer)[place])
        if by_layer.setdefault(layer, value) != value:
            raise InputError(
                f"weight: tensors of '{layer}' have different weights, which one weight a layer "
                "cannot say"
            )
    conditions: list[dict[str, Any]] = [
        {"filter": layer, "value": value} for layer, value in by_layer.items() if layer not in depth
    ]
    if depth:
        conditions.append({"value": [by_layer[block] for block in depth]})
    return conditions
