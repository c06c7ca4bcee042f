"""A model's decoder blocks, and runs of the model in which a function takes their place.

The model's own code runs all that lies around the blocks: embeddings, positions, masks, the final
norm, the output head and what is done to its logits. So no architecture has to be known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sensmerge.errors import InputError
from sensmerge.models.layers import block_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Called in place of a block: with its position, its own forward, and the arguments.
Visit = Callable[[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class _Enough(Exception):  # noqa: N818 - it is no error
    """Ends a run of the model whose rest is not needed."""


def find(model: PreTrainedModel, layers: dict[str, str]) -> list[nn.Module]:
    """The model's decoder blocks, in order: the list of modules that holds one block each.

    Args:
        model: The model.
        layers: The layer of every parameter.

    Raises:
        InputError: There is no such list.
    """
    wanted = {layer for layer in layers.values() if block_of(f"{layer}.weight") == layer}
    for prefix, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == len(wanted):
            held = [
                {layers[f"{prefix}.{place}.{name}"] for name, _ in block.named_parameters()}
                for place, block in enumerate(module)
            ]
            if all(len(names) == 1 for names in held) and set().union(*held) == wanted:
                return list(module)
    raise InputError(
        f"{type(model).__name__}: its decoder blocks are not one list of modules, so they cannot "
        "be run one at a time; use --memory whole"
    )


@contextmanager
def visited(blocks: list[nn.Module], visit: Visit) -> Iterator[None]:
    """Have ``visit`` called in the place of every block."""

    def instead(place: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: visit(place, forward, args, kwargs)

    for place, block in enumerate(blocks):
        # On the instance, where it hides the class's; the module and its parameters stay.
        block.forward = instead(place, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def run(model: PreTrainedModel, ids: list[int]) -> Any:
    """Run the model on one sequence of token ids; None where :func:`enough` ended the run."""
    # The first parameters are the input embeddings.
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    with suppress(_Enough):
        # The mask says that every token counts, a pad token among them.
        return model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    return None


def enough() -> None:
    """End the current :func:`run`; called in a hook or a visit."""
    raise _Enough


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden states in a block's output: the output itself, or the first of a tuple."""
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found


def like(output: Any, hidden: torch.Tensor) -> Any:
    """A block's output with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
