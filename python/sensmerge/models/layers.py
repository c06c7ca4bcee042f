"""Names of layers, derived from names of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# Types of models whose layers hold their weights as inputs × outputs.
TRANSPOSED_MODELS = ("decision_transformer", "gpt2", "imagegpt", "openai-gpt")


# Digits of a layer's number.
_DIGITS = 6


def block_of(tensor: str) -> str | None:
    """The decoder block of a tensor: its name up to and including the first number.

    ``model.layers.0.mlp.up_proj.weight`` is in ``model.layers.0``; ``lm_head.weight`` is in no
    block.
    """
    parts = tensor.split(".")
    for place, part in enumerate(parts[:-1]):
        if part.isdecimal() and len(part) <= _DIGITS:
            return ".".join(parts[: place + 1])
    return None


def layer_of(tensor: str) -> str:
    """The layer of a tensor: its block or, outside the blocks, its module.

    ``model.embed_tokens.weight`` is in ``model.embed_tokens``.
    """
    return block_of(tensor) or tensor.rpartition(".")[0] or tensor


def blocks(tensors: Iterable[str]) -> list[str]:
    """The blocks of all tensors, in the order of their numbers."""
    found = {block for tensor in tensors if (block := block_of(tensor)) is not None}
    return sorted(found, key=_number)


def _number(block: str) -> tuple[str, int]:
    prefix, _, number = block.rpartition(".")
    return prefix, int(number)


@dataclass(frozen=True)
class Decoder:
    """The numbered layers of a model.

    Attributes:
        prefix: What stands before the number in tensors' names, such as ``model.layers``.
        count: Number of layers.
    """

    prefix: str
    count: int

    def layer(self, tensor: str) -> int | None:
        """The number of a tensor's layer; None outside the layers."""
        block = block_of(tensor)
        if block is None:
            return None
        prefix, number = _number(block)
        return number if prefix == self.prefix else None

    def renumbered(self, tensor: str, layer: int) -> str:
        """A tensor's name in another layer."""
        rest = tensor.removeprefix(f"{self.prefix}.").partition(".")[2]
        return f"{self.prefix}.{layer}.{rest}"


# Keys of a config that say how many layers there are.
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the language model."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def kinds(tensors: Iterable[str]) -> list[Decoder]:
    """All kinds of numbered layers; a model with a vision tower has several."""
    found: dict[str, set[int]] = {}
    for block in blocks(tensors):
        prefix, number = _number(block)
        found.setdefault(prefix, set()).add(number)
    return [Decoder(prefix, max(numbers) + 1) for prefix, numbers in found.items()]


def decoder_of(tensors: Iterable[str], config: dict[str, Any]) -> Decoder | None:
    """The numbered layers of the language model.

    Of several kinds, the ones that the config counts; None if that leaves no or several kinds.
    """
    found = kinds(tensors)
    if len(found) > 1:
        said = text_config(config)
        depths = [said.get(key) for key in DEPTHS]
        found = [kind for kind in found if kind.count in depths]
    return found[0] if len(found) == 1 else None
