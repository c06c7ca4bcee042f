"""Merging into memory: the merged tensors are torch tensors or NumPy arrays.

Manifest and kernels are those of :func:`sensmerge.merge`. Inputs may be tensors in memory, which
are neither copied nor changed, or checkpoints on disk, which are mapped. To merge the same models
many times, open them once with :func:`open_models`.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.merging.manifest import Request, request
from sensmerge.models import Models, open_models
from sensmerge.models.dtypes import STORED, TORCH, dtype_name
from sensmerge.recipe import Recipe
from sensmerge.scaling.required import with_measurements

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration

# Rules that were applied and what was found in the inputs; nobody waits for a report here.
_LOG = logging.getLogger("sensmerge")

Tensors = Mapping[str, Any]
Given = Models | Mapping[str, Tensors | _core.Checkpoint] | None


def merge_tensors(
    recipe: Recipe | str | Path,
    tensors: Given = None,
    *,
    calibration: Calibration | str | Path | None = None,
    threads: int | None = None,
    allow_nan: bool = False,
) -> dict[str, Any]:
    """Merge into new tensors.

    Args:
        recipe: The recipe, or its path.
        tensors: Models in memory, by their names in the recipe: each a mapping from names to torch
            tensors (on the CPU, contiguous) or NumPy arrays, such as a state dict. Or all models,
            from :func:`open_models`. Models that are not given are opened from disk.
        calibration: A calibration of the experts, or its path; needed if the recipe has a
            ``sensitivity`` section.
        threads: Threads to use; all cores by default. The result does not depend on it.
        allow_nan: Write NaN and infinite values instead of refusing them.

    Returns:
        Every tensor of the merged model, by name: torch tensors if torch is imported, otherwise
        NumPy arrays. They are quantised only if the recipe's ``out_dtype`` says so.

    Raises:
        InputError: Recipe, models or calibration cannot be used as they are, or the result has a
            dtype that NumPy does not know.
    """
    recipe = Recipe.of(recipe)
    models = _models(recipe, tensors)
    models, found = with_measurements(recipe, calibration, models)
    asked = request(recipe, found, models, threads=threads).dequantised()
    tensors, notes = merged(asked, asked.manifest(), threads=threads, allow_nan=allow_nan)
    _log(notes)
    return tensors


def merge_into(
    model: Any,
    recipe: Recipe | str | Path,
    tensors: Given = None,
    *,
    calibration: Calibration | str | Path | None = None,
    threads: int | None = None,
    allow_nan: bool = False,
) -> None:
    """Merge into the parameters of an existing model.

    The merged values have the parameters' dtype, whatever the recipe says. Buffers of the model
    that are not tensors of the merge keep their values. If this fails or is interrupted, some
    parameters are merged and others are not.

    Args:
        model: A torch module on the CPU whose parameters have the names of the checkpoint's
            tensors; or a mapping from names to torch tensors or NumPy arrays.
        recipe: The recipe, or its path.
        tensors: Models in memory, as for :func:`merge_tensors`. None of them may share memory with
            ``model``.
        calibration: A calibration of the experts, or its path.
        threads: Threads to use; all cores by default.
        allow_nan: Write NaN and infinite values instead of refusing them.

    Raises:
        InputError: As :func:`merge_tensors`; or the model lacks a tensor of the merge, has it in
            another shape, on another device or in a dtype that does not fit, or has a parameter
            that is not in the merge.
    """
    recipe = Recipe.of(recipe)
    models = _models(recipe, tensors)
    models, found = with_measurements(recipe, calibration, models)
    asked = request(recipe, found, models, threads=threads)
    places: Tensors = model if isinstance(model, Mapping) else model.state_dict()
    planned = asked.manifest().tensors
    outputs: dict[str, Any] = {}
    taken: dict[int, str] = {}
    for tensor in planned:
        name = tensor.name
        if name not in places:
            raise InputError(f"'{name}': the model has no such parameter")
        _check_place(name, places[name], tensor.dtype, tensor.shape)
        view = _bytes(name, places[name])
        address = view.ctypes.data
        if taken.setdefault(address, name) != name and view.size:
            # Tied in the model but stored twice: the second one is merged into a copy and dropped.
            view = view.copy()
        outputs[name] = view
    if not isinstance(model, Mapping):
        _check_whole(model, {tensor.name for tensor in planned}, taken)
    asked = asked.with_dtype(_one_dtype(places, [tensor.name for tensor in planned]))
    _log(_run(asked, asked.manifest(), outputs, threads, allow_nan))


def merged(
    asked: Request,
    manifest: _core.Manifest,
    *,
    threads: int | None = None,
    allow_nan: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Carry out a request into new tensors.

    Args:
        asked: The request.
        manifest: Its manifest.
        threads: Threads to use; all cores by default.
        allow_nan: Write NaN and infinite values instead of refusing them.

    Returns:
        Every tensor by name, as :func:`merge_tensors` gives them; and what was found in the inputs.

    Raises:
        InputError: As :func:`merge_tensors`.
    """
    parts = [part for tensor in manifest.tensors for part in tensor.parts]
    tensors = {name: _empty(name, dtype, shape) for name, dtype, shape in parts}
    outputs = {name: _bytes(name, tensor) for name, tensor in tensors.items()}
    return tensors, _run(asked, manifest, outputs, threads, allow_nan)


