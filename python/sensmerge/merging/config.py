"""The config of a merged model: the base's, with what the merge changes."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, get_args

from sensmerge.errors import InputError
from sensmerge.merging import quantised
from sensmerge.merging.views import Stack
from sensmerge.models.layers import DEPTHS, text_config
from sensmerge.models.vocabulary.output import (
    OutputVocabulary,
    output_vocabulary,
)
from sensmerge.reading import json_of
from sensmerge.recipe import Dtype
from sensmerge.recipe.modules import REST

if TYPE_CHECKING:
    from pathlib import Path

    from sensmerge import _core
    from sensmerge.models import Model, Models
    from sensmerge.recipe import Recipe

# Keys of configs that name tokens by their ids.
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")

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
    config = with_dtype(config, recipe.out_dtype or recipe.dtype)
    for module in {part.module for part in recipe.slices or ()} & {None, *REST}:
        layers = Stack.of(recipe, models, module).layers()
        if layers:
            _restack(text_config(config), layers)
    output = output_vocabulary(recipe, models)
    if output.rows is not None and output.rows != models.template.token_rows:
        text_config(config)["vocab_size"] = output.rows
    for part in [config] if text_config(config) is config else [config, text_config(config)]:
        _renumber(part, models, output)
    as_template = recipe.out_dtype is None and recipe.dtype is None and recipe.slices is None
    template = models.template.checkpoint
    quantised.describe(config, template, manifest, as_template=as_template)
    return config


def generation_text(recipe: Recipe, models: Models, path: Path) -> str | None:
    """The base's ``generation_config.json`` with the output's ids; None if they are the same.

    Raises:
        InputError: There is no such tokenizer.
        OSError: A file cannot be examined or read.
    """
    try:
        config = json_of(path)
    except InputError:
        return None
    if not isinstance(config, dict):
        return None
    changed = copy.deepcopy(config)
    _renumber(changed, models, output_vocabulary(recipe, models))
    return None if changed == config else json.dumps(changed, indent=2) + "\n"


def _renumber(config: dict[str, Any], models: Models, output: OutputVocabulary) -> None:
    """Give the tokens that a config of the base names by their ids the output's ids.

    Where the output lacks such a token, the config of the model whose tokenizer it has is followed.
    """
    known = models.tokens(models.template)
    if known is None or output.ids is None or output.ids is known.ids:
        return
    tokens = {place: token for token, place in known.ids.items()}
    theirs = text_config(output.home.config) | output.home.config
    for key in _SPECIAL:
        said = config.get(key)
        many: list[Any] = said if isinstance(said, list) else [said]
        if not all(type(place) is int for place in many):
            continue
        found = [output.ids.get(tokens.get(place, "")) for place in many]
        if None in found:
            config[key] = theirs.get(key, said)
        else:
            config[key] = found if isinstance(said, list) else found[0]


def with_dtype(config: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    """A model's config for its weights in other files and, if one is given, of another dtype."""
    # The key names the model's weight file, which the output does not have.
    changed = {key: value for key, value in config.items() if key != "transformers_weights"}
    # A quantised model's dtype is the one that it is run in.
    if dtype in get_args(Dtype) and config:
        keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
        changed |= dict.fromkeys(keys, dtype)
    return changed


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
