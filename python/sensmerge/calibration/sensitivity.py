"""Task-specific sensitivity: s^l = Σ over samples and the layer's parameters of |θ · ∂L/∂θ|.

Sens-Merging, Eq. 1 and 3. The absolute value is taken of every parameter for every sample, before
any sum. Gradients are reduced one parameter at a time as the backward pass yields them, and freed:
a full set of gradients is never held.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from sensmerge import _core
from sensmerge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sensmerge.calibration.samples import Sample


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

    def reduce(layer: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            sums[layer] += _core.sum_abs_product(
                as_bytes(parameter), dtype_name(parameter), as_bytes(gradient),
                dtype_name(gradient), threads,
            )  # fmt: skip
            parameter.grad = None

        return hook

    handles = [
        parameter.register_post_accumulate_grad_hook(reduce(layers[name]))
        for name, parameter in model.named_parameters()
    ]
    losses = []
    try:
        for sample in samples:
            value = loss(model, sample)
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                raise InputError(f"expert '{expert}': its loss on {sample.place} is {losses[-1]}")
            value.backward()
            if not all(math.isfinite(total) for total in sums.values()):
                raise InputError(
                    f"expert '{expert}': its gradients on {sample.place} are not finite; try "
                    "sensitivity.dtype: float32"
                )
            advance(1)
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    return sums, math.fsum(losses) / len(losses)


def loss(model: PreTrainedModel, sample: Sample) -> torch.Tensor:
    """Mean causal-LM loss over the scored tokens, from float32 logits."""
    logits = model(input_ids=torch.tensor([sample.ids]), use_cache=False).logits[0]
    scored = torch.tensor(sample.scored)
    targets = torch.tensor(sample.ids)[scored]
    # At least float32: a model that runs in float64 is an oracle's.
    rows = logits[scored - 1]
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(rows, targets)


def as_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """A tensor's memory as bytes, without a copy where it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    found: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return found


def dtype_name(tensor: torch.Tensor) -> str:
    """A tensor's dtype by its name in recipes, such as ``bfloat16``."""
    return str(tensor.dtype).removeprefix("torch.")
