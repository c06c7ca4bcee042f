"""Plans: of a merge as it stands, and of one that several processes carry out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, overload

from sensmerge.errors import InputError
from sensmerge.merging import disk
from sensmerge.merging.disk import DEFAULT_SHARD_SIZE
from sensmerge.merging.manifest import request
from sensmerge.merging.plan import MergePlan, parse_size
from sensmerge.merging.sidecars import sidecars
from sensmerge.merging.stages import StagedPlan, folder_of, sketch, with_names
from sensmerge.merging.tokenizer import merged_tokenizer
from sensmerge.models import open_models
from sensmerge.recipe import DEFAULT_TEMPERATURE, Recipe, StagedRecipe, load
from sensmerge.scaling.matching import needs_calibration, needs_files
from sensmerge.scaling.required import with_measurements
from sensmerge.workflow.steps import check, provisional, settle, undamped

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.distributed.plan import PlannedMerge
    from sensmerge.scaling.sigma import Coefficients


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
        return plan_stages(asked, calibration, max_shard_size)
    return _plan(asked, calibration, max_shard_size)


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
        recipe = provisional(recipe)
        notes.append(
            f"{keys}: merge searches for values that are auto; this plan has lambda "
            f"{1 / len(recipe.experts):.3g} and temperature {DEFAULT_TEMPERATURE:g}"
        )
    if not weights:
        recipe = undamped(recipe)
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


def plan_stages(
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


def plan_merge(
    recipe: Recipe | StagedRecipe | str | Path,
    out: str | Path,
    calibration: Calibration | str | Path | None = None,
    threads: int | None = None,
    progress: bool = True,
    *,
    device: str = "cpu",
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    allow_nan: bool = False,
    tokenizer: bool = True,
    card: bool = True,
) -> PlannedMerge:
    """Plan a merge that several processes carry out, each some of its weight files.

    Calibrates first where :func:`merge` would. See there for the arguments.

    Raises:
        InputError: Recipe, calibration, checkpoints or output folder cannot be used as they are;
            the recipe has several stages; or it needs statistics by tensor and no calibration is
            given.
        OSError: A file cannot be read.
    """
    from sensmerge.distributed.plan import PlannedMerge

    asked = recipe if isinstance(recipe, Recipe | StagedRecipe) else load(recipe)
    if isinstance(asked, StagedRecipe):
        raise InputError(
            "the recipe has several stages, and a plan for several processes is of one: merge the "
            "earlier stages into folders, and name those in a recipe of the last stage"
        )
    if calibration is None and needs_files(asked):
        raise InputError(
            "the recipe's method needs statistics by tensor, in files that other processes read "
            "too: make them by `sensmerge calibrate`, and give --calibration"
        )
    shard_bytes = parse_size(max_shard_size)
    models = open_models(asked, progress=progress)
    check(
        asked,
        models,
        out,
        calibration,
        [],
        overwrite=overwrite,
        threads=threads,
        progress=progress,
    )
    settled = settle(asked, models, calibration, device=device, threads=threads, progress=progress)
    resolved = disk.resolve(
        settled.recipe,
        settled.models,
        settled.calibration,
        settled.coefficients,
        notes=settled.notes,
        threads=threads,
        progress=progress,
        tokenizer=tokenizer,
        card=card,
    )
    return PlannedMerge(
        manifest=resolved.manifest.with_fingerprints(resolved.checkpoints),
        output=Path(out).absolute(),
        max_shard_bytes=shard_bytes,
        overwrite=overwrite,
        allow_nan=allow_nan,
        beside=resolved.beside,
        notes=resolved.notes,
    )


def as_mergekit(recipe: Recipe, found: Coefficients) -> str:
    """A plain mergekit recipe with one weight per layer that gives the same merged model."""
    from sensmerge.scaling.mergekit import mergekit_recipe

    tensors = open_models(recipe).template.checkpoint.tensors
    names, stored = [tensor.name for tensor in tensors], {tensor.dtype for tensor in tensors}
    return mergekit_recipe(recipe, found, names, stored)
