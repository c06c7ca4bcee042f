"""The coefficients that a recipe asks for, if any."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge.errors import InputError
from sensmerge.scaling.matching import (
    matching,
    needs_calibration,
    needs_coefficients,
    with_statistics,
)

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.models import Models
    from sensmerge.recipe import Recipe
    from sensmerge.scaling.sigma import Coefficients


def with_measurements(
    recipe: Recipe, calibration: Calibration | str | Path | None, models: Models
) -> tuple[Models, Coefficients | None]:
    """The models with what was measured of them, and the coefficients that a recipe asks for.

    Args:
        recipe: The recipe.
        calibration: A calibration of its experts, or its path.
        models: The recipe's models.

    Returns:
        The models, with statistics if the method needs them; and the coefficients, None for a
        plain merge.

    Raises:
        InputError: The recipe asks for coefficients and there is no calibration, or one without all
            of its experts; or the method needs statistics and there are none.
    """
    if not needs_calibration(recipe):
        return models, None
    found = None if calibration is None else matching(recipe, calibration, models)
    models = with_statistics(recipe, found, models)
    if not needs_coefficients(recipe):
        return models, None
    if found is None:
        raise InputError(
            "the recipe has a sensitivity section: give a calibration, or remove the section"
        )
    # Imported here, since NumPy would double the time that a plain merge takes to start.
    from sensmerge.scaling.sigma import coefficients

    return models, coefficients(found, recipe)
