"""Task-specific sensitivity: s^l = Σ over samples and the layer's parameters of |θ · ∂L/∂θ|.

Sens-Merging, Eq. 1 and 3. The absolute value is taken of every parameter for every sample, before
any sum. Gradients are reduced one parameter at a time as the backward pass yields them, and freed:
a full set of gradients is never held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sensmerge import _core
from sensmerge.calibration.blocks import find, run
from sensmerge.calibration.heap import Heap
from sensmerge.errors import InputError
from sensmerge.models.dtypes import dtype_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sensmerge.calibration.samples import Sample
    from sensmerge.calibration.stream import Stream

# Gradients of float16 models are often below 6e-8, the smallest number that float16 holds: on a
# small model with a loss of 0.05, α was off by 13 %. So their loss is multiplied by a power of two
# and the sums are divided by it, which is exact; where that overflows, the next one is tried.
_FLOAT16_SCALES = (2.0**14, 2.0**10, 2.0**6, 2.0**2, 1.0)


def measure(
    model: PreTrainedModel,
    layers: dict[str, str],
    samples: list[Sample],
    *,
    expert: str,
    threads: int | None,
    advance: Callable[[int], None],
) -> tuple[dict[str, float], float]:
    """Sum |θ · g| by layer over the samples, one forward and backward pass a sample.

    Args:
        model: The expert.
        layers: The layer of every parameter.
        samples: Its samples.
        expert: Its name, for messages.
        threads: Threads for the reductions; all cores by default.
        advance: Told of every sample that is done.

    Returns:
        The sum for every layer, in the model's order, and the mean loss.

    Raises:
        InputError: A loss or a sum is not finite.
    """
    found, losses = [], []
    with _reducing(model, layers, threads) as reduction, _tidied(model, layers, reduction.heap):
        for sample in samples:
            for scale in _scales(model):
                reduction.sums = dict.fromkeys(layers.values(), 0.0)
                value = loss(model, sample)
                _check_loss(value, sample, expert)
                (value * scale).backward()
                if _finite(reduction.sums):
                    break
            else:
                raise _not_finite(sample, expert)
            found.append({layer: total / scale for layer, total in reduction.sums.items()})
            losses.append(value.item())
            advance(1)
    return _totals(layers, found), math.fsum(losses) / len(losses)


def measure_streamed(
    stream: Stream,
    layers: dict[str, str],
    samples: list[Sample],
    *,
    expert: str,
    threads: int | None,
    advance: Callable[[int], None],
    most: float = math.inf,
) -> tuple[dict[str, float], float]:
    """The same as :func:`measure`, block by block, for as many samples at once as ``most`` allows.

    ``most`` is a number of bytes, of the inputs of blocks that are kept; one sample always runs.
    """
    found: dict[int, dict[str, float]] = {}
    losses: dict[int, float] = {}
    for scale in _scales(stream.model):
        # Those whose gradients overflowed at a larger scale go through the blocks again.
        left = [place for place in range(len(samples)) if place not in found]
        if not left:
            break
        for group in groups(stream, samples, left, most):
            chosen = [samples[place] for place in group]
            passed = _pass(stream, layers, chosen, scale, expert, threads)
            for place, (sums, value) in zip(group, passed, strict=True):
                if _finite(sums):
                    found[place] = {layer: total / scale for layer, total in sums.items()}
                    losses[place] = value
                    advance(1)
    for place, sample in enumerate(samples):
        if place not in found:
            raise _not_finite(sample, expert)
    in_order = [found[place] for place in range(len(samples))]
    return _totals(layers, in_order), math.fsum(losses.values()) / len(losses)


def groups(
    stream: Stream, samples: list[Sample], places: list[int], most: float
) -> Iterator[list[int]]:
    """Samples that go through the blocks together: as many as ``most`` bytes of inputs allow."""
    group: list[int] = []
    room = most
    for place in places:
        size = stream.kept_bytes(len(samples[place].ids))
        if group and size > room:
            yield group
            group, room = [], most
        group.append(place)
        room -= size
    yield group


def _pass(
    stream: Stream,
    layers: dict[str, str],
    samples: list[Sample],
    scale: float,
    expert: str,
    threads: int | None,
) -> list[tuple[dict[str, float], float]]:
    """Every sample's sums, still scaled, and its loss."""
    sums = [dict.fromkeys(layers.values(), 0.0) for _ in samples]
    losses, gradients = [], []
    with (
        stream.outer_on_device(),
        _reducing(stream.model, layers, threads, split=True) as reduction,
    ):
        calls = [stream.enter(sample.ids) for sample in samples]
        kept, last = stream.forward(calls, keep=True)
        for place, (sample, call) in enumerate(zip(samples, calls, strict=True)):
            reduction.enter(place, sums[place], sample)
            leaf = last[place].detach().requires_grad_(True)
            value = cross_entropy(stream.leave(call, leaf).logits[0], sample)
            _check_loss(value, sample, expert)
            (value * scale).backward()
            assert leaf.grad is not None
            losses.append(value.item())
            gradients.append(leaf.grad)
            del value
        for block in reversed(range(len(stream.blocks))):
            # Popped, so that it is freed when the block is done.
            before = kept.pop()
            with stream.block_on_device(block):
                for place, call in enumerate(calls):
                    reduction.enter(place, sums[place], samples[place])
                    gradients[place] = stream.backward_block(
                        block, call, before[place], gradients[place]
                    )
        for place, call in enumerate(calls):
            reduction.enter(place, sums[place], samples[place])
            reduction.last = True
            stream.backward_entry(call, gradients[place])
    return list(zip(sums, losses, strict=True))


