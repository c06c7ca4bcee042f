"""Task-specific sensitivity: s^l = Σ over samples and the layer's parameters of |θ · ∂L/∂θ|.

Sens-Merging, Eq. 1 and 3. The absolute value is taken of every parameter for every sample, before
any sum. Gradients are reduced one parameter at a time as the backward pass yields them, and freed:
a full set of gradients is never held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from sensmerge import _core
from sensmerge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sensmerge.calibration.samples import Sample

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
    sums = dict.fromkeys(layers.values(), 0.0)
    losses = []
    with _reduced(model, layers, threads) as found:
        for sample in samples:
            losses.append(_measure_one(model, sample, found, expert))
            for layer, value in found.items():
                sums[layer] += value
            advance(1)
    return sums, math.fsum(losses) / len(losses)


def _measure_one(
    model: PreTrainedModel, sample: Sample, found: dict[str, float], expert: str
) -> float:
    """Leave one sample's sums in ``found``; return its loss."""
    half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    for scale in _FLOAT16_SCALES if half else (1.0,):
        found.update(dict.fromkeys(found, 0.0))
        value = loss(model, sample)
        if not math.isfinite(value.item()):
            raise InputError(f"expert '{expert}': its loss on {sample.place} is {value.item()}")
        (value * scale).backward()
        if all(math.isfinite(total) for total in found.values()):
            found.update({layer: total / scale for layer, total in found.items()})
            return value.item()
    raise InputError(
        f"expert '{expert}': its gradients on {sample.place} are not finite; try "
        "sensitivity.dtype: float32"
    )


@contextmanager
def _reduced(
    model: PreTrainedModel, layers: dict[str, str], threads: int | None
) -> Iterator[dict[str, float]]:
    """Reduce each gradient to its layer's Σ|θ · g| as soon as it is whole, and free it.

    Yields:
        The sum for every layer; backward passes add to it.
    """
    found = dict.fromkeys(layers.values(), 0.0)

    def reduce(layer: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            found[layer] += _core.sum_abs_product(
                as_bytes(parameter), dtype_name(parameter), as_bytes(gradient),
                dtype_name(gradient), threads,
            )  # fmt: skip
            parameter.grad = None

        return hook

    handles = [
        # A parameter that the model's own code froze has a sensitivity too.
        parameter.requires_grad_(True).register_post_accumulate_grad_hook(reduce(layers[name]))
        for name, parameter in model.named_parameters()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)


def loss(model: PreTrainedModel, sample: Sample) -> torch.Tensor:
    """Mean causal-LM loss over the scored tokens, from float32 logits."""
    scored = torch.tensor(sample.scored)
    targets = torch.tensor(sample.ids)[scored]
    rows = logits(model, sample)[scored - 1]
    # At least float32: a model that runs in float64 is an oracle's.
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(rows, targets)


def logits(model: PreTrainedModel, sample: Sample) -> torch.Tensor:
    """All logits of a sample, in the dtype that the model runs in: [tokens, vocabulary]."""
    ids = torch.tensor([sample.ids])
    # The mask says that every token counts, a pad token among them.
    found: torch.Tensor = model(
        input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
    ).logits[0]
    return found


def as_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """A tensor's memory as bytes, without a copy where it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    found: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return found


def dtype_name(tensor: torch.Tensor) -> str:
    """A tensor's dtype by its name in recipes, such as ``bfloat16``."""
    return str(tensor.dtype).removeprefix("torch.")
