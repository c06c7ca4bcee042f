"""What enters a model's output head, from which its logits can be computed again.

It is small beside activations: one vector a position, where a model keeps several a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from sensmerge.calibration import blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sensmerge.calibration.samples import Sample

# For every sample: the inputs of the output head at the compared positions, [positions, hidden].
States = list[torch.Tensor]


class Entering:
    """Looks at the inputs of one model's output head while the model runs."""

    def __init__(self, model: PreTrainedModel, positions: str) -> None:
        """Find the head.

        Args:
            model: The model.
            positions: Which positions are kept: ``completion`` or ``all``.
        """
        self._head: Any = model.get_output_embeddings()
        self._positions = positions
        self._seen: torch.Tensor | None = None
        self._found: dict[int, torch.Tensor] = {}

    @contextmanager
    def watching(self, *, stop: bool = False) -> Iterator[None]:
        """See what enters the head.

        Args:
            stop: Whether a run of the model ends there.
        """

        def look(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            self._seen = args[0].detach()
            if stop:
                blocks.enough()

        handle = self._head.register_forward_pre_hook(look)
        try:
            yield
        finally:
            handle.remove()
            self._seen = None

    def keep(self, place: int, sample: Sample) -> None:
        """Keep what entered the head for a sample that the model has just run on.

        Args:
            place: The sample's place among all; what was kept for it before is forgotten.
            sample: The sample.
        """
        seen, self._seen = self._seen, None
        assert seen is not None, "the model has run on the sample"
        where = torch.tensor(sample.logit_positions(self._positions))
        self._found[place] = seen[0, where.to(seen.device)].cpu()

    def states(self) -> States:
        """What was kept, in the samples' order."""
        return [self._found[place] for place in sorted(self._found)]
