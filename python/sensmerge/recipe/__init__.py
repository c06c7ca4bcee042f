"""Recipes: mergekit's keys, and the settings of sensitivity."""

from __future__ import annotations

from sensmerge.recipe.fields import DEFAULT_TEMPERATURE, Dtype, Model, Sensitivity, Task
from sensmerge.recipe.leniency import DEFAULT_LENIENCY, Leniency
from sensmerge.recipe.parameters import AUTO
from sensmerge.recipe.recipe import Recipe
from sensmerge.recipe.stages import Stage, StagedRecipe, load
from sensmerge.recipe.yaml import to_yaml

__all__ = [
    "AUTO",
    "DEFAULT_LENIENCY",
    "DEFAULT_TEMPERATURE",
    "Dtype",
    "Leniency",
    "Model",
    "Recipe",
    "Sensitivity",
    "Stage",
    "StagedRecipe",
    "Task",
    "load",
    "to_yaml",
]
