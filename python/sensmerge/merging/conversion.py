"""One model in another form: from pickles, with adapters, in another dtype or other files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.merging import quantised
from sensmerge.merging.config import with_dtype
from sensmerge.merging.disk import DEFAULT_SHARD_SIZE, MergeResult, carry_out
from sensmerge.merging.plan import parse_size
from sensmerge.merging.sidecars import OUTPUT_FILE, Sidecars
from sensmerge.merging.views import View
from sensmerge.models.folders import read_config
from sensmerge.models.opened import open_model
from sensmerge.models.pickles import unpickling
from sensmerge.models.quantised import refusal
from sensmerge.models.side_files import side_files
from sensmerge.reading import is_folder, own_file
from sensmerge.recipe.fields import OutDtype
from sensmerge.refusals import unknown_value


def convert(
    model: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    threads: int | None = None,
    progress: bool = True,
    sync: bool = True,
    overwrite: bool = False,
    allow_nan: bool = False,
    unpickle: bool = False,
    committed: Callable[[], object] | None = None,
) -> MergeResult:
    """Write a model in another form: as safetensors, in another dtype, with adapters merged.

    All files beside the weights are copied, and the config's dtype is changed with the weights'.

    Args:
        model: The model's folder, weight file or Hub id; ``MODEL+ADAPTER`` adds a LoRA adapter to
            it.
        out: The folder to write. It must not exist, or be empty, unless ``overwrite`` is set.
        dtype: Dtype of all tensors of floats, such as ``bfloat16``; ``float8_e4m3fn`` or ``int4``
            quantises matrices. None keeps each tensor as it is stored.
        max_shard_size: Largest size of a weight file's data, in bytes or as text such as ``5GB``.
        threads: Threads to use; all cores by default. The output does not depend on it.
        progress: Show a progress bar on a terminal and plain lines elsewhere.
        sync: Flush the output to disk before returning.
        overwrite: Replace an earlier output in ``out``; the input is never replaced.
        allow_nan: Write NaN and infinite values instead of refusing them.
        unpickle: Read a model that is stored as pickles (``pytorch_model.bin``) in a process of its
            own, through a temporary copy beside ``out``. Needs torch.
        committed: Called once, on another thread, when Ctrl-C cannot cancel it any more.

    Returns:
        A description of the written model.

    Raises:
        InputError: The model or the output folder cannot be used as they are.
        OSError: A file cannot be read or written.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is left behind.
    """
    shard_bytes = parse_size(max_shard_size)
    names = list(get_args(OutDtype))
    if dtype is not None and dtype not in names:
        raise InputError(f"dtype: {unknown_value(dtype, names)}")
    with unpickling(out, enabled=unpickle, progress=progress) as unpickled:
        opened = open_model(str(model), Path(), progress=progress)
        path, checkpoint, config = opened.path, opened.checkpoint, opened.config
        inputs = [*opened.paths, *unpickled.copies]
        _core.check_output(str(out), [str(path) for path in inputs], overwrite)
        if opened.adapters and checkpoint.quantised is not None and dtype is None:
            raise InputError(
                f"dtype: {path} is quantised, and adapters change what it stands for; name the "
                "output's dtype, such as bfloat16"
            )
        if dtype is not None and (reason := refusal(path, checkpoint)) is not None:
            raise InputError(reason)
        view = json.dumps(View(opened).plain(opened.checkpoints, None))
        manifest = _core.Manifest.conversion(view, opened.checkpoints, dtype)
        beside = _beside(path, config, dtype, manifest, checkpoint)
        notes = [*unpickled.notes, *checkpoint.notes, *checkpoint.suspicions()]
        notes += [*opened.adapter_notes, *beside.notes]
        return carry_out(
            manifest,
            opened.checkpoints,
            out,
            shard_bytes,
            beside,
            notes,
            action="converting",
            threads=threads,
            progress=progress,
            sync=sync,
            overwrite=overwrite,
            allow_nan=allow_nan,
            committed=committed,
        )


def _beside(
    path: Path,
    config: dict[str, Any],
    dtype: str | None,
    manifest: _core.Manifest,
    checkpoint: _core.Checkpoint,
) -> Sidecars:
    """All files beside the weights, the config with the new dtype."""
    if not is_folder(path):
        return Sidecars(notes=[f"{path}: is a single file: nothing beside it was copied"])
    quantised.check_config(path, config, manifest)
    copies = {file.name: str(file) for file in side_files(path) if file.name != OUTPUT_FILE}
    texts, notes = [], []
    changed = with_dtype(copy.deepcopy(config), dtype)
    # Without a dtype the parts of quantised tensors are copied.
    if dtype is not None:
        quantised.describe(changed, checkpoint, manifest, as_template=False)
        notes += quantised.notes(str(path), config)
    if changed != read_config(path):
        copies.pop("config.json")
        texts.append(("config.json", json.dumps(changed, indent=2) + "\n"))
    if own_file(path, "config.json") is None:
        notes.append(f"{path}: has no config.json, so transformers cannot load the result")
    return Sidecars(list(copies.items()), texts, [], notes)
