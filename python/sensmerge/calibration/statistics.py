"""What methods need to know of every model beside its weights, tensor by tensor.

Two kinds:

- ``fisher``: the mean over samples of the squared derivative of the loss by every entry, from the
  backward passes that measure sensitivity (Matena and Raffel 2022; the labels are the samples' own,
  so that it is the *empirical* Fisher information). It is written in bfloat16, divided by its root
  mean square over the model.
- ``gram``: the mean of ``x xᵀ`` over the inputs ``x`` of every linear layer but the output head, at
  all tokens of the samples (Jin et al. 2023), in float32. Layers with one input share a matrix.

Sums are kept in float32 in a temporary file, so that no model's worth of memory is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from sensmerge import _core
from sensmerge.calibration import loading
from sensmerge.calibration.record import StatisticsFile
from sensmerge.calibration.side_files import Entry, write_safetensors
from sensmerge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Entries that are worked on at a time.
_PIECE = 1 << 24


class _Sums:
    """Float32 tensors of zeros in one temporary file, to be added to."""

    def __init__(self, folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        total = sum(map(math.prod, shapes.values()))
        file = np.memmap(folder / "sums", dtype=np.float32, mode="w+", shape=(max(1, total),))
        self.of: dict[str, torch.Tensor] = {}
        start = 0
        for name, shape in shapes.items():
            end = start + math.prod(shape)
            self.of[name] = torch.from_numpy(file[start:end]).reshape(shape)
            start = end


class Squares:
    """Sums of squared gradients of one model, for all of its parameters."""

    def __init__(self, model: PreTrainedModel, folder: Path, samples: int) -> None:
        """Set out to sum.

        Args:
            model: The model.
            folder: Where the temporary file is kept; it has four bytes a parameter.
            samples: The number of samples whose gradients will be added.

        Raises:
            InputError: The model is run in float16, in which gradients underflow.
        """
        if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
            raise InputError(
                "gradients in float16 are too coarse for Fisher information; write "
                "sensitivity.dtype: float32"
            )
        shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}
        self._model = model
        self._sums = _Sums(folder, shapes)
        self._samples = samples

    def add(self, name: str, gradient: torch.Tensor, rows: torch.Tensor | None = None) -> None:
        """Add the squares of a sample's gradient.

        Args:
            name: The parameter.
            gradient: The gradient, or some of its rows.
            rows: Which rows these are; None for all.
        """
        total = self._sums.of[name]
        if rows is not None:
            total[rows.cpu()] += gradient.float().square().cpu()
            return
        flat = total.reshape(-1).split(_PIECE)
        for sums, piece in zip(flat, gradient.reshape(-1).split(_PIECE), strict=True):
            sums += piece.float().square().cpu()

    def write(self, path: Path, checkpoint: _core.Checkpoint) -> StatisticsFile:
        """Write the mean of the squares, divided by its root mean square over the model.

        Args:
            path: The file.
            checkpoint: The model's tensors, whose names are used.

        Raises:
            InputError: It cannot be written, or all gradients are 0.
        """
        squares, count = 0.0, 0
        for total in self._sums.of.values():
            for piece in total.reshape(-1).split(_PIECE):
                squares += piece.double().square().sum().item()
            count += total.numel()
        scale = math.sqrt(squares / max(1, count))
        if scale == 0:
            raise InputError(f"{path}: all gradients are 0, so that no entry counts")
        stored = {tensor.name for tensor in checkpoint.tensors}
        entries = []
        for name, total in self._sums.of.items():
            for home, sums in loading.stored_tensors(self._model, name, total, stored).items():
                pieces = _pieces(sums, lambda piece: (piece / scale).bfloat16().view(torch.int16))
                entries.append(Entry(home, "BF16", tuple(sums.shape), pieces))
        write_safetensors(path, entries, {"statistic": "fisher"})
        tensors = {entry.name: entry.name for entry in entries}
        return _described("fisher", path, tensors, scale / self._samples)


class Grams:
    """Sums of ``x xᵀ`` over the inputs of one model's linear layers."""

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        """Set out to sum.

        Args:
            model: The model.
            folder: Where the temporary file is kept; it has four bytes an entry.

        Raises:
            InputError: The model has no linear layers beside its output head.
        """
        head = model.get_output_embeddings()
        self._layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
        if not self._layers:
            raise InputError(
                f"{type(model).__name__}: has no linear layers of torch beside its output head, so "
                "that their inputs cannot be measured"
            )
        shapes: dict[str, tuple[int, ...]] = {
            name: (layer.in_features, layer.in_features) for name, layer in self._layers.items()
        }
        self._model = model
        self._sums = _Sums(folder, shapes)
        self._tokens = dict.fromkeys(shapes, 0)
        # By layer: the one before it that had the same input.
        self._shares: dict[str, str] = {}
        self._last: tuple[str, torch.Tensor] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Add the inputs of every layer that is run."""
        handles = [
            layer.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            self._last = None
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], None]:
        def add(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found = args[0] if args else kwargs["input"]
            if name in self._shares:
                return
            if self._last is not None and self._last[1] is found and not self._tokens[name]:
                self._shares[name] = self._last[0]
                return
            self._last = (name, found)
            x = found.detach().reshape(-1, found.shape[-1]).float()
            self._sums.of[name] += (x.T @ x).cpu()
            self._tokens[name] += len(x)

        return add

    def write(self, path: Path, checkpoint: _core.Checkpoint) -> StatisticsFile:
        """Write the means.

        Args:
            path: The file.
            checkpoint: The model's tensors, whose names are used.

        Raises:
            InputError: It cannot be written.
        """
        stored = {tensor.name for tensor in checkpoint.tensors}
        entries: list[Entry] = []
        tensors: dict[str, str] = {}
        for name in self._layers:
            owner = self._shares.get(name, name)
            if not self._tokens[owner]:
                continue
            weight = f"{name}.weight"
            parameter = self._model.get_parameter(weight)
            found = loading.stored_tensors(self._model, weight, parameter, stored)
            tensors |= dict.fromkeys(found, owner)
            if owner == name:
                mean = self._sums.of[name].div_(self._tokens[name])
                entries.append(Entry(name, "F32", tuple(mean.shape), _pieces(mean)))
        write_safetensors(path, entries, {"statistic": "gram"})
        return _described("gram", path, tensors, 1.0)


def _pieces(
    tensor: torch.Tensor,
    coded: Callable[[torch.Tensor], torch.Tensor] = lambda piece: piece,
) -> Callable[[], Iterator[bytes]]:
    """A tensor's bytes, a piece at a time, each coded just before it is written."""

    def pieces() -> Iterator[bytes]:
        for piece in tensor.contiguous().reshape(-1).split(_PIECE):
            yield coded(piece).numpy().tobytes()

    return pieces


def _described(kind: str, path: Path, tensors: dict[str, str], scale: float) -> StatisticsFile:
    fingerprint = _core.Checkpoint(str(path)).fingerprint()
    return StatisticsFile(kind, path.name, fingerprint, tensors, scale)


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """A folder for sums beside a file, removed at the end."""
    with TemporaryDirectory(dir=beside.parent, prefix=f".{beside.name}-sums-") as folder:
        yield Path(folder)