class _Reduction:
    """Reduces each gradient to its layer's Σ|θ · g| as soon as it is whole, and frees it.

    Attributes:
        sums: The sum for every layer of the current sample; backward passes add to it.
        last: Whether what is tied gets the last part of its gradient.
        heap: What gradients are freed into.
    """

    def __init__(self, threads: int | None, tied: torch.nn.Parameter | None) -> None:
        self.sums: dict[str, float] = {}
        self.last = False
        self.heap = Heap()
        # Torch's own wait meanwhile.
        self._threads = threads or torch.get_num_threads()
        # A parameter that is both input embedding and output head, whose gradient comes in two
        # parts where the blocks between them are run one at a time.
        self._tied = tied
        self._place = 0
        self._freed = 0
        self._tokens = torch.empty(0, dtype=torch.long)
        self._rows: dict[int, torch.Tensor] = {}

    def enter(self, place: int, sums: dict[str, float], sample: Sample) -> None:
        """Turn to another sample."""
        self.sums, self._place = sums, place
        self._tokens = torch.tensor(sorted(set(sample.ids)))

    def hook(self, layer: str) -> Callable[[torch.Tensor], None]:
        """What is called when a parameter of a layer has its gradient."""

        def reduce(parameter: torch.Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            if parameter is self._tied:
                self.sums[layer] += self._reduce_tied(parameter, gradient)
            else:
                self.sums[layer] += sum_abs_product(parameter, gradient, self._threads)
            parameter.grad = None
            self._freed += gradient.nbytes
            if self._freed >= _FREED:
                self._freed = 0
                # While the gradient is in use, so that it counts.
                self.heap.tidy()

        return reduce

    def _reduce_tied(self, parameter: torch.Tensor, gradient: torch.Tensor) -> float:
        # The embedding's part is zero but for the sample's own tokens: only their rows have to
        # wait for it, and the head's part of all others is whole.
        tokens = self._tokens.to(gradient.device)
        if not self.last:
            self._rows[self._place] = gradient[tokens]
            gradient[tokens] = 0.0
            return sum_abs_product(parameter, gradient, self._threads)
        whole = gradient[tokens] + self._rows.pop(self._place)
        return sum_abs_product(parameter.detach()[tokens], whole, self._threads)


@contextmanager
def _reducing(
    model: PreTrainedModel, layers: dict[str, str], threads: int | None, *, split: bool = False
) -> Iterator[_Reduction]:
    """Hook a reduction to every parameter; ``split``: the head is differentiated on its own."""
    reduction = _Reduction(threads, _tied(model) if split else None)
    handles = [
        # A parameter that the model's own code froze has a sensitivity too.
        parameter.requires_grad_(True).register_post_accumulate_grad_hook(
            reduction.hook(layers[name])
        )
        for name, parameter in model.named_parameters()
    ]
    try:
        yield reduction
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)


