"""How PEFT names the factors of an adapter and describes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sensmerge import _core
from sensmerge.files import write_atomically
from sensmerge.lora.adapter_file import AdapterFile
from sensmerge.lora.lowrank import Factors
from sensmerge.lora.stored import rounded
from sensmerge.models.adapters import CONFIG_FILE, WRAPPER
from sensmerge.models.dtypes import TORCH

# Dtypes that factors are written in.
DTYPES = ("float32", "bfloat16", "float16")

# The ending of the names of matrices.
WEIGHT = ".weight"

_PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


def names_of(modules: Iterable[str]) -> list[str]:
    """All names that the factors of modules may have."""
    return [f"{WRAPPER}{module}.{part}{WEIGHT}" for module in modules for part in _PARTS]


def add_factors(
    file: AdapterFile,
    module: str,
    factors: Factors,
    dtype: str,
    *,
    embedding: bool,
    transposed: bool,
) -> None:
    """Write A and B, between which the singular values are shared out evenly.

    Args:
        file: The adapter's file.
        module: The module's name.
        factors: The change to its weight, as the model stores it.
        dtype: Dtype of the factors.
        embedding: Whether it is an embedding, which PEFT adapts in a form of its own.
        transposed: Whether a linear layer's weight is stored as ``[inputs, outputs]``.
    """
    root = np.sqrt(factors.s)
    down, up = root[:, None] * factors.v, factors.u * root
    kind, ending = ("lora_embedding", "") if embedding else ("lora", WEIGHT)
    if embedding or transposed:
        down, up = up.T, down.T
    for factor, values in (("A", down), ("B", up)):
        name = f"{WRAPPER}{module}.{kind}_{factor}{ending}"
        file.add(name, TORCH[dtype].stored, rounded(values, dtype))


def write_config(folder: Path, ranks: Mapping[str, int], keys: dict[str, Any]) -> None:
    """Write the adapter's description.

    Args:
        folder: Its folder.
        ranks: The rank of every module.
        keys: What is not the same for all adapters: ``base_model_name_or_path``, ``revision``,
            ``task_type``, ``target_modules``, ``modules_to_save``, ``fan_in_fan_out``.
    """
    most = max(ranks.values())
    others = {name: rank for name, rank in sorted(ranks.items()) if rank != most}
    said = {
        "peft_type": "LORA",
        **keys,
        "r": most,
        # The factors hold the whole change: alpha / r is 1.
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    write_atomically(folder / CONFIG_FILE, json.dumps(said, indent=2) + "\n")


def named(base: str, checkpoint: _core.Checkpoint) -> dict[str, str | None]:
    """The keys that name the model that an adapter is for.

    Args:
        base: The model's name.
        checkpoint: Its checkpoint, which knows where on the Hub it comes from.
    """
    name, revision = checkpoint.origin or (base, None)
    return {"base_model_name_or_path": name, "revision": revision}


def targets(modules: Mapping[str, str], tensors: Iterable[str]) -> list[str]:
    """The last parts of the modules' names, where they name no other module; or whole names.

    Args:
        modules: The names of the changed modules in the model's files, each with the name that the
            adapter has for it.
        tensors: Names of all tensors in the model's files.
    """
    others = {tensor.rpartition(".")[0] for tensor in tensors}
    last = {name.rpartition(".")[2] for name in modules}
    named = {module for module in others if module.rpartition(".")[2] in last}
    return sorted(last if named == set(modules) else modules.values())
