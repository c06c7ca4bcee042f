"""The weights of a model with adapters: the core writes what they change into memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sensmerge import _core
from sensmerge.calibration.sensitivity import as_bytes

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from sensmerge.models import Model

# For parameters whose weights are written into memory only while they are needed: by their ids,
# what writes them.
Late = Mapping[int, Callable[[], torch.Tensor]]


@dataclass(frozen=True)
class Adapted:
    """The tensors of a model that its adapters change.

    Attributes:
        model: The model.
        tensors: The names of these tensors.
    """

    model: Model
    tensors: tuple[str, ...]

    @classmethod
    def of(cls, model: Model | None) -> Adapted | None:
        """The changed tensors of a model; None if it has no adapters."""
        if model is None or not model.changes:
            return None
        return cls(model, tuple(dict.fromkeys(change.tensor for change in model.changes)))

    def read(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A tensor with its changes, rounded to the dtype that it is stored in.

        Args:
            name: Its name.
            like: The tensor without its changes.
        """
        shape = self.model.shapes[name]
        tensor = torch.empty(shape, dtype=like.dtype)
        checkpoints = self.model.checkpoints
        view = json.dumps(self.model.plain(checkpoints))
        _core.read_into(
            view, checkpoints, {name: as_bytes(tensor)}, threads=torch.get_num_threads()
        )
        return tensor

    def is_resized(self, name: str, before: torch.Tensor) -> bool:
        """Whether a changed tensor has another shape than it had before."""
        return list(before.shape) != self.model.shapes[name]

    def late(self, model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> Late:
        """The parameters whose weights can be written into memory while they are needed.

        Those that are views of a stored tensor; others were converted when the model was loaded.

        Args:
            model: The model, loaded from ``weights``.
            weights: Its tensors without changes.
        """
        homes = {
            weights[name].data_ptr(): name
            for name in self.tensors
            if weights[name].numel() and not self.is_resized(name, weights[name])
        }

        def reader(name: str) -> Callable[[], torch.Tensor]:
            return lambda: self.read(name, weights[name])

        return {
            id(parameter): reader(homes[parameter.data_ptr()])
            for parameter in model.parameters()
            if parameter.data_ptr() in homes
        }

    def missing(
        self, model: PreTrainedModel, weights: Mapping[str, torch.Tensor], late: Late
    ) -> list[str]:
        """The changed tensors that no parameter of ``late`` is a view of."""
        found = {p.data_ptr() for p in model.parameters() if id(p) in late}
        return [name for name in self.tensors if weights[name].data_ptr() not in found]


def data_of(tensor: torch.Tensor | nn.Parameter, late: Late) -> Any:
    """A parameter's weights, written into memory where they have to be."""
    return late[id(tensor)]() if id(tensor) in late else tensor.data
