"""Task-specific sensitivity: s^l = Σ over samples and the layer's parameters of |θ · ∂L/∂θ|.

Sens-Merging, Eq. 1 and 3. The absolute value is taken of every parameter for every sample, before
any sum. The measure ``fisher`` has (∂L/∂θ)² in its place. Gradients are reduced one parameter at a
time as the backward pass yields them, and freed: a full set of gradients is never held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from sensmerge import _core
from sensmerge.calibration.backward import Gradient, each_gradient, groups
from sensmerge.calibration.blocks import find, run
from sensmerge.calibration.heap import Heap
from sensmerge.errors import InputError
from sensmerge.models.dtypes import dtype_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sensmerge.calibration.entering import Entering
    from sensmerge.calibration.samples import Sample
    from sensmerge.calibration.statistics import Squares
    from sensmerge.calibration.stream import Stream

# Gradients of float16 models are often below 6e-8, the smallest number that float16 holds: on a
# small model with a loss of 0.05, α was off by 13 %. So the loss is multiplied by a power of two
# and the sums are divided by it, which is exact; where gradients overflow, the next one is tried.
_FLOAT16_SCALES = (2.0**14, 2.0**10, 2.0**6, 2.0**2, 1.0)


def measure(
    model: PreTrainedModel,
    layers: dict[str, str],
    samples: list[Sample],
    *,
    expert: str,
    threads: int | None,
    advance: Callable[[int], None],
    stream: Stream | None = None,
    most: float = math.inf,
    by: str = "taylor",
    squares: Squares | None = None,
    entering: Entering | None = None,
) -> tuple[dict[str, float], float]:
    """Sum |θ · g|, or g², by layer over the samples.

    Args:
        model: The expert.
        layers: The layer of every parameter.
        samples: Its samples.
        expert: Its name, for messages.
        threads: Threads for the reductions; all cores by default.
        advance: Told of every sample that is done.
        stream: The expert taken apart, to run it block by block; None runs it whole, one sample at
            a time.
        most: Bytes that the kept inputs of blocks may take where it is run block by block.
        by: What is summed: |θ · g| (``taylor``) or g² (``fisher``).
        squares: Given every gradient too, to sum its squares entry by entry.
        entering: Keeps what enters the output head, where that is asked for.

    Returns:
        The sum for every layer, in the model's order, and the mean loss.

    Raises:
        InputError: A loss or a sum is not finite.
    """
    found: dict[int, dict[str, float]] = {}
    summed = _MEASURES[by]
    passes = _Passes(layers, samples, expert, threads, summed.sum, squares, entering)
    scales = _scales(model)
    with (
        _tidied(model, layers, passes.heap, enabled=stream is None),
        nullcontext() if entering is None else entering.watching(),
    ):
        for scale in scales:
            passes.loss_scale = scale
            # At first all samples, then those whose gradients overflowed at the scale before.
            left = [place for place in range(len(samples)) if place not in found]
            for group in groups(stream, samples, left, most):
                passes.start(group)
                each_gradient(model, stream, samples, group, passes.loss, passes.take)
                for place in group:
                    sums = passes.sums[place]
                    if all(math.isfinite(total) for total in sums.values()):
                        factor = scale**summed.power
                        found[place] = {layer: total / factor for layer, total in sums.items()}
                        advance(1)
                    elif scale == scales[-1]:
                        raise InputError(
                            f"expert '{expert}': its gradients on {samples[place].place} are not "
                            "finite; try sensitivity.dtype: float32"
                        )
    totals = {
        layer: sum(found[place][layer] for place in range(len(samples)))
        for layer in dict.fromkeys(layers.values())
    }
    return totals, math.fsum(passes.losses.values()) / len(passes.losses)


class _Passes:
    """What backward passes over one expert's samples give: losses, and sums by layer.

    Attributes:
        loss_scale: What losses are multiplied by before they are differentiated.
        losses: The loss of every sample.
        sums: For every sample of the current group: the scaled sum for every layer.
        heap: The heap that gradients are freed into.
    """

    def __init__(
        self,
        layers: dict[str, str],
        samples: list[Sample],
        expert: str,
        threads: int | None,
        sum_of: SumOf,
        squares: Squares | None,
        entering: Entering | None,
    ) -> None:
        self.loss_scale = 1.0
        self.losses: dict[int, float] = {}
        self.sums: dict[int, dict[str, float]] = {}
        self.heap = Heap()
        self._layers = layers
        self._samples = samples
        self._expert = expert
        self._sum_of = sum_of
        self._squares = squares
        self._entering = entering
        # Torch's own threads are idle meanwhile.
        self._threads = threads or torch.get_num_threads()
        # By sample: its tokens, without repetitions.
        self._tokens: dict[int, torch.Tensor] = {}
        # By sample and parameter: rows of a gradient that wait for the embedding's piece of it.
        self._rows: dict[tuple[int, str], torch.Tensor] = {}

    def start(self, group: list[int]) -> None:
        """Begin with a group of samples."""
        self.sums = {place: dict.fromkeys(self._layers.values(), 0.0) for place in group}
        self._tokens = {
            place: torch.tensor(sorted(set(self._samples[place].ids))) for place in group
        }
        self._rows = {}

    def loss(self, place: int, logits: torch.Tensor) -> torch.Tensor:
        """The scaled loss of a sample."""
        sample = self._samples[place]
        if self._entering is not None:
            self._entering.keep(place, sample)
        # The head's gradient, as a rule the largest, comes while all activations are held.
        logits.register_hook(lambda _: self.heap.make_room())
        value = cross_entropy(logits, sample)
        self.losses[place] = found = value.item()
        if not math.isfinite(found):
            raise InputError(
                f"expert '{self._expert}': its loss on {sample.place} is {found}; its weights are "
                "damaged, or too large for their dtype: sensitivity.dtype: float32 helps there"
            )
        return value * self.loss_scale

    def take(self, gradient: Gradient) -> None:
        """Add a gradient's part to its layer's sum."""
        place, name, values = gradient.place, gradient.name, gradient.values
        parameter, rows = gradient.parameter.detach(), None
        assert place is not None
        if gradient.is_piece:
            # The embedding's piece, which follows, is zero but for the rows of the sample's
            # tokens: only these have to wait for it.
            tokens = self._tokens[place].to(parameter.device)
            self._rows[place, name] = values[tokens]
            values[tokens] = 0.0
        elif (place, name) in self._rows:
            rows = self._tokens[place].to(parameter.device)
            values = values[rows] + self._rows.pop((place, name))
            parameter = parameter[rows]
        self.sums[place][self._layers[name]] += self._sum_of(parameter, values, self._threads)
        if self._squares is not None:
            self._squares.add(name, values, rows)
        # The gradient is still held, and so counts as memory in use.
        self.heap.freed(gradient.values.nbytes)


@contextmanager
def _tidied(
    model: PreTrainedModel, layers: dict[str, str], heap: Heap, *, enabled: bool
) -> Iterator[None]:
    """Look at the heap after every block of a forward pass, in which much is freed."""
    try:
        blocks = find(model, layers) if enabled else []
    except InputError:
        blocks = []
    handles = [block.register_forward_hook(lambda *_: heap.tidy()) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def sum_squares(_: torch.Tensor, gradient: torch.Tensor, threads: int | None) -> float:
    """Σ g² of one tensor: squares and their sum in float64."""
    if gradient.device.type == "cpu":
        return _core.sum_squares(as_bytes(gradient), dtype_name(gradient), threads)
    pieces = gradient.reshape(-1).split(_PIECE)
    return math.fsum(piece.double().square().sum().item() for piece in pieces)


# Entries that a device multiplies at a time.
_PIECE = 1 << 24


# The sum over one parameter, from the parameter, its gradient and a number of threads.
SumOf = Callable[[torch.Tensor, torch.Tensor, int | None], float]


@dataclass(frozen=True)
class _Summed:
    """What is summed over parameters.

    Attributes:
        sum: The sum over one tensor.
        power: The power in which the sum depends on the loss.
    """

    sum: SumOf
    power: int


_MEASURES = {"taylor": _Summed(sum_abs_product, 1), "fisher": _Summed(sum_squares, 2)}


def _scales(model: PreTrainedModel) -> tuple[float, ...]:
    half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    return _FLOAT16_SCALES if half else (1.0,)


def loss(model: PreTrainedModel, sample: Sample) -> torch.Tensor:
    """Mean causal-LM loss over the scored tokens, from float32 logits."""
    return cross_entropy(run(model, sample.ids).logits[0], sample)


def cross_entropy(logits: torch.Tensor, sample: Sample) -> torch.Tensor:
    """Mean causal-LM loss over the scored tokens, from the logits: [tokens, vocabulary]."""
    scored = torch.tensor(sample.scored)
    targets = torch.tensor(sample.ids)[scored].to(logits.device)
    rows = logits[(scored - 1).to(logits.device)]
    # At least float32: tests run models in float64.
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(rows, targets)


def as_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """A tensor's memory as bytes, without a copy where it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    found: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return found
