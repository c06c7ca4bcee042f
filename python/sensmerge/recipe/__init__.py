"""What the user wrote: mergekit's keys, and how sensitivity is measured and used."""

from __future__ import annotations

from sensmerge.recipe.recipe import (
    AUTO,
    DEFAULT_TEMPERATURE,
    Dtype,
    MethodName,
    Model,
    Recipe,
    Sensitivity,
    Task,
    to_yaml,
)

__all__ = [
    "AUTO",
    "DEFAULT_TEMPERATURE",
    "Dtype",
    "MethodName",
    "Model",
    "Recipe",
    "Sensitivity",
    "Task",
    "to_yaml",
]
