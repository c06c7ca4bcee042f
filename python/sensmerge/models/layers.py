"""Names of layers, derived from names of tensors."""

from __future__ import annotations

from collections.abc import Iterable


def block_of(tensor: str) -> str | None:
    """The decoder block of a tensor: its name up to and including the first number.

    ``model.layers.0.mlp.up_proj.weight`` is in ``model.layers.0``; ``lm_head.weight`` is in no
    block.
    """
    parts = tensor.split(".")
    for place, part in enumerate(parts[:-1]):
        if part.isdecimal():
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
