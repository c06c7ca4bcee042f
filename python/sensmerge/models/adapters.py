"""LoRA adapters in PEFT's format: what they change in a model's tensors, without a merged copy.

Nothing is computed here. The core adds the changes while it reads the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.models.adapter_config import AdapterConfig, read_adapter_config
from sensmerge.models.folders import tokenizer_files
from sensmerge.models.layers import TRANSPOSED_MODELS
from sensmerge.models.pickles import copied, enabled
from sensmerge.models.vocabulary.names import OUTPUT_HEADS
from sensmerge.reading import LARGE, content, is_folder, mode_of, own_file

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt")

# What PEFT puts before the names of a model's modules.
WRAPPER = "base_model.model."

_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(?:\.(?!weight$)(?P<adapter>[^.]+))?(?:\.weight)?"
)
_TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?")
# Parts of names that PEFT's modules add to those of the modules they wrap.
_WRAPPED = re.compile(
    r"\.(?:token_adapter\.)?base_layer(?=\.)|\.modules_to_save(?:\.[^.]+)?(?=\.[^.]+$)"
)


@dataclass(frozen=True)
class Change:
    """A change to one tensor of a model.

    Attributes:
        tensor: The tensor.
        checkpoint: The adapter's checkpoint.
        plain: The change as the core's request has it, without the checkpoint.
        shape: The tensor's shape, if another tensor takes its place.
        module: The adapter's name of the module, of a low-rank change.
        embedding: Whether the module is an embedding.
    """

    tensor: str
    checkpoint: _core.Checkpoint
    plain: dict[str, Any]
    shape: list[int] | None = None
    module: str = ""
    embedding: bool = False


@dataclass(frozen=True)
class Adapter:
    """An adapter, opened.

    Attributes:
        name: Its name in the recipe.
        path: Its folder.
        checkpoint: Its tensors, of which only headers are read.
        config: What its ``adapter_config.json`` says.
    """

    name: str
    path: Path
    checkpoint: _core.Checkpoint
    config: AdapterConfig

    @cached_property
    def shapes(self) -> dict[str, list[int]]:
        """The shape of every tensor."""
        return {tensor.name: tensor.shape for tensor in self.checkpoint.tensors}


@dataclass
class _Module:
    """The tensors of an adapter for one module of the model.

    Attributes:
        embedding: Whether the module is an embedding, whose factors are applied the other way.
        parts: The adapter's tensors: ``A``, ``B`` and ``magnitude``.
    """

    embedding: bool = False
    parts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sorted:
    """The tensors of an adapter by what they do, under the names of the model's modules.

    Attributes:
        modules: Low-rank changes, by module.
        whole: Tensors that replace those of the model, by their names there.
        tokens: Rows that replace those of an embedding, by module.
        left_out: Copies of the model's own tensors, which change nothing.
    """

    modules: dict[str, _Module] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def targets(self) -> list[str]:
        """The names of the tensors that are changed."""
        modules = [f"{module}.weight" for module in (*self.modules, *self.tokens)]
        return [*modules, *self.whole]


def open_adapter(name: str, path: Path) -> Adapter:
    """Open an adapter.

    Args:
        name: Its name in the recipe.
        path: Its folder.

    Raises:
        InputError: It is no adapter, is stored as pickles, or is of a kind that is not added to
            models.
        OSError: A file cannot be read.
    """
    if not is_folder(path) or (said := own_file(path, CONFIG_FILE)) is None:
        raise InputError(
            f"{path}: is no adapter, though '{name}' follows a '+': it has no {CONFIG_FILE}"
        )
    config = read_adapter_config(said)
    weights = own_file(path, WEIGHTS_FILE) or _unpickled(path)
    return Adapter(name, path, _core.Checkpoint.adapter(str(weights)), config)


def _unpickled(path: Path) -> Path:
    """The weights of an adapter that is stored as a pickle, in a copy."""
    pickled = next((one for one in _PICKLES if mode_of(path / one) is not None), None)
    if pickled is None:
        raise InputError(f"{path}: has no {WEIGHTS_FILE}")
    if not enabled():
        raise InputError(
            f"{path / pickled}: is a pickle, which can run code when it is read: load the adapter "
            "with PEFT where you trust it, and save it again, as save_pretrained writes "
            "safetensors; or have it read by a process of its own that takes nothing but tensors: "
            "--unpickle"
        )
    return copied(path, pickled) / WEIGHTS_FILE


def changes_of(
    adapter: Adapter, model: Path, tensors: Mapping[str, list[int]], config: dict[str, Any]
) -> tuple[list[Change], list[str]]:
    """What an adapter changes in a model.

    Args:
        adapter: The adapter.
        model: The model's folder.
        tensors: The shape of every tensor of the model.
        config: The model's ``config.json``.

    Returns:
        The changes, and notes for the user.

    Raises:
        InputError: A tensor of the adapter is unknown, belongs to no tensor of the model, or does
            not fit it.
        OSError: A tokenizer file cannot be read.
    """
    found = _sorted(adapter)
    names = _matched(adapter, found, model, tensors, config)
    transposed = _transposition(adapter, found, names, tensors, config)
    changes = [
        Change(
            names[target],
            adapter.checkpoint,
            {"kind": "whole", "tensor": stored},
            adapter.shapes[stored],
        )
        for target, stored in found.whole.items()
    ]
    for module, stored in found.tokens.items():
        places = adapter.config.token_places(module)
        if places is None:
            raise InputError(
                f"{adapter.path}, tensor '{stored}': {CONFIG_FILE} does not say which tokens its "
                "rows belong to (trainable_token_indices)"
            )
        rows = {"kind": "rows", "tensor": stored, "places": places}
        changes.append(Change(names[f"{module}.weight"], adapter.checkpoint, rows))
    for module, parts in found.modules.items():
        plain = _low_rank(adapter, module, parts)
        tensor = names[f"{module}.weight"]
        plain["transposed"] = parts.embedding or transposed(module, tensors[tensor])
        added = Change(tensor, adapter.checkpoint, plain, module=module, embedding=parts.embedding)
        changes.append(added)
    return changes, _notes(adapter, found, model, names, config)


def _sorted(adapter: Adapter) -> _Sorted:
    """Sort an adapter's tensors by what they do.

    Raises:
        InputError: A tensor is of an unknown kind, or the file holds several adapters.
    """
    found, adapters = _Sorted(), set()
    for stored in adapter.shapes:
        name = stored.removeprefix(WRAPPER)
        if (factor := _FACTOR.fullmatch(name)) is not None:
            part = factor["part"]
            module = found.modules.setdefault(factor["module"], _Module())
            module.embedding |= part.startswith("lora_embedding")
            module.parts["magnitude" if part == "lora_magnitude_vector" else part[-1]] = stored
            adapters.add(factor["adapter"])
        elif (tokens := _TOKENS.fullmatch(name)) is not None:
            found.tokens[tokens["module"]] = stored
        elif ".original_module." in name:
            found.left_out.append(stored)
        elif "lora_" in name:
            raise InputError(
                f"{adapter.path}, tensor '{stored}': adapters with such tensors are not supported; "
                "merge it into its model first (PEFT's merge_and_unload)"
            )
        else:
            found.whole[_WRAPPED.sub("", name)] = stored
    if len(adapters) > 1:
        raise InputError(
            f"{adapter.path}: holds several adapters ({', '.join(sorted(map(str, adapters)))}); "
            "save each in a folder of its own"
        )
    if not found.targets:
        raise InputError(f"{adapter.path}: holds no tensors of an adapter")
    return found


def _matched(
    adapter: Adapter,
    found: _Sorted,
    model: Path,
    tensors: Mapping[str, list[int]],
    config: dict[str, Any],
) -> dict[str, str]:
    """The model's tensor for every target of an adapter.

    A model may be stored with or without the prefix that its head adds (``model.``,
    ``transformer.``): a prefix is added or taken off where all names fit then.

    Raises:
        InputError: A target is no tensor of the model.
    """
    targets = found.targets
    best: dict[str, str] = {}
    for taken, added in _prefixes(targets[0], tensors):
        renamed = {
            target: name
            for target in targets
            if target.startswith(taken) and (name := added + target.removeprefix(taken)) in tensors
        }
        if len(renamed) > len(best):
            best = renamed
    heads = [target for target in targets if target.endswith(OUTPUT_HEADS)]
    if heads and config.get("tie_word_embeddings"):
        raise InputError(
            f"{adapter.path}: changes '{heads[0]}', and the output head of {model} is tied to its "
            "input embedding: merge the adapter first, into a model that is saved with an output "
            "head of its own (tie_word_embeddings: false)"
        )
    missing = [target for target in targets if target not in best]
    if missing:
        why = "; the adapter was made for another model, or for another layout of this one"
        more = "" if len(missing) == 1 else f", like {len(missing) - 1} more"
        raise InputError(
            f"{adapter.path}: changes '{missing[0]}'{more}, and {model} has no such tensor{why}"
        )
    return best


def _prefixes(target: str, tensors: Mapping[str, list[int]]) -> Iterator[tuple[str, str]]:
    """Prefixes to take off a target's name and to put before it, so that it is a tensor's."""
    yield "", ""
    for name in tensors:
        if name.endswith(f".{target}"):
            yield "", name.removesuffix(target)
        elif target.endswith(f".{name}"):
            yield target.removesuffix(name), ""


def _transposition(
    adapter: Adapter,
    found: _Sorted,
    names: Mapping[str, str],
    tensors: Mapping[str, list[int]],
    config: dict[str, Any],
) -> Any:
    """A function of a module and its weight's shape: whether it is stored as inputs × outputs.

    The shapes tell, but for square weights. These are taken to be stored like the others of the
    model; where there are no others, like those of the model's type.
    """

    def by_shape(module: str, shape: list[int]) -> bool | None:
        parts = found.modules[module].parts
        inputs, outputs = adapter.shapes[parts["A"]][-1:], adapter.shapes[parts["B"]][:1]
        as_usual, the_other_way = shape == [*outputs, *inputs], shape == [*inputs, *outputs]
        return None if as_usual == the_other_way else the_other_way

    others = [
        by_shape(module, tensors[names[f"{module}.weight"]])
        for module, parts in found.modules.items()
        if not parts.embedding and {"A", "B"} <= set(parts.parts)
    ]
    known = [other for other in others if other is not None]
    square = known[0] if known else config.get("model_type") in TRANSPOSED_MODELS

    def transposed(module: str, shape: list[int]) -> bool:
        told = by_shape(module, shape)
        return square if told is None else told

    return transposed


def _low_rank(adapter: Adapter, module: str, found: _Module) -> dict[str, Any]:
    """The low-rank change to a module's weight, as the core's request has it.

    Raises:
        InputError: A factor is missing, or of another rank than the config says.
    """
    parts = found.parts
    missing = [part for part in ("A", "B") if part not in parts]
    if missing:
        raise InputError(f"{adapter.path}: has no lora_{missing[0]} for '{module}'")
    if adapter.config.use_dora != ("magnitude" in parts):
        has, says = ("has", "not") if "magnitude" in parts else ("has no", "and")
        raise InputError(
            f"{adapter.path}: {has} lora_magnitude_vector for '{module}', {says} "
            f"use_dora in {CONFIG_FILE}: the two do not fit"
        )
    for part in ("A", "B"):
        if len(adapter.shapes[parts[part]]) != 2:
            raise InputError(
                f"{adapter.path}, tensor '{parts[part]}': has shape {adapter.shapes[parts[part]]}; "
                "only adapters of linear layers and embeddings are added"
            )
    rank = adapter.config.rank(module)
    if adapter.shapes[parts["A"]][0] != rank:
        raise InputError(
            f"{adapter.path}, tensor '{parts['A']}': is of rank {adapter.shapes[parts['A']][0]}, "
            f"and {CONFIG_FILE} says {rank}"
        )
    return {
        "kind": "low_rank",
        "a": parts["A"],
        "b": parts["B"],
        "scale": adapter.config.scale(module),
        "magnitude": parts.get("magnitude"),
    }


def _notes(
    adapter: Adapter,
    found: _Sorted,
    model: Path,
    names: Mapping[str, str],
    config: dict[str, Any],
) -> list[str]:
    """What the user should know of an adapter and a model."""
    notes, made_for = [], adapter.config.base
    if made_for and made_for.rstrip("/").split("/")[-1] != model.name:
        notes.append(
            f"{adapter.path}: was made for '{made_for}' ({CONFIG_FILE}), and is added to {model}"
        )
    if found.left_out:
        notes.append(
            f"{adapter.path}: '{found.left_out[0]}' and the like are left out: they are copies of "
            "the model's tensors"
        )
    embedding = [name for module, name in names.items() if "embed" in module or "wte" in module]
    if embedding and config.get("tie_word_embeddings"):
        notes.append(
            f"{adapter.path}: changes '{embedding[0]}', to which the output head of {model} is "
            "tied: both are changed, as by PEFT when it merges an adapter"
        )
    own = [file.name for file in tokenizer_files(adapter.path)]
    differing = [name for name in own if _content(adapter.path, name) != _content(model, name)]
    if differing:
        notes.append(
            f"{adapter.path}: has tokenizer files that differ from those of {model} "
            f"({', '.join(differing)}); the model's are used"
        )
    return notes


def _content(folder: Path, name: str) -> bytes | None:
    path = own_file(folder, name) if is_folder(folder) else None
    return None if path is None else content(path, LARGE)
