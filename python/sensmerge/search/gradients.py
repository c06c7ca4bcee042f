"""The gradient of a weighted sum of losses, passed on parameter by parameter and freed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from sensmerge.calibration.backward import Gradient, LossOf, groups, summed_gradients
from sensmerge.calibration.heap import return_freed
from sensmerge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sensmerge.calibration.samples import Sample
    from sensmerge.calibration.stream import Stream

# Called with a parameter's name and its gradient, or with one of several parts that add up to it.
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
        stream: The model divided into blocks, so that only one block's gradients are held at a
            time; None if that is not possible: then the gradients of every sample are passed on as
            parts.
        samples: The samples.
        shares: The factor of each sample's loss in the sum.
        loss_of: The loss of a sample, from its index and its logits.
        look: Called with the gradients.
        most: Bytes that the kept inputs of blocks may take.

    Returns:
        Every sample's loss.

    Raises:
        InputError: A loss is not finite.
    """
    losses = [math.nan] * len(samples)

    def shared_loss(place: int, logits: torch.Tensor) -> torch.Tensor:
        value = loss_of(place, logits)
        losses[place] = value.item()
        if not math.isfinite(losses[place]):
            raise InputError(
                f"the merged model's loss on {samples[place].place} is {losses[place]}"
            )
        return value * shares[place]

    def take(gradient: Gradient) -> None:
        look(gradient.name, gradient.values)

    for group in groups(stream, samples, list(range(len(samples))), most):
        summed_gradients(model, stream, samples, group, shared_loss, take, part_done=return_freed)
    return losses
