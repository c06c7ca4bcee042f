"""Matching a calibration to a recipe, by the fingerprints of the experts' weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.models import Activations, Models, Statistics, open_models

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.recipe import Recipe


def needs_coefficients(recipe: Recipe) -> bool:
    """Whether a recipe asks for coefficients by sensitivity."""
    return recipe.sensitivity is not None and recipe.sensitivity.mode != "off"


def needs_calibration(recipe: Recipe) -> bool:
    """Whether a recipe asks for coefficients or damping, or its method for statistics."""
    return needs_coefficients(recipe) or needs_files(recipe)


def needs_files(recipe: Recipe) -> bool:
    """Whether what a recipe needs is measured into files beside the calibration."""
    return recipe.aim is not None or recipe.method.statistic is not None


def with_statistics(recipe: Recipe, calibration: Calibration | None, models: Models) -> Models:
    """The models with what was measured of them, if the recipe or its method needs it.

    Args:
        recipe: The recipe.
        calibration: Its calibration, by :func:`matching`.
        models: Its models.

    Raises:
        InputError: Nothing of that kind was measured, or a file is missing or has changed.
    """
    models = _damped(recipe, calibration, models)
    kind = recipe.method.statistic
    if kind is None:
        return models
    method = recipe.merge_method
    if calibration is None:
        raise InputError(f"{method} needs a calibration: run sensmerge calibrate with this recipe")
    if not calibration.statistics or any(each.kind != kind for each in calibration.statistics):
        raise InputError(
            f"the calibration has no {kind} statistics, which {method} needs; run sensmerge "
            "calibrate again, with this recipe"
        )
    found: dict[str, Statistics] = {}
    for expert, file in zip(calibration.experts, calibration.statistics, strict=True):
        checkpoint = _beside(calibration, "statistics", file.file, file.fingerprint)
        if expert.model in found and found[expert.model].tensors is not file.tensors:
            raise InputError(
                f"models: '{expert.model}' is listed twice, and {method} has one set of statistics "
                "for each model; list it once, with all its samples"
            )
        found[expert.model] = Statistics(checkpoint, file.tensors)
    return models.measured(found)


def _damped(recipe: Recipe, calibration: Calibration | None, models: Models) -> Models:
    """The models with what was measured of the base's activations, if the recipe asks for aim."""
    if recipe.aim is None or models.base is None:
        return models
    if calibration is None:
        raise InputError("aim needs a calibration: run sensmerge calibrate with this recipe")
    found = calibration.activations
    if found is None:
        raise InputError(
            "aim: the calibration has no activations of the base; run sensmerge calibrate again, "
            "with this recipe"
        )
    if found.weights != models.base.fingerprint():
        raise InputError(
            f"aim: the calibration has the activations of {found.model}, and the weights of "
            f"{models.base.name} are other ones; calibrate again"
        )
    checkpoint = _beside(calibration, "activations", found.file, found.fingerprint)
    return models.damped(models.base.name, Activations(checkpoint, found.transposed))


def _beside(calibration: Calibration, key: str, file: str, fingerprint: str) -> _core.Checkpoint:
    """A file beside a calibration, as it was written."""
    if Path(file).name != file:
        raise InputError(f"{key}: '{file}' is no bare file name")
    path = (calibration.folder or Path()) / file
    checkpoint = _core.Checkpoint(str(path))
    if checkpoint.fingerprint() != fingerprint:
        raise InputError(f"{path}: has changed since it was measured; calibrate again")
    return checkpoint


def matching(
    recipe: Recipe, calibration: Calibration | str | Path, models: Models | None = None
) -> Calibration:
    """The part of a calibration for the models that a recipe measures, in its order and names.

    Args:
        recipe: The recipe.
        calibration: The calibration, or its path.
        models: The recipe's models, if they are open already.

    Raises:
        InputError: The calibration cannot be read, lacks an expert, or was measured with other
            options than those in the recipe.
    """
    from concurrent.futures import ThreadPoolExecutor

    from sensmerge.calibration import Calibration

    if not isinstance(calibration, Calibration):
        calibration = Calibration.load(Path(calibration))
    asked = recipe.sensitivity
    if asked is not None and recipe.measures_experts:
        calibration.require_measure(asked.measure)
    for name in sorted(asked.model_fields_set) if asked is not None else []:
        if name in calibration.options and calibration.options[name] != getattr(asked, name):
            raise InputError(
                f"sensitivity.{name}: the recipe says {getattr(asked, name)} and the calibration "
                f"was measured with {calibration.options[name]}; calibrate again or change the key"
            )
    if not recipe.measures_experts:
        return calibration
    models = models or open_models(recipe)
    opened = [models.find(model.model) for model in recipe.measured]
    with ThreadPoolExecutor() as pool:
        fingerprints = list(pool.map(lambda model: model.fingerprint(), opened))
    selected = calibration.select(fingerprints)
    # The same weights may have had other names when they were measured.
    experts = [
        replace(measured, model=expert.model)
        for measured, expert in zip(selected.experts, recipe.measured, strict=True)
    ]
    return replace(selected, experts=experts)
