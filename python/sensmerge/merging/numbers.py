"""From a recipe and coefficients to the core's recipe: one number a tensor, no tensor data."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.models import open_models
from sensmerge.models.folders import resolve
from sensmerge.models.layers import block_of, blocks, layer_of
from sensmerge.recipe.numbers import resolve_first

if TYPE_CHECKING:
    from sensmerge.models import Model, Models
    from sensmerge.recipe import Recipe
    from sensmerge.scaling.sigma import Coefficients

_OUTPUT_HEADS = ("lm_head.weight", "embed_out.weight")
_INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(size: str | int) -> int:
    """A number of bytes from ``5GB``, ``500MiB`` or a plain number, as the Hub writes sizes.

    Raises:
        InputError: It is none of these, or not positive.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", str(size).strip().upper())
    if found is not None:
        number, unit, binary = found.groups()
        factor = _BINARY_UNITS.get(unit) if binary else _UNITS[unit]
        if factor is not None and (value := int(float(number) * factor)) > 0:
            return value
    raise InputError(f"max_shard_size: '{size}' is not a size; write it like 5GB or 500MiB")


def model_paths(recipe: Recipe) -> list[Path]:
    """Local paths of the base, where there is one, and of every expert."""
    names = [recipe.base_model] if recipe.base_model is not None else []
    names += [expert.model for expert in recipe.experts]
    return [resolve(name, recipe.folder) for name in names]


def template(recipe: Recipe) -> Path:
    """The model whose tensors, config and tokenizer the output has: the base, or the first."""
    return model_paths(recipe)[0]


def template_names(recipe: Recipe) -> list[str]:
    """Names of the output's tensors."""
    return [tensor.name for tensor in _core.Checkpoint(str(template(recipe))).tensors]


def core_recipe(
    recipe: Recipe, found: Coefficients | None, models: Models | None = None
) -> dict[str, Any]:
    """What the compiled core merges: numbers for every tensor, paths instead of names.

    Args:
        recipe: What the user wrote.
        found: K·σ for every expert and layer; None for a plain merge.
        models: Its models, where they are open already.

    Returns:
        The core's recipe, ready to be written as JSON.

    Raises:
        InputError: A setting cannot be resolved, or a model is not there.
    """
    recipe.require_numbers()
    models = models or open_models(recipe)
    check_architectures(models)
    names = models.template.tensors
    position = _positions(names)

    def setting(
        said: list[Any], default: float, factor: Callable[[str], float] | None = None
    ) -> Any:
        values = {}
        for name in names:
            number = resolve_first(said, name, position(name), default)
            values[name] = number if factor is None else number * factor(name)
        return _compress(values, default)

    described = []
    for place, (expert, model) in enumerate(zip(recipe.experts, models.experts, strict=True)):
        described.append(
            {
                "path": str(model.path),
                "weight": setting(recipe.settings(expert, "weight"), 1.0, _factor(found, place)),
                "density": setting(recipe.settings(expert, "density"), 1.0),
                "ties_density": setting(recipe.settings(expert, "ties_density"), 1.0),
                "aliases": _aliases(model),
                "leading_rows": _leading_rows(model, models.template.config),
            }
        )
    return {
        "method": recipe.merge_method,
        "semantics": recipe.semantics,
        "base": None if models.base is None else str(models.base.path),
        "models": described,
        "lambda": setting([recipe.parameters.lambda_], 1.0),
        "normalize": recipe.parameters.normalize,
        "rescale": recipe.parameters.rescale,
        "seed": recipe.seed,
        "out_dtype": recipe.out_dtype or recipe.dtype,
    }


def check_architectures(models: Models) -> None:
    """Refuse models that say they are of different architectures, whatever their tensors' names.

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


def _factor(found: Coefficients | None, place: int) -> Callable[[str], float] | None:
    if found is None:
        return None
    of_layer = cache(lambda layer: float(found.scale_of(layer)[place]))
    return lambda name: of_layer(layer_of(name))


def _positions(names: list[str]) -> Callable[[str], float]:
    """Where in the model's depth a tensor lies: 0 the first block, 1 the last, 0 outside."""
    depth = {block: place for place, block in enumerate(blocks(names))}
    last = len(depth) - 1

    def position(name: str) -> float:
        block = block_of(name)
        if block is None:
            return 0.0
        return depth[block] / last if last > 0 else 1.0

    return position


def _compress(values: dict[str, float], default: float) -> dict[str, Any]:
    """One value, others by layer, and by tensor only where a layer's tensors differ."""
    by_layer: dict[str, set[float]] = {}
    for name, value in values.items():
        if not math.isfinite(value):
            raise InputError(f"weight for '{name}' is {value}, not a finite number")
        by_layer.setdefault(layer_of(name), set()).add(value)
    common = Counter(values.values()).most_common(1)
    value = common[0][0] if common else default
    layers = {
        layer: next(iter(found))
        for layer, found in by_layer.items()
        if len(found) == 1 and value not in found
    }
    layers |= {name: number for name, number in values.items() if len(by_layer[layer_of(name)]) > 1}
    return {"value": value, "layers": layers}


def _aliases(model: Model) -> dict[str, str]:
    """Output heads that a model leaves out because its input embedding stands for them."""
    if model.checkpoint.in_memory:
        return model.checkpoint.tied
    if not model.config.get("tie_word_embeddings", False):
        return {}
    embedding = next((name for name in model.tensors if name.endswith(_INPUT_EMBEDDINGS)), None)
    return {} if embedding is None else dict.fromkeys(_OUTPUT_HEADS, embedding)


def _leading_rows(model: Model, base_config: dict[str, Any]) -> list[str]:
    """Vocabulary tensors of a model that declares more tokens than the base does."""
    size, base_size = model.config.get("vocab_size"), base_config.get("vocab_size")
    if not (isinstance(size, int) and isinstance(base_size, int) and size > base_size):
        return []
    return [
        tensor.name
        for tensor in model.checkpoint.tensors
        if tensor.name.endswith((*_INPUT_EMBEDDINGS, *_OUTPUT_HEADS))
        and tensor.shape
        and tensor.shape[0] == size
    ]
