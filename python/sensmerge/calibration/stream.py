"""Running a model whose weights do not fit into memory: block by block, for all samples at once.

Forward, every block is run for all samples before the next one, and the inputs of blocks are kept.
Backward, from the last block, each is run again from its kept input and differentiated. So every
weight is read twice, however many samples there are, and no more than one block's activations
for one sample are held. Gradients and losses are those of a run of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sensmerge.calibration import blocks as inner
from sensmerge.calibration.adapted import Late, data_of
from sensmerge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_CPU = torch.device("cpu")


@dataclass
class Call:
    """The arguments that a model calls its blocks with for one sample.

    Attributes:
        ids: The sample's token ids.
        first: The hidden states that the first block is called with.
        others: For every block: its other arguments, by position and by keyword.
    """

    ids: list[int]
    first: torch.Tensor | None = None
    others: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


class Stream:
    """A model that is run block by block.

    Attributes:
        model: The model.
        blocks: Its decoder blocks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: dict[str, str],
        *,
        device: torch.device = _CPU,
        dtype: torch.dtype | None = None,
        late: Late | None = None,
    ) -> None:
        """Take a model apart.

        Args:
            model: The model.
            layers: The layer of every parameter.
            device: Where to compute; weights are brought there a block at a time.
            dtype: In which dtype to compute; None is that of the weights.
            late: Parameters whose weights are written into memory while they are needed.

        Raises:
            InputError: Its blocks cannot be found, or share parameters.
        """
        self.model = model
        self.blocks = inner.find(model, layers)
        self._device = device
        self._dtype = dtype
        self._late = late or {}
        self._template: Any = None
        seen: dict[int, int] = {}
        for place, block in enumerate(self.blocks):
            for parameter in block.parameters():
                if seen.setdefault(id(parameter), place) != place:
                    raise InputError(
                        f"{type(model).__name__}: blocks share parameters, so they cannot be run "
                        "one at a time; use --memory whole"
                    )

    def learn(self) -> None:
        """Find out what a block returns, unless it is known from a sample."""
        if self._template is None:
            with self.outer_on_device():
                self.enter([0])

    def kept_bytes(self, tokens: int) -> int:
        """Bytes that a backward pass keeps of a sample: the inputs of all blocks."""
        self.learn()
        return inner.hidden_of(self._template).nbytes * tokens * len(self.blocks)

    @contextmanager
    def outer_on_device(self) -> Iterator[None]:
        """Hold the modules outside the blocks on the device."""
        with _resident(self._outer(), self._device, self._dtype, self._late):
            yield

    def keep_outer(self) -> None:
        """Move the modules outside the blocks to the device for good, and free the blocks."""
        self.learn()
        for tensor in self._outer():
            tensor.data = _brought(tensor, self._device, self._dtype, self._late)
        # They are there now, changes and all.
        self._late = {}
        for block in self.blocks:
            for parameter in block.parameters():
                parameter.data = parameter.data.new_empty(0)

    def _outer(self) -> list[torch.Tensor]:
        within = {id(tensor) for block in self.blocks for tensor in _tensors(block)}
        return [tensor for tensor in _tensors(self.model) if id(tensor) not in within]

    @torch.no_grad()
    def enter(self, ids: list[int]) -> Call:
        """Find out what the model calls its blocks with for a sample; no block is run."""
        call = Call(ids)

        def visit(
            place: int,
            forward: Callable[..., Any],
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
        ) -> Any:
            hidden, args, kwargs = _split(args, kwargs)
            if place == 0:
                call.first = hidden
                if self._template is None:
                    # A tensor or a tuple: only a real call tells.
                    with self._on_device(self.blocks[0]):
                        self._template = forward(hidden, *args, **kwargs)
            call.others.append((args, kwargs))
            if place == len(self.blocks) - 1:
                inner.enough()
            return inner.like(self._template, hidden)

        with inner.visited(self.blocks, visit):
            inner.run(self.model, ids)
        return call

    @torch.no_grad()
    def forward(
        self, calls: list[Call], *, keep: bool
    ) -> tuple[list[list[torch.Tensor]], list[torch.Tensor]]:
        """Run the blocks, each for all samples.

        Args:
            calls: What the blocks are called with, for every sample.
            keep: Whether to keep the inputs of the blocks.

        Returns:
            For every block, its inputs for all samples, where they are kept; and the outputs of
            the last block.
        """
        hidden = [call.first for call in calls if call.first is not None]
        kept = []
        for place, block in enumerate(self.blocks):
            if keep:
                kept.append(hidden)
            with self._on_device(block):
                hidden = [
                    inner.hidden_of(self._call(place, call, before))
                    for call, before in zip(calls, hidden, strict=True)
                ]
        return kept, hidden

    def leave(self, call: Call, hidden: torch.Tensor) -> Any:
        """The model's output for an output of the last block."""

        def visit(_: int, __: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return inner.like(self._template, hidden)

        with inner.visited(self.blocks, visit):
            return inner.run(self.model, call.ids)

    def without_blocks(self, ids: list[int]) -> Any:
        """The model's output if every block returned its input."""

        def visit(_: int, __: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return inner.like(self._template, _split(args, kwargs)[0])

        with inner.visited(self.blocks, visit):
            return inner.run(self.model, ids)

    def backward_block(
        self, place: int, call: Call, before: torch.Tensor, gradient: torch.Tensor
    ) -> torch.Tensor:
        """Differentiate one block for one sample; gradients of its parameters are accumulated.

        Args:
            place: The block's position.
            call: What the blocks are called with for the sample.
            before: The block's input.
            gradient: The gradient of the loss with respect to the block's output.

        Returns:
            The gradient of the loss with respect to the block's input.
        """
        leaf = before.detach().requires_grad_(True)
        with torch.enable_grad():
            after = inner.hidden_of(self._call(place, call, leaf))
        after.backward(gradient)
        assert leaf.grad is not None
        return leaf.grad

    def backward_entry(self, call: Call, gradient: torch.Tensor) -> None:
        """Differentiate the part of the model before the first block."""

        def visit(_: int, __: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden, _args, _kwargs = _split(args, kwargs)
            if hidden.requires_grad:
                hidden.backward(gradient)
            inner.enough()

        with inner.visited(self.blocks, visit), torch.enable_grad():
            inner.run(self.model, call.ids)

    @contextmanager
    def block_on_device(self, place: int) -> Iterator[None]:
        """Hold one block on the device."""
        with self._on_device(self.blocks[place]):
            yield

    def _call(self, place: int, call: Call, hidden: torch.Tensor) -> Any:
        args, kwargs = call.others[place]
        return self.blocks[place](hidden, *args, **kwargs)

    @contextmanager
    def _on_device(self, module: nn.Module) -> Iterator[None]:
        with _resident(list(_tensors(module)), self._device, self._dtype, self._late):
            yield


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


@contextmanager
def _resident(
    tensors: list[torch.Tensor], device: torch.device, dtype: torch.dtype | None, late: Late
) -> Iterator[None]:
    """Hold tensors on a device for a while, and parameters in a dtype; None keeps theirs."""
    moved = [(tensor, tensor.data) for tensor in tensors]
    for tensor, _ in moved:
        tensor.data = _brought(tensor, device, dtype, late)
    try:
        yield
    finally:
        for tensor, data in moved:
            tensor.data = data


def _brought(
    tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None, late: Late
) -> torch.Tensor:
    is_weight = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
    brought: torch.Tensor = data_of(tensor, late).to(device, dtype if is_weight else None)
    return brought


def _split(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states that a block is called with, and its other arguments."""
    if args:
        return args[0], args[1:], kwargs
    others = dict(kwargs)
    return others.pop("hidden_states"), (), others
