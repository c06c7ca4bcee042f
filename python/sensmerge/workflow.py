"""The whole way from a recipe to a merged model: calibrate, choose what is ``auto``, merge.

The rooms that do the work do not know of each other's order; this module does.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge import _core
from sensmerge.merging import disk
from sensmerge.merging.disk import DEFAULT_SHARD_SIZE, MergePlan, MergeResult
from sensmerge.merging.numbers import core_recipe, model_paths, parse_size, template, template_names
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
        max_shard_size: Largest weight file, in bytes or as text such as ``5GB``.
        sync: Flush the output to disk before returning.
        overwrite: Replace a model that is already in ``out``; never an input.
        allow_nan: Let NaN through instead of refusing it.
        chunk_bytes: Bytes a thread works on at a time. The output does not depend on it.

    Returns:
        What was written.

    Raises:
        InputError: Recipe, calibration, checkpoints or output folder cannot be used as they are.
        OSError: The disk failed.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is left behind.
    """
    recipe = Recipe.of(recipe)
    shard_bytes = parse_size(max_shard_size)
    if recipe.auto or (calibration is None and needs_calibration(recipe)):
        # What cannot be merged or written is refused before the long measurement, not after.
        _core.plan(json.dumps(core_recipe(_provisional(recipe), None)), shard_bytes)
        _core.check_output(str(out), [str(path) for path in model_paths(recipe)], overwrite)
    measured, notes = _measured(recipe, calibration, threads=threads, progress=progress)
    if recipe.auto:
        from sensmerge.search.auto import choose

        recipe, chosen = choose(recipe, measured, threads=threads, progress=progress)
        notes += chosen
    result = disk.write(
        recipe,
        out,
        measured,
        coefficients_for(recipe, measured),
        threads=threads,
        progress=progress,
        max_shard_size=max_shard_size,
        sync=sync,
        overwrite=overwrite,
        allow_nan=allow_nan,
        chunk_bytes=chunk_bytes,
    )
    return replace(result, notes=[*notes, *result.notes])


def plan(
    recipe: Recipe | str | Path,
    *,
    calibration: Calibration | str | Path | None = None,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
) -> MergePlan:
    """Say what a merge would write, without calibrating, reading tensors or writing anything.

    Raises:
        InputError: Recipe, calibration or checkpoints cannot be used as they are.
    """
    recipe = Recipe.of(recipe)
    found, notes = None, []
    if recipe.auto:
        keys = " and ".join(recipe.auto)
        recipe = _provisional(recipe)
        notes.append(
            f"{keys}: auto is searched for by a merge; shown with lambda "
            f"{1 / len(recipe.experts):.3g} and temperature {DEFAULT_TEMPERATURE:g}"
        )
    if calibration is not None and needs_calibration(recipe):
        found = coefficients_for(recipe, calibration)
        notes += [] if found is None else found.notes()
    elif needs_calibration(recipe):
        notes.append("the recipe asks for sensitivity: weights are shown before calibration")
    core = _core.plan(json.dumps(core_recipe(recipe, found)), parse_size(max_shard_size))
    described = json.loads(core)
    return MergePlan(core=described, coefficients=found, notes=[*notes, *described["notes"]])


def _provisional(recipe: Recipe) -> Recipe:
    """The recipe with numbers where it says ``auto``, until they are found."""
    return recipe.chosen(1 / len(recipe.experts), DEFAULT_TEMPERATURE) if recipe.auto else recipe


def as_mergekit(recipe: Recipe, found: Coefficients) -> str:
    """A plain mergekit recipe with one weight a layer, for the same merged blocks."""
    from sensmerge.scaling.mergekit import mergekit_recipe

    stored = {tensor.dtype for tensor in _core.Checkpoint(str(template(recipe))).tensors}
    return mergekit_recipe(recipe, found, template_names(recipe), stored)


def _measured(
    recipe: Recipe,
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
        return matching(recipe, calibration), []
    from sensmerge.calibration import calibrate

    measured = calibrate(recipe, progress=progress, threads=threads)
    return measured, list(measured.notes)
