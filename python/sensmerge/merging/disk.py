"""Merging to disk: the manifest of a recipe is carried out into a model folder.

The compiled core does the computation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge import _core
from sensmerge.merging.manifest import request
from sensmerge.merging.plan import parse_size
from sensmerge.merging.sidecars import sidecars
from sensmerge.models.inspection import human_size
from sensmerge.progress import bytes_bar

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.models import Models
    from sensmerge.recipe import Recipe
    from sensmerge.scaling.sigma import Coefficients

DEFAULT_SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class MergeResult:
    """Description of a merged model that was written.

    Attributes:
        output: The model's folder.
        tensors: Number of tensors.
        parameters: Number of parameters.
        bytes: Size of all tensors in bytes.
        shards: Names of the weight files.
        seconds: Seconds that the merge took, without calibration and planning.
        notes: Notes for the user, such as rules that were applied or near-uniform coefficients.
        calibration: The calibration; None for a plain merge.
        coefficients: The coefficients used; None for a plain merge.
    """

    output: Path
    tensors: int
    parameters: int
    bytes: int
    shards: list[str]
    seconds: float
    notes: list[str] = field(default_factory=list)
    calibration: Calibration | None = None
    coefficients: Coefficients | None = None

    def describe(self) -> str:
        """One line for the terminal."""
        files = "file" if len(self.shards) == 1 else "files"
        return (
            f"wrote {self.output}: {self.tensors} tensors, {self.parameters:,} parameters, "
            f"{human_size(self.bytes)} in {len(self.shards)} {files}, {self.seconds:.1f} s"
        )


def write(
    recipe: Recipe,
    models: Models,
    out: str | Path,
    measured: Calibration | None = None,
    found: Coefficients | None = None,
    *,
    notes: list[str] | None = None,
    threads: int | None = None,
    progress: bool = True,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    sync: bool = True,
    overwrite: bool = False,
    allow_nan: bool = False,
    chunk_bytes: int | None = None,
) -> MergeResult:
    """Merge the models of a recipe without ``auto`` values; see :func:`sensmerge.merge`.

    Args:
        recipe: The recipe.
        models: Its models.
        out: The folder to write.
        measured: The calibration that the coefficients come from; it is written beside the weights.
        found: The coefficients; None for a plain merge.
        notes: Notes for the user from earlier steps.
        threads: Threads to use; all cores by default.
        progress: Show a progress bar on a terminal and plain lines elsewhere.
        max_shard_size: Largest size of a weight file's data, in bytes or as text such as ``5GB``.
        sync: Flush the output to disk before returning.
        overwrite: Replace the output of an earlier merge in ``out``; inputs are never replaced.
        allow_nan: Write NaN and infinite values instead of refusing them.
        chunk_bytes: Bytes that a thread works on at a time.

    Raises:
        InputError: Recipe, checkpoints or output folder cannot be used as they are.
        OSError: A file cannot be read or written.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is left behind.
    """
    shard_bytes = parse_size(max_shard_size)
    asked = request(recipe, found, models)
    manifest = asked.manifest()
    beside = sidecars(recipe, models, found, measured, manifest)
    known = [*(notes or []), *recipe.notes, *models.notes]
    known += [] if found is None else found.notes()
    with bytes_bar("merging", enabled=progress) as report:
        written = json.loads(
            _core.merge(
                manifest,
                str(out),
                shard_bytes,
                asked.checkpoints,
                copies=beside.copies,
                texts=beside.texts,
                cards=beside.cards,
                notes=[*known, *beside.notes],
                threads=threads,
                chunk_bytes=chunk_bytes,
                sync=sync,
                overwrite=overwrite,
                allow_nan=allow_nan,
                progress=report,
            )
        )
    return MergeResult(
        output=Path(out),
        tensors=written["tensors"],
        parameters=written["parameters"],
        bytes=written["bytes"],
        shards=written["shards"],
        seconds=written["seconds"],
        notes=written["notes"],
        calibration=measured,
        coefficients=found,
    )
