"""One forward and backward pass over all samples, whose gradients are looked at and freed.

Block by block, as calibration streams a model: every block is differentiated for all samples before
the next one, so that a parameter's gradient is whole, and looked at once, while no more than one
block's gradients are held.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from sensmerge.calibration.blocks import run
from sensmerge.calibration.heap import return_freed
from sensmerge.calibration.sensitivity import groups
from sensmerge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sensmerge.calibration.samples import Sample
    from sensmerge.calibration.stream import Stream

# The loss of a sample, from its place among the samples and its logits, [tokens, vocabulary].
LossOf = Callable[[int, torch.Tensor], torch.Tensor]

# Told of a parameter's name and its gradient; what it is told of one parameter adds up.
Look = Callable[[str, torch.Tensor], None]


def differentiate(
    model: PreTrainedModel,
    stream: Stream | None,
    samples: list[Sample],
    shares: list[float],
    loss_of: LossOf,
    look: Look,
    *,
    most: float = math.inf,
) -> list[float]:
    """Differentiate ``Σ share · loss`` over the samples.

    Args:
        model: The model.
        stream: The same, taken apart; None where that is not possible: then every sample's
            gradients are looked at on their own.
        samples: The samples.
        shares: What each one's loss counts.
        loss_of: Its loss.
        look: Looks at gradients.
        most: Bytes that the kept inputs of blocks may take.

    Returns:
        Every sample's loss.

    Raises:
        InputError: A loss is not finite.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(True)

    def reduce(parameters: list[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                gradient, parameter.grad = parameter.grad, None
                look(names[id(parameter)], gradient)
                del gradient
        return_freed()

    losses = [math.nan] * len(samples)
    try:
        if stream is None:
            for place, sample in enumerate(samples):
                value = loss_of(place, run(model, sample.ids).logits[0])
                losses[place] = _finite(value, sample)
                (value * shares[place]).backward()
                reduce(list(model.parameters()))
        else:
            for group in groups(stream, samples, list(range(len(samples))), most):
                _through_blocks(stream, samples, group, shares, loss_of, reduce, losses)
    finally:
        model.zero_grad(set_to_none=True)
    return losses


def _through_blocks(
    stream: Stream,
    samples: list[Sample],
    group: list[int],
    shares: list[float],
    loss_of: LossOf,
    reduce: Callable[[list[torch.nn.Parameter]], None],
    losses: list[float],
) -> None:
    within = {id(parameter) for block in stream.blocks for parameter in block.parameters()}
    outer = [each for each in stream.model.parameters() if id(each) not in within]
    calls = [stream.enter(samples[place].ids) for place in group]
    kept, last = stream.forward(calls, keep=True)
    gradients = []
    for number, (place, call) in enumerate(zip(group, calls, strict=True)):
        leaf = last[number].detach().requires_grad_(True)
        value = loss_of(place, stream.leave(call, leaf).logits[0])
        losses[place] = _finite(value, samples[place])
        (value * shares[place]).backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
        del value
    reduce(outer)
    for block in reversed(range(len(stream.blocks))):
        # Popped, so that it is freed when the block is done.
        before = kept.pop()
        for number, call in enumerate(calls):
            gradients[number] = stream.backward_block(
                block, call, before[number], gradients[number]
            )
        reduce(list(stream.blocks[block].parameters()))
    for call, gradient in zip(calls, gradients, strict=True):
        stream.backward_entry(call, gradient)
    # What is both embedding and head is looked at twice, and adds up.
    reduce(outer)


def _finite(value: torch.Tensor, sample: Sample) -> float:
    found = value.item()
    if not math.isfinite(found):
        raise InputError(f"the merged model's loss on {sample.place} is {found}")
    return found
