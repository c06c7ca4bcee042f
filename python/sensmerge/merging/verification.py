"""Whether an output folder holds what its merge wrote."""

from __future__ import annotations

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge import _core
from sensmerge.document import Documented
from sensmerge.errors import InputError
from sensmerge.merging.manifest import request
from sensmerge.merging.sidecars import CALIBRATION_FILE, OUTPUT_FILE, UNFINISHED_MARKER
from sensmerge.models import open_models
from sensmerge.models.inspection import human_size
from sensmerge.reading import mode_of, object_of, opened, own_file
from sensmerge.scaling.required import with_measurements

if TYPE_CHECKING:
    from sensmerge.recipe import Recipe


@dataclass(frozen=True)
class Verification(Documented):
    """What was found in an output folder.

    Attributes:
        output: The folder.
        files: Number of files that were hashed.
        bytes: Their size in bytes.
        faults: One sentence for each file or tensor that is not what the merge wrote.
        unlisted: Names of files that the merge did not write.
        recipe: The recipe that was merged again, and its output compared; None without one.
    """

    output: Path
    files: int
    bytes: int
    faults: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    recipe: Path | None = None

    @property
    def notes(self) -> list[str]:
        """Notes for the user."""
        if not self.unlisted:
            return []
        return [f"not written by the merge: {', '.join(self.unlisted)}"]

    def merged_again(self, recipe: Recipe, *, threads: int | None = None) -> Verification:
        """The same, with the faults that :func:`check` finds."""
        faults = check(self.output, recipe, threads=threads)
        return replace(self, recipe=recipe.path, faults=[*self.faults, *faults])

    def describe(self) -> str:
        """One line for the terminal, where there is no fault."""
        again = "" if self.recipe is None else f"; merged again from {self.recipe}: the same"
        size = human_size(self.bytes)
        return f"{self.output}: {self.files} files, {size}, as written{again}"

    def as_dict(self) -> dict[str, Any]:
        """What was found, as keys and values; see docs/json.md."""
        return {
            "output": self.output,
            "file_count": self.files,
            "bytes": self.bytes,
            "recipe": self.recipe,
            "faults": self.faults,
            "unlisted": self.unlisted,
            "notes": self.notes,
        }


def verify(folder: str | Path, *, threads: int | None = None) -> Verification:
    """Hash the files of an output, and compare with the hashes that its merge listed.

    Args:
        folder: The output of a merge.
        threads: Files to hash at a time; as many as there are cores by default.

    Raises:
        InputError: The folder holds an unfinished merge, or no list with hashes.
        OSError: A file cannot be read.
    """
    folder = Path(folder)
    if mode_of(folder / UNFINISHED_MARKER) is not None:
        raise InputError(
            f"{folder}: holds an unfinished merge; repeat the command that began it to go on"
        )
    path = own_file(folder, OUTPUT_FILE)
    if path is None:
        raise InputError(f"{folder}: has no {OUTPUT_FILE}: no merge of this version wrote it")
    listing = object_of(path)
    try:
        files = [str(name) for name in listing["files"]]
        hashes = {str(name): str(digest) for name, digest in listing["sha256"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read as a list of files with hashes: {error!r}"
        ) from None
    bare = [name for name in hashes if Path(name).name != name]
    without = sorted({*files} - {*hashes, OUTPUT_FILE})
    if bare or without:
        what = f"names '{bare[0]}', no file name" if bare else f"has no hash of '{without[0]}'"
        raise InputError(f"{path}: {what}; was the merge told not to hash?")
    with ThreadPoolExecutor(threads) as pool:
        found = dict(zip(hashes, pool.map(lambda name: _hash(folder / name), hashes), strict=True))
    faults = [
        f"{folder / name}: is missing"
        if one is None
        else f"{folder / name}: has another content than the merge wrote"
        for name, one in found.items()
        if one is None or one[0] != hashes[name]
    ]
    there = {each.name for each in folder.iterdir()}
    total = sum(one[1] for one in found.values() if one is not None)
    unlisted = sorted(there - {*hashes, OUTPUT_FILE})
    return Verification(folder, len(found), total, faults, unlisted)


def _hash(path: Path) -> tuple[str, int] | None:
    """A file's SHA-256 and size; None if there is none."""
    if mode_of(path) is None:
        return None
    with opened(path, sys.maxsize) as (file, size):
        return hashlib.file_digest(file, "sha256").hexdigest(), size


def check(folder: str | Path, recipe: Recipe, *, threads: int | None = None) -> list[str]:
    """Merge a recipe again, in memory, and compare with the weights in a folder.

    Args:
        folder: The output of a merge of the recipe. Where it holds a calibration, that is used.
        recipe: The recipe, without ``auto`` values: the folder holds one with what was chosen.
        threads: Threads to use; all cores by default.

    Returns:
        One sentence for each tensor that differs.

    Raises:
        InputError: The recipe cannot be merged, or its output is quantised.
        OSError: A file cannot be read.
    """
    import numpy as np

    folder = Path(folder)
    measured, models = own_file(folder, CALIBRATION_FILE), open_models(recipe)
    models, found = with_measurements(recipe, measured, models)
    asked = request(recipe, found, models, threads=threads)
    manifest = asked.manifest()
    if any(tensor.packing is not None for tensor in manifest.tensors):
        raise InputError(f"{folder}: is quantised; only other outputs can be merged in memory")
    merged = {tensor.name: np.empty(tensor.nbytes, np.uint8) for tensor in manifest.tensors}
    _core.merge_into(manifest, asked.checkpoints, merged, threads=threads, allow_nan=True)
    stored = {tensor.name: tensor for tensor in _core.Checkpoint(str(folder)).tensors}
    faults = [
        f"{folder}: tensor '{name}': is not of the merged model"
        for name in sorted(stored.keys() - merged.keys())
    ]
    for tensor in manifest.tensors:
        there = stored.get(tensor.name)
        if there is None:
            faults.append(f"{folder}: tensor '{tensor.name}': is missing")
        elif (there.dtype, there.shape) != (tensor.dtype, tensor.shape):
            faults.append(f"{folder}: tensor '{tensor.name}': has another dtype or shape")
        elif there.nbytes and not np.array_equal(
            np.memmap(folder / there.file, np.uint8, "r", there.start, there.nbytes),
            merged[tensor.name],
        ):
            faults.append(f"{folder}: tensor '{tensor.name}': differs from the merge of the recipe")
    return faults
