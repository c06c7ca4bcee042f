"""The steps from a recipe to a merged model: calibrate, search for ``auto`` values, merge.

The rooms that do the work do not depend on the order of the steps; it is set here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge import _core
from sensmerge.merging import disk
from sensmerge.merging.disk import DEFAULT_SHARD_SIZE, MergeResult
from sensmerge.merging.manifest import request
from sensmerge.merging.plan import MergePlan, parse_size
from sensmerge.merging.sidecars import check_vocabulary
from sensmerge.models import Models, open_models
from sensmerge.recipe import DEFAULT_TEMPERATURE, Recipe
from sensmerge.scaling.matching import matching, needs_calibration
from sensmerge.scaling.required import coefficients_for

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.scaling.sigma import Coefficients


def merge(
    recipe: Recipe | str | Path,
    out: str | Path,
    calibration: Calibration | str | Path | None = None,
    threads: int | None = None,
    progress: bool = True,
    *,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    sync: bool = True,
    overwrite: bool = False,
    allow_nan: bool = False,
    chunk_bytes: int | None = None,
) -> MergeResult:
    """Merge the models of a recipe into a Hugging Face model folder.

    Calibrates first where the recipe has a ``sensitivity`` section, its mode is not ``off`` and no
    calibration is given.

    Args:
        recipe: The recipe, or its path.
        out: The folder to write. It must not exist, or be empty, unless ``overwrite`` is set.
        calibration: A calibration of these experts, or its path.
        threads: Threads to use; all cores by default. The output does not depend on it.
        progress: Show a progress bar on a terminal and plain lines elsewhere.
        max_shard_size: Largest size of a weight file's data, in bytes or as text such as ``5GB``.
        sync: Flush the output to disk before returning.
        overwrite: Replace the output of an earlier merge in ``out``; inputs are never replaced.
        allow_nan: Write NaN and infinite values instead of refusing them.
        chunk_bytes: Bytes that a thread works on at a time. The output does not depend on it.

    Returns:
        A description of the written model.

    Raises:
        InputError: Recipe, calibration, checkpoints or output folder cannot be used as they are.
        OSError: A file cannot be read or written.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is left behind.
    """
    recipe = Recipe.of(recipe)
    parse_size(max_shard_size)
    models = open_models(recipe)
    if recipe.auto or (calibration is None and needs_calibration(recipe)):
        # Refuse a merge that is bound to fail before the long measurement rather than after it.
        request(_provisional(recipe), None, models).manifest()
        check_vocabulary(recipe, models)
        _core.check_output(
            str(out), [str(path) for model in models.all for path in model.paths], overwrite
        )
    measured, notes = _measured(recipe, models, calibration, threads=threads, progress=progress)
    if recipe.auto:
        from sensmerge.search.auto import choose

        recipe, chosen = choose(recipe, measured, threads=threads, progress=progress)
        notes += chosen
    return disk.write(
        recipe,
        models,
        out,
        measured,
        _coefficients(measured, recipe),
        notes=notes,
        threads=threads,
        progress=progress,
        max_shard_size=max_shard_size,
        sync=sync,
        overwrite=overwrite,
        allow_nan=allow_nan,
        chunk_bytes=chunk_bytes,
    )


def plan(
    recipe: Recipe | str | Path,
    *,
    calibration: Calibration | str | Path | None = None,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
) -> MergePlan:
    """Plan a merge without calibrating, merging or writing anything.

    Args:
        recipe: The recipe, or its path. For ``auto`` values the plan shows defaults.
        calibration: A calibration of the experts, or its path. Without one, the plan shows the
            weights before coefficients.
        max_shard_size: Largest size of a weight file's data, in bytes or as text such as ``5GB``.

    Raises:
        InputError: Recipe, calibration or checkpoints cannot be used as they are.
    """
    recipe = Recipe.of(recipe)
    models = open_models(recipe)
    found, notes = None, list(recipe.notes)
    if recipe.auto:
        keys = " and ".join(recipe.auto)
        recipe = _provisional(recipe)
        notes.append(
            f"{keys}: merge searches for values that are auto; this plan has lambda "
            f"{1 / len(recipe.experts):.3g} and temperature {DEFAULT_TEMPERATURE:g}"
        )
    if calibration is not None and needs_calibration(recipe):
        found = coefficients_for(recipe, calibration, models)
        notes += [] if found is None else found.notes()
    elif needs_calibration(recipe):
        notes.append("the recipe has a sensitivity section: weights are shown without coefficients")
    asked = request(recipe, found, models)
    manifest = asked.manifest()
    notes += models.notes + check_vocabulary(recipe, models)
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


def as_mergekit(recipe: Recipe, found: Coefficients) -> str:
    """A plain mergekit recipe with one weight per layer that gives the same merged model."""
    from sensmerge.scaling.mergekit import mergekit_recipe

    tensors = open_models(recipe).template.checkpoint.tensors
    names, stored = [tensor.name for tensor in tensors], {tensor.dtype for tensor in tensors}
    return mergekit_recipe(recipe, found, names, stored)


def _coefficients(measured: Calibration | None, recipe: Recipe) -> Coefficients | None:
    if measured is None:
        return None
    # Imported here, since NumPy would double the time that a plain merge takes to start.
    from sensmerge.scaling.sigma import coefficients

    return coefficients(measured, recipe)


def _measured(
    recipe: Recipe,
    models: Models,
    calibration: Calibration | str | Path | None,
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

    measured = calibrate(recipe, progress=progress, threads=threads)
    return measured, list(measured.notes)
