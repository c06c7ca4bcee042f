"""Merging to disk: the manifest of a recipe is carried out into a model folder.

The compiled core does the computation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge import _core, markup
from sensmerge.document import Documented
from sensmerge.merging.manifest import request
from sensmerge.merging.plan import parse_size
from sensmerge.merging.sidecars import Sidecars, sidecars
from sensmerge.merging.stages import with_names
from sensmerge.models.inspection import human_size
from sensmerge.progress import bytes_bar

if TYPE_CHECKING:
    from collections.abc import Callable

    from sensmerge.calibration import Calibration
    from sensmerge.models import Models
    from sensmerge.recipe import Recipe
    from sensmerge.scaling.sigma import Coefficients

DEFAULT_SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class MergeResult(Documented):
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
    calibration: Calibration | None = field(default=None, repr=False)
    coefficients: Coefficients | None = field(default=None, repr=False)

    def describe(self) -> str:
        """One line for the terminal."""
        files = "file" if len(self.shards) == 1 else "files"
        return (
            f"wrote {self.output}: {self.tensors} tensors, {self.parameters:,} parameters, "
            f"{human_size(self.bytes)} in {len(self.shards)} {files}, {self.seconds:.1f} s"
        )

    def __repr__(self) -> str:
        return (
            f"MergeResult(output={str(self.output)!r}, tensors={self.tensors}, "
            f"parameters={self.parameters}, bytes={self.bytes}, shards={len(self.shards)})"
        )

    def _repr_html_(self) -> str:
        rows = {
            "tensors": f"{self.tensors:,}",
            "parameters": f"{self.parameters:,}",
            "size": human_size(self.bytes),
            "weight files": ", ".join(self.shards),
            "took": f"{self.seconds:.1f} s",
        }
        found = self.coefficients
        return markup.shown(
            f"Merged model: {self.output}",
            markup.facts(rows),
            markup.notes(self.notes),
            "" if found is None else markup.folded("Coefficients", found._repr_html_()),
        )

    def as_dict(self) -> dict[str, Any]:
        """The description as keys and values; see docs/json.md."""
        found = self.coefficients
        return {
            "output": self.output,
            "tensor_count": self.tensors,
            "parameter_count": self.parameters,
            "bytes": self.bytes,
            "shards": self.shards,
            "seconds": self.seconds,
            "coefficients": None if found is None else found.as_dict(),
            "notes": self.notes,
        }


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
    hash_output: bool = True,
    resume: bool = True,
    overwrite: bool = False,
    allow_nan: bool = False,
    chunk_bytes: int | None = None,
    tokenizer: bool = True,
    card: bool = True,
    committed: Callable[[], object] | None = None,
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
        hash_output: Hash every file that is written; a merge that was killed goes on only from
            hashed files.
        resume: Whether the same merge may go on if it is killed; not where inputs are temporary.
        overwrite: Replace the output of an earlier merge in ``out``; inputs are never replaced.
        allow_nan: Write NaN and infinite values instead of refusing them.
        chunk_bytes: Bytes that a thread works on at a time.
        tokenizer: Write the tokenizer's files beside the weights.
        card: Write the model card.
        committed: Called once, on another thread, when Ctrl-C cannot cancel the merge any more.

    Raises:
        InputError: Recipe, checkpoints or output folder cannot be used as they are.
        OSError: A file cannot be read or written.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is left behind.
    """
    shard_bytes = parse_size(max_shard_size)
    resolved = resolve(
        recipe,
        models,
        measured,
        found,
        notes=notes,
        threads=threads,
        progress=progress,
        tokenizer=tokenizer,
        card=card,
    )
    result = carry_out(
        resolved.manifest,
        resolved.checkpoints,
        out,
        shard_bytes,
        resolved.beside,
        resolved.notes,
        threads=threads,
        progress=progress,
        sync=sync,
        hash_output=hash_output,
        resume=resume,
        overwrite=overwrite,
        allow_nan=allow_nan,
        chunk_bytes=chunk_bytes,
        committed=committed,
    )
    return replace(result, calibration=measured, coefficients=found)


@dataclass(frozen=True)
class Resolved:
    """All that is written for a recipe, but for the tensors' data.

    Attributes:
        manifest: Every output tensor with its inputs and numbers.
        checkpoints: The manifest's models, in its order.
        beside: The files beside the weights.
        notes: Notes for the user.
    """

    manifest: _core.Manifest
    checkpoints: list[_core.Checkpoint]
    beside: Sidecars
    notes: list[str]


def resolve(
    recipe: Recipe,
    models: Models,
    measured: Calibration | None,
    found: Coefficients | None,
    *,
    notes: list[str] | None,
    threads: int | None,
    progress: bool,
    tokenizer: bool,
    card: bool,
) -> Resolved:
    """Resolve a recipe without ``auto`` values to numbers and files; see :func:`write`."""
    asked = request(recipe, found, models, threads=threads, progress=progress)
    manifest = asked.manifest()
    beside = sidecars(
        recipe,
        models,
        found,
        measured,
        manifest,
        units=asked.units,
        tokenizer=tokenizer,
        card=card,
    )
    known = [*(notes or []), *recipe.notes, *models.notes]
    known += [] if found is None else found.notes()
    said = [with_names(note, recipe.places.stages) for note in [*known, *beside.notes]]
    return Resolved(manifest, asked.checkpoints, beside, said)


def carry_out(
    manifest: _core.Manifest,
    checkpoints: list[_core.Checkpoint] | None,
    out: str | Path,
    shard_bytes: int,
    beside: Sidecars,
    notes: list[str],
    *,
    action: str = "merging",
    threads: int | None,
    progress: bool,
    sync: bool,
    hash_output: bool = True,
    resume: bool = True,
    overwrite: bool,
    allow_nan: bool,
    keep: bool = False,
    only_commit: bool = False,
    chunk_bytes: int | None = None,
    committed: Callable[[], object] | None = None,
) -> MergeResult:
    """Carry a manifest out; see :func:`write` for most arguments.

    Args:
        manifest: The manifest.
        checkpoints: Its models, in its order; None opens the files that it names.
        out: The folder to write.
        shard_bytes: Largest size of a weight file's data, in bytes.
        beside: The files beside the weights.
        notes: Notes for the user; those on the files beside the weights too.
        action: What the progress bar says.
        threads: Threads to use; all cores by default.
        progress: Show progress.
        sync: Flush the output to disk before returning.
        hash_output: Hash every file that is written; a merge that was killed goes on only from
            hashed files.
        resume: Whether the same merge may go on if it is killed; not where inputs are temporary.
        overwrite: Replace the output of an earlier merge.
        allow_nan: Write NaN and infinite values instead of refusing them.
        keep: Leave what is written if the merge fails, for the same merge to go on from.
        only_commit: Merge nothing: put in place what other processes merged.
        chunk_bytes: Bytes that a thread works on at a time.
        committed: Called once, on another thread, when Ctrl-C cannot cancel the merge any more.
    """
    with bytes_bar(action, enabled=progress) as report:
        written = json.loads(
            _core.merge(
                manifest,
                str(out),
                shard_bytes,
                checkpoints,
                copies=beside.copies,
                texts=beside.texts,
                cards=beside.cards,
                notes=notes,
                threads=threads,
                chunk_bytes=chunk_bytes,
                sync=sync,
                hash=hash_output,
                resume=resume,
                overwrite=overwrite,
                allow_nan=allow_nan,
                keep=keep,
                only_commit=only_commit,
                progress=report,
                committed=committed,
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
    )
