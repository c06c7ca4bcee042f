"""Weights of experts by groups of tensors, and recipes with such weights.

A learned weight is the recipe's own weight plus an offset that a group of tensors shares, so that
with offsets of 0 the merge is the recipe's.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sensmerge.errors import InputError
from sensmerge.merging.manifest import WEIGHT
from sensmerge.models.layers import layer_of
from sensmerge.recipe.numbers import said_of
from sensmerge.recipe.parameters import SCALE
from sensmerge.recipe.places import at_home, exists
from sensmerge.recipe.tokenizer import with_other_names

if TYPE_CHECKING:
    from sensmerge.merging.manifest import Request
    from sensmerge.recipe import Recipe
    from sensmerge.recipe.fields import Task

Matrix = NDArray[np.float64]

# The name of a tensor's group, from the tensor's name.
_GROUP_OF: dict[str, Callable[[str], str]] = {
    "global": lambda name: "all",
    "block": layer_of,
    "tensor": lambda name: name,
}
GROUPS = tuple(_GROUP_OF)


class Weights:
    """The weights of a recipe, by group.

    Attributes:
        groups: Names of the groups, in the model's order: decoder blocks and the modules outside
            them, single tensors, or one group of all.
        start: [K, groups], the mean of the recipe's weights over a group's entries.
        scale: The mean of |λ| over all entries, the factor of the weights; 1 for a method without
            λ.
    """

    def __init__(self, asked: Request, groups: str) -> None:
        """Take the weights of a request.

        Args:
            asked: The merge.
            groups: ``global``, ``block`` or ``tensor``.

        Raises:
            InputError: λ is 0 everywhere, so that no weight matters.
        """
        self._asked = asked
        merged = [tensor for tensor in asked.manifest().tensors if tensor.merged]
        # In the model's order, in which block 10 comes after block 9.
        merged.sort(key=lambda tensor: _natural(tensor.name))
        numbers = asked.numbers
        self._weights: dict[str, list[float]] = {
            tensor.name: numbers[tensor.name][WEIGHT]  # type: ignore[misc]
            for tensor in merged
        }
        group_of = _GROUP_OF[groups]
        self.groups = list(dict.fromkeys(group_of(name) for name in self._weights))
        places = {group: place for place, group in enumerate(self.groups)}
        self._place = {name: places[group_of(name)] for name in self._weights}
        elements = {tensor.name: math.prod(tensor.shape) for tensor in merged}
        self.scale = _mean_scale(asked, elements)
        if self.scale == 0:
            raise InputError(f"parameters.{SCALE}: is 0, so no weight matters; give another")
        experts = len(next(iter(self._weights.values()), []))
        self.start: Matrix = np.zeros((experts, len(self.groups)))
        sizes = np.zeros(len(self.groups))
        for name, entries in elements.items():
            place = self._place[name]
            self.start[:, place] += np.array(self._weights[name]) * entries
            sizes[place] += entries
        self.start /= np.maximum(sizes, 1)

    def asked(self, offsets: Matrix) -> Request:
        """The request with offsets, [K, groups], added to the weights."""
        return self._asked.with_weights(self.by_tensor(offsets))

    def by_tensor(self, offsets: Matrix) -> list[dict[str, float]]:
        """For every expert, the weight of every tensor with offsets, [K, groups], added."""
        return [
            {
                name: weights[expert] + float(offsets[expert, self._place[name]])
                for name, weights in self._weights.items()
            }
            for expert in range(len(offsets))
        ]

    def add(self, gradient: Matrix, tensor: str, derivatives: list[float]) -> None:
        """Add a tensor's derivatives, one per expert, to a gradient by the offsets, [K, groups]."""
        gradient[:, self._place[tensor]] += derivatives


def _mean_scale(asked: Request, elements: dict[str, int]) -> float:
    """The mean of |λ| over all entries; 1 for a method without λ."""
    entries, numbers = sum(elements.values()), asked.numbers
    scales = [
        abs(float(numbers[name].get(SCALE, 1.0))) * count  # type: ignore[arg-type]
        for name, count in elements.items()
    ]
    return math.fsum(scales) / entries if entries else 0.0


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key that compares numbers in names as numbers."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in name.split(".")]


def with_weights(recipe: Recipe, weights: list[dict[str, float]], home: Path) -> dict[str, Any]:
    """A plain recipe with these weights, as keys and values.

    All other keys are kept, except ``sensitivity``, whose coefficients are in the weights already.

    Args:
        recipe: The recipe that the weights belong to.
        weights: For every expert, the weight of every tensor.
        home: The folder in which the new recipe will be; local paths become relative to it.
    """
    data = moved(recipe, home)
    data.pop("sensitivity", None)
    shared = data.get("parameters")
    if isinstance(shared, dict):
        data["parameters"] = {key: value for key, value in shared.items() if key != WEIGHT}
    experts = {id(model): place for place, model in enumerate(recipe.experts)}
    for model, said in zip(recipe.models, data["models"], strict=True):
        place = experts.get(id(model))
        if place is not None:
            parameters = said.get("parameters") or {}
            said["parameters"] = parameters | {WEIGHT: said_of(weights[place], layer_of)}
    return data


def moved(recipe: Recipe, home: Path) -> dict[str, Any]:
    """A recipe's keys and values, with local paths relative to another folder."""
    data = copy.deepcopy(recipe.source)

    def seen(path: str) -> str:
        there = recipe.folder / at_home(path)
        if not exists(there):
            return path
        return os.path.relpath(there.absolute(), home.absolute())

    if recipe.base_model is not None:
        data["base_model"] = seen(recipe.base_model)
    data |= with_other_names(data, seen)
    for model, said in zip(recipe.models, data["models"], strict=True):
        said["model"] = seen(model.model)
        _move_samples(model.calibration, said, seen)
    if recipe.aim is not None:
        _move_samples(recipe.aim.calibration, data["aim"], seen)
    return data


def _move_samples(task: Task | None, said: Any, seen: Callable[[str], str]) -> None:
    """Change the paths of samples in the section that names them."""
    if task is None:
        return
    files = [seen(file) for file in task.files]
    path = files[0] if len(files) == 1 else files
    if isinstance(said["calibration"], dict):
        said["calibration"]["path"] = path
    else:
        said["calibration"] = path
