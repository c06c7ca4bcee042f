"""Cross-task alignment: how far apart two experts' logits are on the samples of each one's task.

Sens-Merging, Eq. 4. Every model runs once over all samples, as far as its output head; over its own
it ran when its sensitivity was measured. The head's inputs at the compared positions are small and
are kept; logits are computed from them for one sample and two models at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from sensmerge import _core
from sensmerge.calibration import blocks as inner
from sensmerge.calibration.entering import Entering, States
from sensmerge.calibration.sensitivity import as_bytes
from sensmerge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sensmerge.calibration.samples import Sample
    from sensmerge.calibration.stream import Stream
    from sensmerge.calibration.vocabularies import Columns


@torch.inference_mode()
def states(
    model: PreTrainedModel,
    samples: list[Sample],
    positions: str,
    *,
    advance: Callable[[int], None],
) -> States:
    """Run a model over samples as far as its output head.

    Args:
        model: The model.
        samples: The samples.
        positions: Which positions are kept: ``completion`` or ``all``.
        advance: Told of every sample that is done.
    """
    entering = Entering(model, positions)
    with entering.watching(stop=True):
        for place, sample in enumerate(samples):
            inner.run(model, sample.ids)
            entering.keep(place, sample)
            advance(1)
    return entering.states()


@torch.no_grad()
def states_streamed(
    stream: Stream,
    samples: list[Sample],
    positions: str,
    *,
    advance: Callable[[int], None],
) -> States:
    """The same as :func:`states`, block by block, for all samples at once."""
    entering = Entering(stream.model, positions)
    with stream.outer_on_device():
        calls = [stream.enter(sample.ids) for sample in samples]
        _, last = stream.forward(calls, keep=False)
        with entering.watching(stop=True):
            for place, (sample, call, hidden) in enumerate(zip(samples, calls, last, strict=True)):
                stream.leave(call, hidden)
                entering.keep(place, sample)
                advance(1)
    return entering.states()


class Head:
    """The end of a model, after blocks and final norm: the output head, and what follows it."""

    def __init__(self, model: PreTrainedModel, stream: Stream | None) -> None:
        """Keep a model for its head alone; the weights of its blocks are freed."""
        self._model = model
        self._stream = stream
        if stream is not None:
            stream.keep_outer()

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits, [positions, vocabulary], of inputs of the head, [positions, hidden]."""
        head: Any = self._model.get_output_embeddings()
        entering = hidden.to(head.weight.device)[None]
        handle = head.register_forward_pre_hook(lambda _, args: (entering, *args[1:]))
        try:
            # The head's input is replaced, whatever the model ran on: one token is cheapest.
            if self._stream is None:
                output = inner.run(self._model, [0])
            else:
                output = self._stream.without_blocks([0])
        finally:
            handle.remove()
        found: torch.Tensor = output.logits[0].float().cpu()
        return found


def distance(
    one: Head,
    other: Head,
    states_of_one: States,
    states_of_other: States,
    samples: list[Sample],
    *,
    pair: str,
    form: str,
    threads: int | None,
    columns: list[Columns] | None = None,
) -> float:
    """g_ij: the mean over task j's samples of the L2 distance between logits (Eq. 4).

    Args:
        one: The head of model i.
        other: The head of expert j.
        states_of_one: The inputs of model i's head, for every sample of task j.
        states_of_other: Those of expert j's head.
        samples: The samples of task j.
        pair: The models' names, for messages.
        form: ``token``, the mean of the per-position norms; or ``sequence``, the norm of the whole
            [positions, vocabulary] difference.
        threads: Threads for the reductions; all cores by default.
        columns: The logits that both have for the same tokens; None for their common first ones.

    Raises:
        InputError: Logits are not finite.
    """
    total = 0.0
    for sample, first, second in zip(samples, states_of_one, states_of_other, strict=True):
        a, b = one.logits(first), other.logits(second)
        compared = [(0, 0, min(a.shape[1], b.shape[1]))] if columns is None else columns
        norms = _core.row_distances(
            as_bytes(a), as_bytes(b), "float32", len(a), compared, threads=threads
        )
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
    return total / len(samples)