def checkpoint_of(model: str, tensors: Tensors) -> _core.Checkpoint:
    """Tensors in memory as a checkpoint; they are not copied.

    Args:
        model: The name of the model, for messages.
        tensors: Names to torch tensors (on the CPU, contiguous) or NumPy arrays.

    Raises:
        InputError: A tensor is none of these, or of a dtype that can be neither merged nor copied.
    """
    described = [
        (name, _dtype(f"{model}, tensor '{name}'", tensor), list(tensor.shape),
         _bytes(f"{model}, tensor '{name}'", tensor))
        for name, tensor in tensors.items()
    ]  # fmt: skip
    return _core.Checkpoint.from_memory(model, described)


def _models(recipe: Recipe, given: Given) -> Models:
    if isinstance(given, Models):
        return given
    checkpoints = {
        name: tensors if isinstance(tensors, _core.Checkpoint) else checkpoint_of(name, tensors)
        for name, tensors in (given or {}).items()
    }
    return open_models(recipe, checkpoints)


def _run(
    asked: Request,
    manifest: _core.Manifest,
    outputs: dict[str, Any],
    threads: int | None,
    allow_nan: bool,
) -> list[str]:
    return _core.merge_into(
        manifest, asked.checkpoints, outputs, threads=threads, allow_nan=allow_nan
    )


def _log(notes: list[str]) -> None:
    for note in notes:
        _LOG.warning(note)


def _empty(name: str, dtype: str, shape: list[int]) -> Any:
    known = STORED.get(dtype)
    torch = sys.modules.get("torch")
    if torch is not None and known is not None:
        return torch.empty(shape, dtype=getattr(torch, known.torch))
    import numpy as np

    if known is None or known.numpy is None:
        raise InputError(
            f"'{name}': NumPy has no {dtype}; import torch, or set out_dtype in the recipe"
        )
    return np.empty(shape, dtype=known.numpy)


def _one_dtype(places: Tensors, planned: list[str]) -> str | None:
    found = {
        STORED[dtype].torch: name
        for name in planned
        if name in places and STORED[dtype := _dtype(name, places[name])].merged
    }
    if len(found) > 1:
        described = ", ".join(f"{dtype} ('{name}')" for dtype, name in sorted(found.items()))
        raise InputError(f"the model's parameters are of several dtypes: {described}; use one")
    return next(iter(found), None)


def _check_place(name: str, tensor: Any, dtype: str, shape: list[int]) -> None:
    if list(tensor.shape) != shape:
        raise InputError(
            f"'{name}': the model's parameter has shape {list(tensor.shape)}, "
            f"the merged one {shape}"
        )
    found = _dtype(name, tensor)
    if found != dtype and not (STORED[found].merged and dtype in STORED and STORED[dtype].merged):
        raise InputError(f"'{name}': the model's parameter is {found}, the merged one {dtype}")


def _check_whole(model: Any, planned: set[str], taken: Mapping[int, str]) -> None:
    """Refuse a module with a parameter that would keep its old value."""
    for name, parameter in model.named_parameters():
        if name not in planned and parameter.data_ptr() not in taken:
            raise InputError(f"'{name}': the model has this parameter, and the merge does not")


def _dtype(name: str, tensor: Any) -> str:
    dtype = dtype_name(tensor) if hasattr(tensor, "dtype") else type(tensor).__name__
    if dtype not in TORCH:
        raise InputError(f"{name}: is {dtype}, which can be neither merged nor copied")
    return TORCH[dtype].stored


def _bytes(name: str, tensor: Any) -> Any:
    """A tensor's own memory as a flat uint8 array."""
    _dtype(name, tensor)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        if tensor.device.type != "cpu":
            raise InputError(f"{name}: is on {tensor.device}; merging happens on the CPU")
        if not tensor.is_contiguous():
            raise InputError(f"{name}: is not contiguous; call .contiguous() first")
        return tensor.detach().reshape(-1).view(torch.uint8).numpy()
    import numpy as np

    if not isinstance(tensor, np.ndarray):
        raise InputError(f"{name}: is neither a torch tensor nor a NumPy array")
    if not tensor.flags.c_contiguous:
        raise InputError(f"{name}: is not contiguous; call numpy.ascontiguousarray first")
    if not tensor.dtype.isnative:
        raise InputError(f"{name}: is not in this machine's byte order")
    return tensor.reshape(math.prod(tensor.shape)).view(np.uint8)
