"""What a config says of a quantised output, in the words of the programs that load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge.errors import InputError
from sensmerge.models.layers import TRANSPOSED_MODELS, text_config

if TYPE_CHECKING:
    from sensmerge import _core

_KEYS = ("quantization_config", "compression_config")

# The output head is a linear layer in every model, even where its weight is tied to another.
_HEAD = "lm_head"

# Embeddings are no linear layers, which lists of layers that are left out are about.
_EMBEDDINGS = ("embed", "wte", "wpe")


def describe(
    config: dict[str, Any],
    template: _core.Checkpoint,
    manifest: _core.Manifest,
    *,
    as_template: bool,
) -> None:
    """Change what the config of an output says of quantisation.

    Args:
        config: The config of the template, the model whose tensors the output has.
        template: The template's tensors.
        manifest: Every output tensor, and how it is quantised.
        as_template: Whether the tensors that are quantised are the template's, in the same way.
    """
    said = _said(config)
    packings = [tensor.packing for tensor in manifest.tensors]
    packing = next((packing for packing in packings if packing is not None), None)
    if packing is None:
        found = template.quantised
        # Tensors of a way that is not read are copied, and need what their config says.
        if found is None or found.advice is None:
            _remove(config)
        return
    if as_template and said is not None:
        # Scales of inputs are not kept, so that they are found at run time.
        if said.get("activation_scheme") == "static":
            said["activation_scheme"] = "dynamic"
        return
    _remove(config)
    write = _int4 if packing.code == "int4" else _float8
    config["quantization_config"] = write(packing, _left(manifest))


def check_config(home: Path, config: dict[str, Any], manifest: _core.Manifest) -> None:
    """Refuse a quantised output that no program would load as it is meant.

    Args:
        home: The folder of the model whose config the output has.
        config: That config; empty if there is none.
        manifest: Every output tensor, and how it is quantised.

    Raises:
        InputError: The output is quantised, and there is no config, which alone says so; or its
            matrices are stored the other way round than the loaders of quantised models take them.
    """
    if all(tensor.packing is None for tensor in manifest.tensors):
        return
    if not config:
        raise InputError(
            f"{home}: has no config.json, which has to say how the output is quantised; add it, or "
            "use a dtype such as bfloat16"
        )
    if config.get("model_type") in TRANSPOSED_MODELS:
        raise InputError(
            f"out_dtype: {home} is of type {config['model_type']}, whose matrices are stored as "
            "inputs × outputs, which no loader of fp8 or int4 takes; use a dtype such as bfloat16"
        )


def notes(name: str, config: dict[str, Any]) -> list[str]:
    """Notes on what a quantised model has beside its weights.

    Args:
        name: The model's name.
        config: Its config.
    """
    if not _scales_activations(_said(config) or {}):
        return []
    return [
        f"{name}: its scales of activations were measured on that model alone and are left out; a "
        "quantised output finds its own when it runs"
    ]


def _scales_activations(said: dict[str, Any]) -> bool:
    """Whether a model stores scales of activations."""
    groups = said.get("config_groups")
    listed = list(groups.values()) if isinstance(groups, dict) else []
    inputs = [group.get("input_activations") for group in listed if isinstance(group, dict)]
    return said.get("activation_scheme") == "static" or any(
        isinstance(each, dict) and each.get("dynamic") is False for each in inputs
    )


def _said(config: dict[str, Any]) -> dict[str, Any] | None:
    for part in (config, text_config(config)):
        for key in _KEYS:
            if isinstance(part.get(key), dict):
                said: dict[str, Any] = part[key]
                return said
    return None


def _remove(config: dict[str, Any]) -> None:
    for part in (config, text_config(config)):
        for key in _KEYS:
            part.pop(key, None)


def _left(manifest: _core.Manifest) -> list[str]:
    """Modules with matrices that are not quantised."""
    names = [
        tensor.name.rpartition(".")[0]
        for tensor in manifest.tensors
        if tensor.packing is None and len(tensor.shape) > 1
    ]
    modules = {name for name in names if not any(part in name for part in _EMBEDDINGS)}
    return sorted(modules | {_HEAD})


def _float8(packing: _core.Packing, left: list[str]) -> dict[str, Any]:
    """As transformers' FineGrainedFP8Config has it."""
    said = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(packing.tile),
        "modules_to_not_convert": left,
    }
    return said | ({"scale_fmt": "ue8m0"} if packing.powers_of_two else {})


def _int4(packing: _core.Packing, left: list[str]) -> dict[str, Any]:
    """As compressed-tensors' QuantizationConfig has it."""
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": packing.tile[1],
        "dynamic": False,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": left,
        "kv_cache_scheme": None,
    }
