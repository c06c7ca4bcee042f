"""The steps from a recipe to a merged model: calibrate, search for ``auto`` values, merge.

The rooms that do the work do not depend on the order of the steps; it is set here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.merging import disk
from sensmerge.merging.disk import DEFAULT_SHARD_SIZE, MergeResult
from sensmerge.merging.manifest import request
from sensmerge.merging.plan import MergePlan, parse_size
from sensmerge.merging.sidecars import sidecars
from sensmerge.merging.stages import (
    StagedPlan,
    folder_of,
    is_merged,
    sketch,
    stage_folders,
    with_names,
)
from sensmerge.merging.tokenizer import merged_tokenizer
from sensmerge.models import Models, open_models
from sensmerge.models.pickles import unpickled, unpickling
from sensmerge.recipe import DEFAULT_TEMPERATURE, Recipe, StagedRecipe, load
from sensmerge.scaling.matching import (
    matching,
    needs_calibration,
    needs_coefficients,
    needs_files,
    with_statistics,
)
from sensmerge.scaling.required import with_measurements

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.scaling.sigma import Coefficients


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
    inputs = [path for model in models.all for path in model.paths]
    _core.check_output(str(out), [*map(str, inputs), *map(str, pickled.copies)], how.overwrite)
    if recipe.auto or (calibration is None and needs_calibration(recipe)):
        # Refuse a merge that is bound to fail before the long measurement rather than after it.
        if recipe.method.statistic is None:
            known = sketched(recipe)
            asked = request(known, None, models, threads=how.threads, progress=how.progress)
            tensors = asked.manifest().tensors
            _core.check_space(str(out), sum(tensor.nbytes for tensor in tensors))
        merged_tokenizer(recipe, models)
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


@dataclass(frozen=True)
class Settled:
    """A recipe of which nothing is open any more.

    Attributes:
        recipe: The recipe, with numbers for values that were ``auto``.
        models: Its models, with what was measured of them.
        calibration: What was measured of its experts; None for a plain merge.
        coefficients: Their coefficients; None for a plain merge.
        notes: Notes for the user on what was measured and chosen.
    """

    recipe: Recipe
    models: Models
    calibration: Calibration | None
    coefficients: Coefficients | None
    notes: list[str]


def settle(
    recipe: Recipe,
    models: Models,
    calibration: Calibration | str | Path | None = None,
    *,
    device: str = "cpu",
    keep: Path | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Settled:
    """Measure what a recipe needs, unless it is given, and choose its values that are ``auto``.

    Args:
        recipe: The recipe.
        models: Its models.
        calibration: A calibration of its experts, or its path.
        device: The torch device that models run on where something is measured.
        keep: The file beside which statistics are written, if the recipe needs such.
        threads: Threads to use; all cores by default.
        progress: Show a progress bar.

    Raises:
        InputError: Recipe, models, samples or calibration cannot be used as they are.
    """
    measured, notes = _measured(
        recipe, models, calibration, device, keep, threads=threads, progress=progress
    )
    models = with_statistics(recipe, measured, models)
    if recipe.auto:
        from sensmerge.search.auto import choose

        recipe, chosen = choose(recipe, measured, device=device, threads=threads, progress=progress)
        notes += chosen
    return Settled(recipe, models, measured, _coefficients(measured, recipe), notes)


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
    planned = _plan_stages(asked, None, how.max_shard_size, weights=False)
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


@overload
def plan(
    recipe: Recipe,
    *,
    calibration: Calibration | str | Path | None = None,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
) -> MergePlan: ...
@overload
def plan(
    recipe: StagedRecipe | str | Path,
    *,
    calibration: Calibration | str | Path | None = None,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
) -> MergePlan | StagedPlan: ...
def plan(
    recipe: Recipe | StagedRecipe | str | Path,
    *,
    calibration: Calibration | str | Path | None = None,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
) -> MergePlan | StagedPlan:
    """Plan a merge without calibrating, merging or writing anything.

    Args:
        recipe: The recipe, of one stage or of several, or its path. For ``auto`` values the plan
            shows defaults.
        calibration: A calibration of the experts, or its path. Without one, the plan shows the
            weights before coefficients.
        max_shard_size: Largest size of a weight file's data, in bytes or as text such as ``5GB``.

    Raises:
        InputError: Recipe, calibration or checkpoints cannot be used as they are.
    """
    asked = recipe if isinstance(recipe, Recipe | StagedRecipe) else load(recipe)
    if isinstance(asked, StagedRecipe):
        return _plan_stages(asked, calibration, max_shard_size)
    return _plan(asked, calibration, max_shard_size)


def _plan_stages(
    asked: StagedRecipe,
    calibration: Calibration | str | Path | None,
    max_shard_size: str | int,
    *,
    weights: bool = True,
) -> StagedPlan:
    """Plan each stage by sketches of the models of the stages before it.

    Args:
        asked: The recipe.
        calibration: A calibration of the result's experts, or its path.
        max_shard_size: Largest size of a weight file's data.
        weights: Whether to read the weights of other models where a stage aligns units.
    """
    planned: list[tuple[str | None, MergePlan]] = []
    places: dict[str, Path] = {}
    with tempfile.TemporaryDirectory(prefix="sensmerge-plan-") as folder:
        for stage in asked.stages:
            recipe = stage.placed(places)
            last = stage is asked.result
            try:
                measured, whole = calibration if last else None, weights and not stage.uses
                made = _plan(recipe, measured, max_shard_size, weights=whole)
                if not last:
                    place = folder_of(stage, Path(folder))
                    beside = sidecars(recipe, open_models(recipe), None, None, made.manifest)
                    sketch(made, beside, place)
                    places[str(stage.name)] = place
            except InputError as error:
                label = f"document {stage.document}"
                said = [with_names(line, places) for line in error.lines]
                raise InputError([f"{label}: {line}" for line in said]) from None
            planned.append((stage.name, made))
        return StagedPlan(planned, places, asked.notes)


def _plan(
    recipe: Recipe,
    calibration: Calibration | str | Path | None,
    max_shard_size: str | int,
    *,
    weights: bool = True,
) -> MergePlan:
    """Plan one recipe; without ``weights``, of models of which there may be just sketches."""
    models = open_models(recipe)
    found, notes = None, list(recipe.notes)
    if recipe.auto:
        keys = " and ".join(recipe.auto)
        recipe = _provisional(recipe)
        notes.append(
            f"{keys}: merge searches for values that are auto; this plan has lambda "
            f"{1 / len(recipe.experts):.3g} and temperature {DEFAULT_TEMPERATURE:g}"
        )
    if not weights:
        recipe = _undamped(recipe)
    if needs_files(recipe) or (calibration is not None and needs_calibration(recipe)):
        models, found = with_measurements(recipe, calibration, models)
        notes += [] if found is None else found.notes()
    elif needs_calibration(recipe):
        notes.append("the recipe has a sensitivity section: weights are shown without coefficients")
    if recipe.align is not None and not weights:
        notes.append("align: the stage's models are aligned once they are merged; not in this plan")
    asked = request(recipe, found, models, weights=weights, progress=True)
    needed = None if asked.units is None else asked.units.memory()
    notes += [] if needed is None else [needed]
    manifest = asked.manifest()
    notes += models.notes + merged_tokenizer(recipe, models).notes
    return MergePlan(
        manifest=manifest,
        models=asked.models,
        checkpoints=asked.checkpoints,
        max_shard_bytes=parse_size(max_shard_size),
        coefficients=found,
        notes=[*notes, *manifest.notes],
    )


def _provisional(recipe: Recipe) -> Recipe:
    """The recipe with provisional numbers for its ``auto`` values."""
    return recipe.chosen(1 / len(recipe.experts), DEFAULT_TEMPERATURE) if recipe.auto else recipe


def sketched(recipe: Recipe) -> Recipe:
    """The recipe as far as it can be merged before anything is measured: for a sketch of it."""
    return _undamped(_provisional(recipe))


def _undamped(recipe: Recipe) -> Recipe:
    """The recipe without ``aim``, for which nothing is measured yet."""
    if recipe.aim is None:
        return recipe
    return recipe.replaced({key: said for key, said in recipe.source.items() if key != "aim"})


def as_mergekit(recipe: Recipe, found: Coefficients) -> str:
    """A plain mergekit recipe with one weight per layer that gives the same merged model."""
    from sensmerge.scaling.mergekit import mergekit_recipe

    tensors = open_models(recipe).template.checkpoint.tensors
    names, stored = [tensor.name for tensor in tensors], {tensor.dtype for tensor in tensors}
    return mergekit_recipe(recipe, found, names, stored)


def _coefficients(measured: Calibration | None, recipe: Recipe) -> Coefficients | None:
    if measured is None or not needs_coefficients(recipe):
        return None
    # Imported here, since NumPy would double the time that a plain merge takes to start.
    from sensmerge.scaling.sigma import coefficients

    return coefficients(measured, recipe)


def _measured(
    recipe: Recipe,
    models: Models,
    calibration: Calibration | str | Path | None,
    device: str,
    keep: Path | None,
    *,
    threads: int | None,
    progress: bool,
) -> tuple[Calibration | None, list[str]]:
    if not needs_calibration(recipe):
        if calibration is None:
            return None, []
        return None, ["the recipe has no sensitivity section: the calibration was not used"]
    if calibration is not None:
        return matching(recipe, calibration, models), []
    from sensmerge.calibration import calibrate

    measured = calibrate(recipe, progress=progress, threads=threads, device=device, keep=keep)
    return measured, list(measured.notes)
