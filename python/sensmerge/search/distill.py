"""Distillation: how far a model's predictions are from those of each expert on its own task.

No completions are needed: with ``positions: all``, samples may be prompts alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sensmerge.calibration.alignment import Head
from sensmerge.calibration.runner import Runner

if TYPE_CHECKING:
    from sensmerge.calibration.samples import Sample
    from sensmerge.recipe import Sensitivity
    from sensmerge.search.tasks import Task


class Teachers:
    """The predictions of every expert on its own task's samples.

    Every expert runs once, as far as its output head. The head's inputs are small and are kept.
    """

    def __init__(self, tasks: list[Task], options: Sensitivity) -> None:
        """Run every expert on its samples."""
        self._head: dict[int, Head] = {}
        self._states: dict[int, torch.Tensor] = {}
        runner = Runner("auto", "cpu", options.dtype)
        for task in tasks:
            opened = runner.open(task.source)
            samples = [*task.search, *task.validation]
            found = runner.states(opened, samples, "completion", lambda _: None)
            head = Head(opened.model, opened.stream)
            for sample, states in zip(samples, found, strict=True):
                self._head[id(sample)], self._states[id(sample)] = head, states

    def divergence(self, sample: Sample, logits: torch.Tensor) -> torch.Tensor:
        """Mean over the scored positions of KL(expert ‖ model), in nats.

        Vocabularies of different size are compared on their common prefix.

        Args:
            sample: One of the experts' samples.
            logits: The model's, [tokens, vocabulary].
        """
        # A copy: tensors made in inference mode may take no part in a backward pass.
        wanted = self._head[id(sample)].logits(self._states[id(sample)]).clone()
        where = torch.tensor(sample.logit_positions("completion"))
        found = logits[where]
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        common = min(wanted.shape[1], found.shape[1])
        teacher = torch.log_softmax(wanted[:, :common].to(found.dtype), dim=1)
        student = torch.log_softmax(found[:, :common], dim=1)
        return torch.nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
