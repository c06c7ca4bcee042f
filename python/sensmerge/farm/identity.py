"""What makes two candidates the same: all that decides their bytes, however it is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge.calibration.record import MEASURED
from sensmerge.reading import LARGE, mode_of, opened
from sensmerge.recipe.places import at_home
from sensmerge.scaling.matching import needs_calibration, needs_coefficients

if TYPE_CHECKING:
    from sensmerge.recipe import Recipe, Task
    from sensmerge.recipe.slices import Slice

# Gives a digest of the weights of a model of a recipe, by its name there.
Weights = Callable[[str], str]

# Settings of the sensitivity section that only some modes look at.
_OF_TAU = {"cross_task", "tau"}


def digest(said: Any) -> str:
    """A digest of plain data, whatever the order of its keys."""
    text = json.dumps(said, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def identity(recipe: Recipe, weights: Weights, calibration: str | None) -> str:
    """A digest of all that decides the bytes of a recipe's merge.

    Parameters count with their defaults, models by their weights.

    Args:
        recipe: The recipe.
        weights: Digests of its models' weights.
        calibration: The key of its calibration, by :func:`calibration_key`; None without one.
    """
    sensitivity = None
    if needs_coefficients(recipe) and recipe.sensitivity is not None:
        unused = _OF_TAU if recipe.sensitivity.mode == "task" else set[str]()
        sensitivity = recipe.sensitivity.model_dump(exclude=MEASURED | unused)
    return digest(
        {
            "method": [recipe.merge_method, recipe.semantics],
            "base": _weights(recipe.base_model, weights),
            "parts": [_part(recipe, part, weights) for part in recipe.parts],
            "dtype": recipe.out_dtype or recipe.dtype,
            "tokenizer": [recipe.wanted_tokenizer.model_dump(), recipe.chat_template],
            "aim": None if recipe.aim is None else recipe.aim.omega,
            "rules": [recipe.align, recipe.missing, recipe.seed],
            "sensitivity": sensitivity,
            "calibration": calibration,
        }
    )


def _weights(name: str | None, weights: Weights) -> str | None:
    return None if name is None else weights(name)


def _part(recipe: Recipe, part: Slice, weights: Weights) -> Any:
    method = recipe.method
    of_model = [each for each in method.parameters if each.owner == "model"]
    of_merge = [each for each in method.parameters if each.owner == "merge"]
    return {
        "base": _weights(recipe.base_of(part), weights),
        "module": part.module,
        "models": [
            [
                weights(expert.model),
                getattr(expert, "layer_range", None),
                {
                    each.name: _settled(recipe.settings(expert, each.name, part), each.default)
                    for each in of_model
                },
            ]
            for expert in recipe.experts_of(part)
        ],
        "merge": {
            each.name: _settled(
                [part.parameters.get(each.name), recipe.parameters.get(each.name)], each.default
            )
            for each in of_merge
        },
    }


def _settled(said: Sequence[Any], default: Any) -> list[Any]:
    """The settings that can count, the strongest first: none comes after a plain number."""
    found = []
    for setting in [*said, default]:
        if setting is not None:
            found.append(setting)
            if isinstance(setting, bool | int | float):
                break
    return found


def shape_of(recipe: Recipe) -> str:
    """A key of all that decides which models are opened, and how large the output is."""

    def bare(part: Any) -> Any:
        return {key: said for key, said in part.items() if key not in ("parameters", "calibration")}

    kept = bare(recipe.source)
    for key in ("sensitivity", "seed", "name"):
        kept.pop(key, None)
    if isinstance(kept.get("models"), list):
        kept["models"] = [bare(each) for each in kept["models"]]
    return digest(kept | {"aim": recipe.aim is not None})


def calibration_key(
    recipe: Recipe, weights: Weights, content: Callable[[Path], str | None]
) -> str | None:
    """A digest of all that decides what a calibration of a recipe measures.

    Args:
        recipe: The recipe.
        weights: Digests of its models' weights.
        content: Digests of files; None where there is none.

    Returns:
        None for a recipe that needs none.
    """
    if not needs_calibration(recipe):
        return None
    options = recipe.sensitivity
    measured = recipe.measured if recipe.measures_experts else []
    experts = [
        [weights(each.model), _samples(recipe, each.calibration, content)] for each in measured
    ]
    base = None
    if recipe.aim is not None and recipe.base_model is not None:
        tasks = [recipe.aim.calibration]
        if recipe.aim.calibration is None:
            tasks = [each.calibration for each in recipe.experts]
        base = [weights(recipe.base_model), [_samples(recipe, each, content) for each in tasks]]
    return digest(
        {
            "experts": experts,
            "aim": base,
            "statistic": recipe.method.statistic,
            "options": None if options is None else options.model_dump(include=MEASURED),
        }
    )


def _samples(recipe: Recipe, task: Task | None, content: Callable[[Path], str | None]) -> Any:
    if task is None:
        return None
    files = [recipe.folder / at_home(file) for file in task.files]
    return [[content(file) for file in files], task.samples, task.max_length]


def content_digest(path: Path) -> str | None:
    """A digest of a file; None where there is none.

    Raises:
        InputError: It cannot be read.
    """
    if mode_of(path) is None:
        return None
    with opened(path, 100 * LARGE) as (file, _):
        return hashlib.file_digest(file, "sha256").hexdigest()
