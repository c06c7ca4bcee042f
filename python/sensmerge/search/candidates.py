"""A merged model in memory, which is merged again for every choice of coefficients.

On the processor the model's parameters are the buffers that are merged into, so that a candidate
costs one sweep over the mapped inputs and no copy. Another device gets a copy of every merge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sensmerge import _core
from sensmerge.calibration import loading
from sensmerge.calibration.mapped import torch_dtype
from sensmerge.calibration.sensitivity import as_bytes
from sensmerge.errors import InputError
from sensmerge.models.dtypes import dtype_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sensmerge.merging.manifest import Request
    from sensmerge.models import Models


_CPU = torch.device("cpu")


class Candidate:
    """The merge of a recipe's models.

    Attributes:
        model: The merged model, ready to run. Every merge changes its parameters.
    """

    def __init__(
        self,
        models: Models,
        asked: Request,
        *,
        dtype: str,
        device: torch.device = _CPU,
        threads: int | None,
    ) -> None:
        """Merge for the first time.

        Args:
            models: The recipe's models.
            asked: The merge.
            dtype: The dtype in which candidates run: ``stored`` or ``float32``.
            device: The device on which candidates run; they are merged on the processor.
            threads: Threads to merge with; all cores by default.

        Raises:
            InputError: The models cannot be merged, or the result cannot be run.
        """
        self._models = models
        self._threads = threads
        self._device = device
        self._path = models.template.path
        if not self._path.is_dir():
            raise InputError(f"{self._path}: a search runs merged models and needs the folder")
        self._dtype = torch.float32 if dtype == "float32" else _running(self._path)
        described = {tensor.name: tensor for tensor in asked.manifest().tensors}
        same = asked.rows == models.template.token_rows and not models.template.changes
        self._rows = None if same else asked.rows
        # In the order of the file. Tensors that are copied keep their dtype.
        self._tensors = {
            tensor.name: torch.empty(
                list(described[tensor.name].shape),
                dtype=self._dtype
                if described[tensor.name].merged
                else torch_dtype(self._path, tensor),
            )
            for tensor in models.template.checkpoint.tensors
        }
        self._outputs = {name: as_bytes(tensor) for name, tensor in self._tensors.items()}
        self._prepared: _core.Prepared | None = None
        self._merge(asked)
        self.model: PreTrainedModel = self._assembled()
        places = {
            tensor.data_ptr(): name for name, tensor in self._tensors.items() if tensor.numel()
        }
        # The tensor that each parameter is; of no other parameters than those below.
        self._homes = {
            name: places[parameter.data_ptr()]
            for name, parameter in self.model.named_parameters()
            if parameter.data_ptr() in places
        }
        # If transformers converts weights when it loads them, they are converted after every merge.
        self._converted = any(name not in self._homes for name, _ in self.model.named_parameters())
        # What was merged into, which stays on the processor.
        self._merged = [parameter.data for parameter in self.model.parameters()]
        if device.type != "cpu":
            self.model.to(device)  # type: ignore[arg-type]

    def merge(self, asked: Request) -> None:
        """Merge with the numbers of another request."""
        self._merge(asked)
        if self._converted:
            self._merged = [parameter.data for parameter in self._assembled().parameters()]
        for parameter, merged in zip(self.model.parameters(), self._merged, strict=True):
            # On the processor nothing is copied.
            parameter.data = merged.to(self._device)

    def derivatives(self, parameter: str, gradient: torch.Tensor) -> dict[str, list[float]]:
        """The derivatives of a loss by each expert's weights of the tensors behind a parameter.

        Args:
            parameter: The parameter's name in the model.
            gradient: The gradient of the loss by the parameter.

        Returns:
            For every tensor of the checkpoint behind the parameter: one number per expert.
        """
        assert self._prepared is not None
        home = self._homes.get(parameter)
        gradient = gradient.cpu()
        if home is not None:
            tensors = {home: gradient}
        else:
            tensors = loading.stored_tensors(self.model, parameter, gradient, self._tensors)
        return {
            name: self._prepared.derivatives(name, as_bytes(g), dtype_name(g))
            for name, g in tensors.items()
        }

    def _merge(self, asked: Request) -> None:
        manifest = asked.with_dtype(dtype_name(torch.empty(0, dtype=self._dtype))).manifest()
        if self._prepared is None or not self._prepared.reweigh(manifest):
            # Freed before another is made, since both would hold thresholds and masks.
            self._prepared = None
            self._prepared = _core.Prepared(manifest, asked.checkpoints, threads=self._threads)
        self._prepared.merge_into(self._outputs)

    def _assembled(self) -> PreTrainedModel:
        return loading.assemble(self._path, dict(self._tensors), self._dtype, self._rows)


def _running(path: Any) -> torch.dtype:
    stored = loading.stored_dtype(path)
    # In float16, gradients would often underflow.
    return torch.float32 if stored == torch.float16 else stored
