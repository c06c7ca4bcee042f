"""The coefficients that a recipe asks for, if any."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge.errors import InputError
from sensmerge.scaling.matching import matching, needs_calibration

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.models import Models
    from sensmerge.recipe import Recipe
    from sensmerge.scaling.sigma import Coefficients


def coefficients_for(
    recipe: Recipe,
    calibration: Calibration | str | Path | None,
    models: Models | None = None,
) -> Coefficients | None:
    """The coefficients that a recipe asks for, from a calibration; None for a plain merge.

    Args:
        recipe: The recipe.
        calibration: A calibration of its experts, or its path.
        models: The recipe's models, if they are open already.

    Raises:
        InputError: The recipe asks for coefficients and there is no calibration, or one without all
            of its experts.
    """
    if not needs_calibration(recipe):
        return None
    if calibration is None:
        raise InputError(
            "the recipe has a sensitivity section: give a calibration, or remove the section"
        )
    # Imported here, since NumPy would double the time that a plain merge takes to start.
    from sensmerge.scaling.sigma import coefficients

    return coefficients(matching(recipe, calibration, models), recipe)
