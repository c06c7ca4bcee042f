"""The files and tokenizers of a recipe's models that are to be run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sensmerge.calibration import loading
from sensmerge.models import open_models

if TYPE_CHECKING:
    from sensmerge.recipe import Model, Recipe


def open_sources(
    recipe: Recipe, experts: list[Model], *, progress: bool = True
) -> list[loading.Source]:
    """The files and the tokenizers of some of a recipe's models."""
    models = open_models(recipe, progress=progress)
    base = None if models.base is None else models.base.path
    opened = [models.find(expert.model) for expert in experts]
    return [
        loading.open_source(expert.model, model.path, base, model)
        for expert, model in zip(experts, opened, strict=True)
    ]
