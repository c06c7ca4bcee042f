"""Distillation: the divergence of a model's predictions from those of each expert on its own task.

Completions are not needed: with ``positions: all``, samples may consist of prompts alone.
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

    Every expert runs once, up to its output head. The head's inputs, which are small, are kept.
    """

    def __init__(self, tasks: list[Task], options: Sensitivity, device: str = "cpu") -> None:
        """Run every expert on its samples.

        Args:
            tasks: The experts' tasks.
            options: The dtype in which experts run.
            device: The torch device on which they run.
        """
        self._head: dict[int, Head] = {}
        self._states: dict[int, torch.Tensor] = {}
        runner = Runner("auto", device, options.dtype)
        for task in tasks:
            opened = runner.open(task.source)
            samples = [*task.search, *task.validation]
            found = runner.states(opened, samples, "completion", lambda _: None)
            head = Head(opened.model, opened.stream)
            for sample, states in zip(samples, found, strict=True):
                self._head[id(sample)], self._states[id(sample)] = head, states

    def divergence(self, sample: Sample, logits: torch.Tensor) -> torch.Tensor:
        """Mean over the scored positions of KL(expert ‖ model), in nats.

        If the vocabularies differ in size, their common first tokens are compared.

        Args:
            sample: One of the experts' samples.
            logits: The model's logits, [tokens, vocabulary].
        """
        # A copy, since tensors made in inference mode cannot take part in a backward pass.
        wanted = self._head[id(sample)].logits(self._states[id(sample)]).clone()
        wanted = wanted.to(logits.device)
        where = torch.tensor(sample.logit_positions("completion"), device=logits.device)
        found = logits[where]
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        common = min(wanted.shape[1], found.shape[1])
        teacher = torch.log_softmax(wanted[:, :common].to(found.dtype), dim=1)
        student = torch.log_softmax(found[:, :common], dim=1)
        return torch.nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
