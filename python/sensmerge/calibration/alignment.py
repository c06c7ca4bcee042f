"""Cross-task alignment: how far apart two experts' logits are on the samples of each one's task.

Sens-Merging, Eq. 4. Two models are held at a time, and the logits of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from sensmerge import _core
from sensmerge.calibration.sensitivity import as_bytes, logits
from sensmerge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sensmerge.calibration.samples import Sample


def distance(
    model: PreTrainedModel,
    expert: PreTrainedModel,
    samples: list[Sample],
    *,
    pair: str,
    positions: str,
    form: str,
    threads: int | None,
    advance: Callable[[int], None],
) -> float:
    """g_ij: the mean over task j's samples of the L2 distance between logits (Eq. 4).

    Args:
        model: Model i.
        expert: Expert j.
        samples: The samples of task j.
        pair: Their names, for messages.
        positions: Which positions are compared: ``completion`` or ``all``.
        form: ``token``, the mean of the per-position norms; or ``sequence``, the norm of the whole
            [positions, vocabulary] difference.
        threads: Threads for the reductions; all cores by default.
        advance: Told of every sample that is done.

    Raises:
        InputError: Logits are not finite.
    """
    total = 0.0
    for sample in samples:
        where = sample.logit_positions(positions)
        one, other = rows(model, sample, where), rows(expert, sample, where)
        common = min(one.shape[1], other.shape[1])
        one, other = one[:, :common], other[:, :common]
        norms = _core.row_distances(as_bytes(one), as_bytes(other), "float32", len(where), threads)
        if form == "token":
            value = math.fsum(norms) / len(norms)
        else:
            value = math.sqrt(math.fsum(norm * norm for norm in norms))
        if not math.isfinite(value):
            raise InputError(
                f"{pair}: their logits on {sample.place} are not finite; try "
                "sensitivity.dtype: float32"
            )
        total += value
        advance(1)
    return total / len(samples)


@torch.inference_mode()
def rows(model: PreTrainedModel, sample: Sample, where: list[int]) -> torch.Tensor:
    """Float32 logits at some positions of a sample: [positions, vocabulary]."""
    return logits(model, sample)[torch.tensor(where)].float()
