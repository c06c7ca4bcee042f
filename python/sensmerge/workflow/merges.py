"""From a recipe to a merged model: calibrate, search for ``auto`` values, merge; stage by stage."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge import _core
from sensmerge.merging import disk
from sensmerge.merging.disk import DEFAULT_SHARD_SIZE, MergeResult
from sensmerge.merging.plan import parse_size
from sensmerge.merging.stages import folder_of, is_merged, stage_folders
from sensmerge.models import open_models
from sensmerge.models.pickles import unpickled, unpickling
from sensmerge.recipe import Recipe, StagedRecipe, load
from sensmerge.scaling.matching import needs_files
from sensmerge.workflow.plans import plan_stages
from sensmerge.workflow.steps import check, settle

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration


def merge(
    recipe: Recipe | StagedRecipe | str | Path,
    out: str | Path,
    calibration: Calibration | str | Path | None = None,
    threads: int | None = None,
    progress: bool = True,
    *,
    device: str = "cpu",
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    sync: bool = True,
    hash_output: bool = True,
    overwrite: bool = False,
    allow_nan: bool = False,
    chunk_bytes: int | None = None,
    unpickle: bool = False,
    tokenizer: bool = True,
    card: bool = True,
    stages: str | Path | None = None,
    reuse: bool = True,
    committed: Callable[[], object] | None = None,
) -> MergeResult:
    """Merge the models of a recipe into a Hugging Face model folder.

    Calibrates first where the recipe has a ``sensitivity`` section, its mode is not ``off`` and no
    calibration is given.

    Args:
        recipe: The recipe, of one stage or of several, or its path.
        out: The folder to write. It must not exist, or be empty, unless ``overwrite`` is set.
        calibration: A calibration of these experts, or its path; of several stages, the result's.
        threads: Threads to use; all cores by default. The output does not depend on it.
        progress: Show a progress bar on a terminal and plain lines elsewhere.
        device: The torch device that models run on where something is measured first, such as
            ``cuda``; weights are merged on the processor.
        max_shard_size: Largest size of a weight file's data, in bytes or as text such as ``5GB``.
        sync: Flush the output to disk before returning.
        hash_output: Hash every file that is written; a merge that was killed goes on only from
            hashed files.
        overwrite: Replace the output of an earlier merge in ``out``; inputs are never replaced.
        allow_nan: Write NaN and infinite values instead of refusing them.
        chunk_bytes: Bytes that a thread works on at a time. The output does not depend on it.
        unpickle: Read models that are stored as pickles (``pytorch_model.bin``) in a process of
            their own, through a temporary copy beside ``out``. Needs torch.
        tokenizer: Write the tokenizer's files beside the weights.
        card: Write the model card.
        stages: A folder in which the models of earlier stages stay; None: they are removed at the
            end.
        reuse: Take a model of an earlier stage that lies there already, merged by the same recipe.
        committed: Called once, on another thread, when all is written under temporary names and
            Ctrl-C cannot cancel the merge any more.

    Returns:
        A description of the written model.

    Raises:
        InputError: Recipe, calibration, checkpoints or output folder cannot be used as they are.
        OSError: A file cannot be read or written.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is left behind.
    """
    asked = recipe if isinstance(recipe, Recipe | StagedRecipe) else load(recipe)
    parse_size(max_shard_size)
    how = _How(
        threads=threads,
        progress=progress,
        max_shard_size=max_shard_size,
        sync=sync,
        hash_output=hash_output,
        resume=True,
        overwrite=overwrite,
        allow_nan=allow_nan,
        chunk_bytes=chunk_bytes,
        tokenizer=tokenizer,
        card=card,
        committed=committed,
    )
    with unpickling(out, enabled=unpickle, progress=progress):
        if isinstance(asked, StagedRecipe):
            kept = None if stages is None else Path(stages)
            return _merge_stages(asked, Path(out), calibration, how, kept, device, reuse=reuse)
        return _merge(asked, out, calibration, how, [], device)


@dataclass(frozen=True)
class _How:
    """The arguments of :func:`merge` that do not change what is merged."""

    threads: int | None
    progress: bool
    max_shard_size: str | int
    sync: bool
    hash_output: bool
    resume: bool
    overwrite: bool
    allow_nan: bool
    chunk_bytes: int | None
    tokenizer: bool
    card: bool
    committed: Callable[[], object] | None


def _merge(
    recipe: Recipe,
    out: str | Path,
    calibration: Calibration | str | Path | None,
    how: _How,
    earlier: list[str],
    device: str,
) -> MergeResult:
    """Merge one recipe; ``earlier`` are notes of the stages before it."""
    models = open_models(recipe, progress=how.progress)
    pickled = unpickled()
    copies = [*map(str, pickled.copies)]
    check(
        recipe,
        models,
        out,
        calibration,
        copies,
        overwrite=how.overwrite,
        threads=how.threads,
        progress=how.progress,
    )
    with _statistics_beside(recipe, Path(out), calibration) as keep:
        if keep is not None or any(copy != path for path, copy in pickled.copies.items()):
            # What is merged is gone once this process is.
            how = replace(how, resume=False)
        settled = settle(
            recipe,
            models,
            calibration,
            device=device,
            keep=keep,
            threads=how.threads,
            progress=how.progress,
        )
        return disk.write(
            settled.recipe,
            settled.models,
            out,
            settled.calibration,
            settled.coefficients,
            notes=[*earlier, *pickled.notes, *settled.notes],
            **asdict(how),
        )


@contextmanager
def _statistics_beside(
    recipe: Recipe, out: Path, calibration: Calibration | str | Path | None
) -> Iterator[Path | None]:
    """Where statistics are kept that are measured for one merge alone; removed at its end."""
    if calibration is not None or not needs_files(recipe):
        yield None
        return
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=out.absolute().parent, prefix=f".{out.name}-statistics-"
    ) as folder:
        yield Path(folder) / "calibration.json"


def _merge_stages(
    asked: StagedRecipe,
    out: Path,
    calibration: Calibration | str | Path | None,
    how: _How,
    kept: Path | None,
    device: str,
    *,
    reuse: bool,
) -> MergeResult:
    # Refuse what is bound to fail in any stage before the first is merged.
    planned = plan_stages(asked, None, how.max_shard_size, weights=False)
    inputs = {
        str(path)
        for _, each in planned.stages
        for model in each.models
        for path in model.paths
        if path not in planned.places.values()
    }
    _core.check_output(str(out), sorted(inputs), how.overwrite)
    places, notes = dict[str, Path](), list(asked.notes)
    how = replace(how, resume=kept is not None)
    with stage_folders(out, kept) as folder:
        for stage in asked.stages[:-1]:
            place, name = folder_of(stage, folder), str(stage.name)
            recipe, places[name] = stage.placed(places), place
            if reuse and is_merged(recipe, place):
                notes.append(
                    f"stage '{name}': was merged into {folder} earlier, and is used as it is"
                )
                continue
            # A stage's tokenizer may be the result's; a kept folder may hold an older merge of it.
            on_the_way = replace(
                how,
                sync=False,
                hash_output=False,
                overwrite=kept is not None,
                tokenizer=True,
                committed=None,
            )
            done = _merge(recipe, place, None, on_the_way, [], device)
            notes += [f"stage '{name}': {note}" for note in done.notes]
        return _merge(asked.result.placed(places), out, calibration, how, notes, device)
