"""Recipes as notebooks show them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sensmerge import markup

if TYPE_CHECKING:
    from sensmerge.recipe import Recipe

# Shown in tables of their own.
_LISTS = ("models", "slices", "modules")


def html_of(recipe: Recipe) -> str:
    """A recipe: its keys, its models, and the whole of it as YAML."""
    keys = {key: _written(value) for key, value in recipe.source.items() if key not in _LISTS}
    experts = [
        [
            model.model,
            _written(model.parameters.root or ""),
            "" if model.calibration is None else model.calibration.path,
        ]
        for model in recipe.experts
    ]
    return markup.shown(
        f"Recipe: {recipe.merge_method} of {len(experts)} models",
        markup.facts(keys),
        markup.table(["model", "parameters", "samples"], experts, words=3),
        markup.notes(recipe.notes),
        markup.folded("YAML", markup.verbatim(recipe.to_yaml())),
    )


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
