"""The config of a merged model: the base's, with what the merge changes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, get_args

from sensmerge.merging import quantised
from sensmerge.merging.views import Stack
from sensmerge.models.layers import DEPTHS, text_config
from sensmerge.recipe import Dtype

if TYPE_CHECKING:
    from sensmerge import _core
    from sensmerge.models import Model, Models
    from sensmerge.recipe import Recipe

# Lists of the numbers of some layers; every other list with one entry a layer is one by layer.
_NUMBERS_OF_LAYERS = (
    "mlp_only_layers",
    "full_attn_idxs",
    "cross_attention_layers",
    "global_attn_layers",
)


def merged_config(recipe: Recipe, models: Models, manifest: _core.Manifest) -> dict[str, Any]:
    """The config of the merged model; empty if the base has none.

    Raises:
        InputError: A model does not have the layers of a slice.
    """
    config = copy.deepcopy(models.template.config)
    if not config:
        return config
    # The key names the base's weight file, which the output does not have.
    config.pop("transformers_weights", None)
    asked = recipe.out_dtype or recipe.dtype
    if asked in get_args(Dtype):
        keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
        config |= dict.fromkeys(keys, asked)
    if recipe.slices is not None:
        stack = Stack.of(recipe, models)
        layers = [layer for place in range(len(recipe.parts)) for layer in stack.layers(place)]
        _restack(text_config(config), layers)
    quantised.describe(config, recipe, models, manifest)
    return config


def _restack(config: dict[str, Any], layers: list[tuple[Model, int]]) -> None:
    """Change what a config says of layers.

    Args:
        config: The config, or the part of it that describes the language model.
        layers: For every layer of the output, the model that it comes from and its number there.
    """
    depths = [config[key] for key in DEPTHS if isinstance(config.get(key), int)]
    whole = [(layers[0][0], number) for number in range(len(layers))]
    if layers == whole and len(layers) in depths:
        return
    for key in DEPTHS:
        if key in config:
            config[key] = len(layers)
    for key, value in config.items():
        if not isinstance(value, list):
            continue
        if key in _NUMBERS_OF_LAYERS:
            config[key] = [
                place
                for place, (model, number) in enumerate(layers)
                if number in _said(model, key, value)
            ]
        elif len(value) in depths:
            config[key] = [
                said[number] if number < len(said) else value[-1]
                for model, number in layers
                for said in [_said(model, key, value)]
            ]


def _said(model: Model, key: str, otherwise: list[Any]) -> list[Any]:
    """A list of a model's config; another model's where it has none."""
    said = text_config(model.config).get(key)
    return said if isinstance(said, list) else otherwise
