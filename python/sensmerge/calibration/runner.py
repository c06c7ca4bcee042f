"""Runs models as the user asks: whole or block by block, on a device, in a dtype."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sensmerge import _core
from sensmerge.calibration import alignment, loading, sensitivity
from sensmerge.calibration.adapted import Late
from sensmerge.calibration.mapped import dequantised_bytes
from sensmerge.calibration.stream import Stream
from sensmerge.errors import InputError, first_line
from sensmerge.models.dtypes import STORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sensmerge.calibration.entering import Entering, States
    from sensmerge.calibration.samples import Sample
    from sensmerge.calibration.statistics import Squares

MEMORY = ("auto", "whole", "stream")

# The share of free memory that weights may take before a model is run block by block.
_SHARE = 0.8

# The share of free memory that the kept inputs of blocks may take.
KEPT_SHARE = 0.25

# The share of a model's weights that may be held in memory, though it is run block by block,
# before the user is told.
_SMALL = 0.1


@dataclass(frozen=True)
class Opened:
    """A model, ready to be run.

    Attributes:
        name: What the recipe calls it.
        model: The model.
        layers: The layers of its parameters.
        stream: The model taken apart; None where that is not possible.
        streamed: Whether it is run block by block.
    """

    name: str
    model: PreTrainedModel
    layers: loading.Layers
    stream: Stream | None
    streamed: bool


class Runner:
    """Opens models and runs them as asked.

    Attributes:
        notes: Remarks for the user: what could not be done as asked.
    """

    def __init__(self, memory: str, device: str, dtype: str) -> None:
        """Check the options.

        Args:
            memory: ``whole``, ``stream`` for block by block, or ``auto``: block by block where the
                weights do not fit into free memory.
            device: A torch device, such as ``cuda``.
            dtype: ``stored`` or ``float32``.

        Raises:
            InputError: There is no such memory mode or device.
        """
        if memory not in MEMORY:
            raise InputError(f"memory: '{memory}' is none of {', '.join(MEMORY)}")
        self._memory = memory
        self._device = device_of(device)
        self._dtype = dtype
        self.notes: list[str] = []

    def open(self, source: loading.Source) -> Opened:
        """Load an expert.

        Raises:
            InputError: It cannot be loaded, or not be run block by block where that is asked.
        """
        weights = self._weights(source.path)
        streamed = self._memory == "stream"
        if self._memory == "auto":
            streamed = weights > _SHARE * free_memory(self._device)
        late: Late = {}
        if streamed:
            model, late = loading.load_streamed(source)
        else:
            model = loading.load(source, self._dtype)
        layers = loading.parameter_layers(model, source.path)
        dtype = torch.float32 if self._dtype == "float32" else None
        try:
            stream = Stream(model, layers.of, device=self._device, dtype=dtype, late=late)
        except InputError as error:
            if self._memory == "stream":
                raise InputError(f"{source.path}: {error}") from None
            if streamed:
                model = loading.load(source, self._dtype)
                self._note(f"expert '{source.name}' was run whole, though memory is short: {error}")
            return Opened(source.name, _moved(model, self._device), layers, None, False)
        if streamed:
            self._note_dequantised(source)
        copied = loading.copied_bytes(model)
        if streamed and copied > _SMALL * weights:
            self._note(
                f"expert '{source.name}': {copied / 1e9:.1f} GB of its weights are converted when "
                "they are loaded and were held in memory, though it was run block by block"
            )
        if not streamed:
            model = _moved(model, self._device)
        return Opened(source.name, model, layers, stream, streamed)

    def sensitivity(
        self,
        opened: Opened,
        samples: list[Sample],
        threads: int | None,
        advance: Callable[[int], None],
        by: str,
        squares: Squares | None = None,
        entering: Entering | None = None,
    ) -> tuple[dict[str, float], float]:
        """Σ|θ · g| or Σ g² of every layer, and the mean loss."""
        return sensitivity.measure(
            opened.model,
            opened.layers.of,
            samples,
            expert=opened.name,
            threads=threads,
            advance=advance,
            stream=opened.stream if opened.streamed else None,
            most=KEPT_SHARE * free_memory(self._device),
            by=by,
            squares=squares,
            entering=entering,
        )

    def states(
        self,
        opened: Opened,
        samples: list[Sample],
        positions: str,
        advance: Callable[[int], None],
    ) -> States:
        """The inputs of the model's output head, for every sample."""
        if opened.streamed and opened.stream is not None:
            return alignment.states_streamed(opened.stream, samples, positions, advance=advance)
        return alignment.states(opened.model, samples, positions, advance=advance)

    def _note(self, note: str) -> None:
        # Once: every model is opened twice.
        if note not in self.notes:
            self.notes.append(note)

    def _note_dequantised(self, source: loading.Source) -> None:
        size = dequantised_bytes(_core.Checkpoint(str(source.path)))
        if size:
            self._note(
                f"expert '{source.name}' is quantised: {size / 1e9:.1f} GB of its weights were "
                f"dequantised into a temporary file in {tempfile.gettempdir()}; TMPDIR names "
                "another folder"
            )

    def _weights(self, path: Path) -> int:
        """Bytes of a model's weights in the dtype it is run in."""
        checkpoint = _core.Checkpoint(str(path))
        plain = [tensor for tensor in checkpoint.tensors if tensor.code is None]
        quantised = dequantised_bytes(checkpoint)
        if self._dtype != "float32":
            return quantised + sum(tensor.nbytes for tensor in plain)
        # Quantised weights are dequantised to 16 bits, and widened from there.
        widened = sum(tensor.nbytes * _growth(tensor.dtype) for tensor in plain)
        return quantised * _growth("BF16") + widened


def _growth(stored: str) -> int:
    """How many times as large a dtype's tensors become when they are widened to float32."""
    dtype = STORED.get(stored)
    return max(1, STORED["F32"].size // dtype.size) if dtype is not None and dtype.merged else 1


def _moved(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    moved: PreTrainedModel = model.to(device)  # type: ignore[arg-type]
    return moved


def device_of(name: str) -> torch.device:
    """The torch device of a name, such as ``cuda``.

    Raises:
        InputError: There is no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: '{name}' cannot be used: {first_line(error)}") from None
    return device


def free_memory(device: torch.device) -> float:
    """Bytes of memory that are free on a device; infinite where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return float(found[0]) * 1024 if found else float("inf")
