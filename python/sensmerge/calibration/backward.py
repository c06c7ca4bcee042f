"""Backward passes over samples whose gradients are handed over as they come, and freed.

Through the whole model, one sample at a time:

    logits of a sample  ->  its loss  ->  gradients of all parameters

Or, with a model taken apart (`stream`), for a group of samples at once:

    forward     the inputs of all blocks are kept, for every sample
    head        for every sample: logits, loss, and the gradient of what left the last block
    blocks      from the last to the first, each for every sample before the next one: run again
                from its kept input, and differentiated
    embeddings  for every sample: what lies before the first block

The head, each block and the embeddings are the *parts* of such a pass. A parameter belongs to one
of them, save an embedding that serves as the head too, whose gradient comes in two pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sensmerge.calibration.blocks import run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sensmerge.calibration.samples import Sample
    from sensmerge.calibration.stream import Stream


@dataclass(frozen=True)
class Gradient:
    """A gradient that has just been computed.

    Attributes:
        name: The parameter's name in the model.
        parameter: The parameter.
        values: The gradient.
        place: The sample it is of; None where it is the sum over a group of samples.
        is_piece: Whether it is the head's piece of a gradient, and the embedding's piece follows.
    """

    name: str
    parameter: nn.Parameter
    values: torch.Tensor
    place: int | None
    is_piece: bool


# The scalar to differentiate, from a sample's place and its logits: [tokens, vocabulary].
LossOf = Callable[[int, torch.Tensor], torch.Tensor]

# The parameters of every part, when it has just been differentiated.
Parts = Generator[list[nn.Parameter], None, None]

# Given a gradient, which is freed afterwards unless it is kept.
Take = Callable[[Gradient], None]


def groups(
    stream: Stream | None, samples: list[Sample], places: list[int], most: float
) -> Iterator[list[int]]:
    """Samples that are differentiated together.

    Args:
        stream: The model taken apart; without one, every sample is a group of its own.
        samples: All samples.
        places: Places of those that are to be differentiated.
        most: Bytes that the kept inputs of blocks may take; one sample always fits.
    """
    group: list[int] = []
    room = most
    for place in places:
        size = math.inf if stream is None else stream.kept_bytes(len(samples[place].ids))
        if group and size > room:
            yield group
            group, room = [], most
        group.append(place)
        room -= size
    if group:
        yield group


def each_gradient(
    model: PreTrainedModel,
    stream: Stream | None,
    samples: list[Sample],
    group: list[int],
    loss_of: LossOf,
    take: Take,
) -> None:
    """Differentiate a group of samples, and hand over the gradients of every single one.

    At most one gradient is held: it is handed over as soon as it is computed.

    Args:
        model: The model.
        stream: The same, taken apart; None to run it whole.
        samples: All samples.
        group: Places of those to differentiate.
        loss_of: The loss of a sample.
        take: Given every gradient.
    """
    current = _Pass(model, stream, samples, group, loss_of)

    def hook(name: str) -> Callable[[Any], None]:
        def hand_over(parameter: Any) -> None:
            is_piece = current.is_piece(parameter)
            take(Gradient(name, parameter, parameter.grad, current.place, is_piece))
            parameter.grad = None

        return hand_over

    with _differentiable(model):
        handles = [
            parameter.register_post_accumulate_grad_hook(hook(name))
            for name, parameter in model.named_parameters()
        ]
        try:
            for _ in current.parts():
                pass
        finally:
            for handle in handles:
                handle.remove()


def summed_gradients(
    model: PreTrainedModel,
    stream: Stream | None,
    samples: list[Sample],
    group: list[int],
    loss_of: LossOf,
    take: Take,
    *,
    part_done: Callable[[], None],
) -> None:
    """Differentiate a group of samples, and hand over the gradients of the sum of their losses.

    At most one part's gradients are held: they are handed over as soon as the part has been
    differentiated for all samples. A model that is run whole is one part, and so is each sample.

    Args:
        model: The model.
        stream: The same, taken apart; None to run it whole.
        samples: All samples.
        group: Places of those to differentiate.
        loss_of: The loss of a sample.
        take: Given every gradient.
        part_done: Called after every part.
    """
    current = _Pass(model, stream, samples, group, loss_of)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with _differentiable(model), closing(current.parts()) as parts:
        for parameters in parts:
            for parameter in parameters:
                if parameter.grad is not None:
                    name, is_piece = names[id(parameter)], current.is_piece(parameter)
                    take(Gradient(name, parameter, parameter.grad, None, is_piece))
                    parameter.grad = None
            part_done()


@contextmanager
def _differentiable(model: PreTrainedModel) -> Iterator[None]:
    """Have every parameter differentiated, those too that the model's own code froze."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)


class _Pass:
    """One forward and backward pass.

    Attributes:
        place: The sample that is being differentiated.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stream: Stream | None,
        samples: list[Sample],
        group: list[int],
        loss_of: LossOf,
    ) -> None:
        self.place = group[0]
        self._model = model
        self._stream = stream
        self._samples = samples
        self._group = group
        self._loss_of = loss_of
        self._in_head = False

    def is_piece(self, parameter: nn.Parameter) -> bool:
        """Whether a gradient that was just computed is the head's piece, and another follows."""
        return self._in_head and parameter is _tied(self._model)

    def parts(self) -> Parts:
        """Differentiate one part after the other; yields the parameters of the part just done."""
        return self._whole() if self._stream is None else self._streamed(self._stream)

    def _whole(self) -> Parts:
        for place in self._group:
            self.place = place
            ids = self._samples[place].ids
            # Logits have no name here, so that they are freed before the backward pass.
            self._loss_of(place, run(self._model, ids).logits[0]).backward()
            yield list(self._model.parameters())

    def _streamed(self, stream: Stream) -> Parts:
        within = {id(parameter) for block in stream.blocks for parameter in block.parameters()}
        outside = [each for each in self._model.parameters() if id(each) not in within]
        with stream.outer_on_device():
            calls = [stream.enter(self._samples[place].ids) for place in self._group]
            kept, last = stream.forward(calls, keep=True)
            gradients = []
            self._in_head = True
            for place, call, left in zip(self._group, calls, last, strict=True):
                self.place = place
                leaf = left.detach().requires_grad_(True)
                self._loss_of(place, stream.leave(call, leaf).logits[0]).backward()
                assert leaf.grad is not None
                gradients.append(leaf.grad)
            yield outside
            self._in_head = False
            for block in reversed(range(len(stream.blocks))):
                # Popped, so that it is freed when the block is done.
                before = kept.pop()
                with stream.block_on_device(block):
                    for number, place in enumerate(self._group):
                        self.place = place
                        gradients[number] = stream.backward_block(
                            block, calls[number], before[number], gradients[number]
                        )
                    yield list(stream.blocks[block].parameters())
            for place, call, gradient in zip(self._group, calls, gradients, strict=True):
                self.place = place
                stream.backward_entry(call, gradient)
            yield outside


def _tied(model: PreTrainedModel) -> torch.nn.Parameter | None:
    """The parameter that is both input embedding and output head, if there is one."""
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    tied: torch.nn.Parameter | None = head.weight if head.weight is embeddings.weight else None
    return tied
