"""The steps that a merge, and the plan of one, have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge import _core
from sensmerge.merging.manifest import request
from sensmerge.merging.tokenizer import merged_tokenizer
from sensmerge.models import Models
from sensmerge.recipe import DEFAULT_TEMPERATURE, Recipe
from sensmerge.scaling.matching import matching, needs_calibration, needs_coefficients

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.scaling.sigma import Coefficients


@dataclass(frozen=True)
class How:
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


def check(
    recipe: Recipe,
    models: Models,
    out: str | Path,
    calibration: Calibration | str | Path | None,
    how: How,
    copies: list[str],
) -> None:
    """Refuse a merge that is bound to fail before a long measurement rather than after it."""
    inputs = [str(path) for model in models.all for path in model.paths]
    _core.check_output(str(out), [*inputs, *copies], how.overwrite)
    if recipe.auto or (calibration is None and needs_calibration(recipe)):
        if recipe.method.statistic is None:
            sketched = undamped(provisional(recipe))
            asked = request(sketched, None, models, threads=how.threads, progress=how.progress)
            tensors = asked.manifest().tensors
            _core.check_space(str(out), sum(tensor.nbytes for tensor in tensors))
        merged_tokenizer(recipe, models)


def measure(
    recipe: Recipe,
    models: Models,
    calibration: Calibration | str | Path | None,
    device: str,
    keep: Path | None,
    *,
    threads: int | None,
    progress: bool,
) -> tuple[Calibration | None, list[str]]:
    """The calibration that a recipe needs, measured unless it is given, and notes on it."""
    if not needs_calibration(recipe):
        if calibration is None:
            return None, []
        return None, ["the recipe has no sensitivity section: the calibration was not used"]
    if calibration is not None:
        return matching(recipe, calibration, models), []
    from sensmerge.calibration import calibrate

    measured = calibrate(recipe, progress=progress, threads=threads, device=device, keep=keep)
    return measured, list(measured.notes)


def choose_auto(
    recipe: Recipe, measured: Calibration | None, how: How, device: str
) -> tuple[Recipe, list[str]]:
    """The recipe with numbers for its ``auto`` values, and notes on how they were chosen."""
    if not recipe.auto:
        return recipe, []
    from sensmerge.search.auto import choose

    return choose(recipe, measured, device=device, threads=how.threads, progress=how.progress)


def coefficients_of(measured: Calibration | None, recipe: Recipe) -> Coefficients | None:
    """The coefficients of a recipe; None for a plain merge."""
    if measured is None or not needs_coefficients(recipe):
        return None
    # Imported here, since NumPy would double the time that a plain merge takes to start.
    from sensmerge.scaling.sigma import coefficients

    return coefficients(measured, recipe)


def provisional(recipe: Recipe) -> Recipe:
    """The recipe with provisional numbers for its ``auto`` values."""
    return recipe.chosen(1 / len(recipe.experts), DEFAULT_TEMPERATURE) if recipe.auto else recipe


def undamped(recipe: Recipe) -> Recipe:
    """The recipe without ``aim``, for which nothing is measured yet."""
    if recipe.aim is None:
        return recipe
    return recipe.replaced({key: said for key, said in recipe.source.items() if key != "aim"})
