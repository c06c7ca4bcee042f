"""Which part of a calibration belongs to which recipe."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge.errors import InputError
from sensmerge.models import open_models

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.models import Models
    from sensmerge.recipe import Recipe


def needs_calibration(recipe: Recipe) -> bool:
    """Whether a recipe asks for coefficients from data."""
    return recipe.sensitivity is not None and recipe.sensitivity.mode != "off"


def matching(
    recipe: Recipe, calibration: Calibration | str | Path, models: Models | None = None
) -> Calibration:
    """The part of a calibration that belongs to a recipe's experts, in the recipe's order.

    Args:
        recipe: The recipe.
        calibration: The calibration, or its path.
        models: The recipe's models, where they are open already.

    Raises:
        InputError: An expert is not in it, or it was measured with other options than the recipe
            names.
    """
    from sensmerge.calibration import Calibration

    if not isinstance(calibration, Calibration):
        calibration = Calibration.load(Path(calibration))
    asked = recipe.sensitivity
    for name in sorted(asked.model_fields_set) if asked is not None else []:
        if name in calibration.options and calibration.options[name] != getattr(asked, name):
            raise InputError(
                f"sensitivity.{name}: the recipe says {getattr(asked, name)} and the calibration "
                f"was measured with {calibration.options[name]}; calibrate again or change the key"
            )
    opened = (models or open_models(recipe)).experts
    with ThreadPoolExecutor() as pool:
        fingerprints = list(pool.map(lambda model: model.checkpoint.fingerprint(), opened))
    selected = calibration.select(fingerprints)
    # The weights may have had other names when they were measured.
    experts = [
        replace(measured, model=expert.model)
        for measured, expert in zip(selected.experts, recipe.experts, strict=True)
    ]
    return replace(selected, experts=experts)
