"""The steps that a merge, and the plan of one, have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge import _core
from sensmerge.merging.manifest import request
from sensmerge.merging.tokenizer import merged_tokenizer
from sensmerge.models import Models
from sensmerge.recipe import DEFAULT_TEMPERATURE, Recipe
from sensmerge.scaling.matching import (
    matching,
    needs_calibration,
    needs_coefficients,
    with_statistics,
)

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.scaling.sigma import Coefficients


def check(
    recipe: Recipe,
    models: Models,
    out: str | Path,
    calibration: Calibration | str | Path | None,
    copies: list[str],
    *,
    overwrite: bool,
    threads: int | None,
    progress: bool,
) -> None:
    """Refuse a merge that is bound to fail before a long measurement rather than after it."""
    inputs = [str(path) for model in models.all for path in model.paths]
    _core.check_output(str(out), [*inputs, *copies], overwrite)
    if recipe.auto or (calibration is None and needs_calibration(recipe)):
        if recipe.method.statistic is None:
            known = sketched(recipe)
            asked = request(known, None, models, threads=threads, progress=progress)
            tensors = asked.manifest().tensors
            _core.check_space(str(out), sum(tensor.nbytes for tensor in tensors))
        merged_tokenizer(recipe, models)


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


def _coefficients(measured: Calibration | None, recipe: Recipe) -> Coefficients | None:
    """The coefficients of a recipe; None for a plain merge."""
    if measured is None or not needs_coefficients(recipe):
        return None
    # Imported here, since NumPy would double the time that a plain merge takes to start.
    from sensmerge.scaling.sigma import coefficients

    return coefficients(measured, recipe)


def provisional(recipe: Recipe) -> Recipe:
    """The recipe with provisional numbers for its ``auto`` values."""
    return recipe.chosen(1 / len(recipe.experts), DEFAULT_TEMPERATURE) if recipe.auto else recipe


def sketched(recipe: Recipe) -> Recipe:
    """The recipe as far as it can be merged before anything is measured: for a sketch of it."""
    return undamped(provisional(recipe))


def undamped(recipe: Recipe) -> Recipe:
    """The recipe without ``aim``, for which nothing is measured yet."""
    if recipe.aim is None:
        return recipe
    return recipe.replaced({key: said for key, said in recipe.source.items() if key != "aim"})
