"""Recipes: mergekit's keys, and the settings of sensitivity."""

from __future__ import annotations

from sensmerge.recipe.fields import DEFAULT_TEMPERATURE, Dtype, Model, Sensitivity, Task
from sensmerge.recipe.parameters import AUTO
from sensmerge.recipe.recipe import Recipe
from sensmerge.recipe.yaml import to_yaml

__all__ = [
    "AUTO",
    "DEFAULT_TEMPERATURE",
    "Dtype",
    "Model",
    "Recipe",
    "Sensitivity",
    "Task",
    "to_yaml",
]