@contextmanager
def _tidied(model: PreTrainedModel, layers: dict[str, str], heap: Heap) -> Iterator[None]:
    """Look at the heap after every block of a forward pass: it frees much and keeps more."""
    try:
        blocks = find(model, layers)
    except InputError:
        blocks = []
    handles = [block.register_forward_hook(lambda *_: heap.tidy()) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tied(model: PreTrainedModel) -> torch.nn.Parameter | None:
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    tied: torch.nn.Parameter | None = head.weight if head.weight is embeddings.weight else None
    return tied


def sum_abs_product(parameter: torch.Tensor, gradient: torch.Tensor, threads: int | None) -> float:
    """Σ|θ · g| of one tensor: products in float32 at least, their sum in float64."""
    if gradient.device.type == "cpu":
        return _core.sum_abs_product(
            as_bytes(parameter), dtype_name(parameter), as_bytes(gradient),
            dtype_name(gradient), threads,
        )  # fmt: skip
    exact = torch.promote_types(parameter.dtype, torch.float32)
    total = 0.0
    # In pieces, so that float32 copies stay small beside the gradient.
    for theta, g in zip(
        parameter.detach().reshape(-1).split(_PIECE), gradient.reshape(-1).split(_PIECE),
        strict=True,
    ):  # fmt: skip
        total += (theta.to(exact) * g.to(exact)).abs().sum(dtype=torch.float64).item()
    return total


# Bytes of gradients between two looks at the heap.
_FREED = 256 * 10**6

# Entries that a device multiplies at a time.
_PIECE = 1 << 24


def _scales(model: PreTrainedModel) -> tuple[float, ...]:
    half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    return _FLOAT16_SCALES if half else (1.0,)


def _finite(sums: dict[str, float]) -> bool:
    return all(math.isfinite(total) for total in sums.values())


def _totals(layers: dict[str, str], found: list[dict[str, float]]) -> dict[str, float]:
    return {layer: sum(sums[layer] for sums in found) for layer in dict.fromkeys(layers.values())}


def _check_loss(value: torch.Tensor, sample: Sample, expert: str) -> None:
    if not math.isfinite(value.item()):
        raise InputError(f"expert '{expert}': its loss on {sample.place} is {value.item()}")


def _not_finite(sample: Sample, expert: str) -> InputError:
    return InputError(
        f"expert '{expert}': its gradients on {sample.place} are not finite; try "
        "sensitivity.dtype: float32"
    )


def loss(model: PreTrainedModel, sample: Sample) -> torch.Tensor:
    """Mean causal-LM loss over the scored tokens, from float32 logits."""
    return cross_entropy(run(model, sample.ids).logits[0], sample)


def cross_entropy(logits: torch.Tensor, sample: Sample) -> torch.Tensor:
    """Mean causal-LM loss over the scored tokens, from the logits: [tokens, vocabulary]."""
    scored = torch.tensor(sample.scored)
    targets = torch.tensor(sample.ids)[scored].to(logits.device)
    rows = logits[(scored - 1).to(logits.device)]
    # At least float32: a model that runs in float64 is an oracle's.
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(rows, targets)


def as_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """A tensor's memory as bytes, without a copy where it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    found: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return found
