"""Models on disk or in memory: their folders, tensors, layers and configs."""

from __future__ import annotations

from sensmerge.models.opened import (
    Activations,
    Model,
    Models,
    Statistics,
    open_model,
    open_models,
)

__all__ = ["Activations", "Model", "Models", "Statistics", "open_model", "open_models"]
