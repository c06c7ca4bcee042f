"""Merging in Core Space: the engine merges small matrices in the place of weights.

They have the weights' names, and the recipe's method and numbers hold for them. A base is zero
throughout, so that the small matrices are task vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.lora.core_space import Matrix
from sensmerge.merging.manifest import numbers, request
from sensmerge.models import open_models

if TYPE_CHECKING:
    from sensmerge.recipe import Recipe
    from sensmerge.scaling.sigma import Coefficients

_BASE = "base"

# Keys of a recipe that say how entries are merged, whatever models they are of.
_KEPT = ("merge_method", "parameters", "semantics", "seed")

# The example by which a method is tried has matrices of this many rows and columns.
_SIDE = 6
_NEAR = 1e-6

Cores = Mapping[str, Matrix]


@dataclass(frozen=True)
class CoreMerge:
    """A recipe's merge of small matrices.

    Attributes:
        recipe: The recipe.
        names: The names of all tensors of the base, by which a tensor's depth is told.
        found: The coefficients; None for a plain merge.
        threads: Threads to use; all cores by default.
    """

    recipe: Recipe
    names: list[str]
    found: Coefficients | None
    threads: int | None

    @cached_property
    def _recipe(self) -> Recipe:
        """The recipe with small matrices for models."""
        said, kept = self.recipe.source, dict[str, Any]()
        for key in _KEPT:
            if key in said:
                kept[key] = said[key]
        listed = zip(said["models"], self.recipe.models, strict=True)
        experts = [
            given if isinstance(given, dict) else {}
            for given, model in listed
            if any(model is expert for expert in self.recipe.experts)
        ]
        kept["models"] = [
            {"model": _expert(place)} | {key: given[key] for key in ("parameters",) if key in given}
            for place, given in enumerate(experts)
        ]
        if self._has_base:
            kept["base_model"] = _BASE
        return self.recipe.replaced(kept)

    @property
    def _has_base(self) -> bool:
        return self.recipe.base_model is not None and self.recipe.method.base != "unused"

    def run(self, experts: Sequence[Cores], merged: Cores) -> list[str]:
        """Merge.

        Args:
            experts: For every expert, its matrices by the names of the weights; all have the same.
            merged: Where the merged ones are written, likewise.

        Returns:
            Notes for the user.

        Raises:
            InputError: The recipe's numbers cannot be used, or merged values are not finite.
        """
        sizes = [each.size for each in merged.values()]
        # Never written to: the system has one page of zeros for all of it.
        pieces = np.split(np.zeros(sum(sizes)), np.cumsum(sizes)[:-1])
        base = {
            name: piece.reshape(each.shape)
            for (name, each), piece in zip(merged.items(), pieces, strict=True)
        }
        return self._carry_out(base, experts, merged)

    def check(self, tensors: Sequence[str]) -> None:
        """Refuse a method for which the model itself matters, and not its changes alone.

        No list says which those are: the recipe merges random matrices, once with a base of zeros
        and once with another base and the same changes, and has to change both alike.

        Args:
            tensors: The names of the weights that are changed.

        Raises:
            InputError: It does not, or the recipe's numbers cannot be used.
        """
        draw = np.random.default_rng(0)

        def drawn() -> dict[str, Matrix]:
            return {name: draw.standard_normal((_SIDE, _SIDE)) for name in tensors}

        def changed(changes: Cores) -> dict[str, Matrix]:
            return {name: other[name] + change for name, change in changes.items()}

        zeros = {name: np.zeros((_SIDE, _SIDE)) for name in tensors}
        other, changes = drawn(), [drawn() for _ in self.recipe.experts]
        alone, beside = drawn(), drawn()
        self._carry_out(zeros, changes, alone)
        self._carry_out(other, [changed(each) for each in changes], beside)
        for name, expected in changed(alone).items():
            error = np.abs(beside[name] - expected).max()
            if not error <= _NEAR * (1.0 + np.abs(expected).max()):
                raise InputError(self._refusal(name))

    def _refusal(self, tensor: str) -> str:
        method = self.recipe.method
        said = (
            f"merge_method: {method.name} merges more than changes here: what it makes of the "
            f"adapters' changes of '{tensor}' depends on the model that they are added to"
        )
        if method.base == "optional" and not self._has_base:
            return f"{said}; name the base_model, so that it merges task vectors"
        if method.base == "unused":
            said += ", unless the models' weights add up to 1"
        return f"{said}; take a method for task vectors, or merge the models with `sensmerge merge`"

    def _carry_out(self, base: Cores, experts: Sequence[Cores], merged: Cores) -> list[str]:
        given = {_expert(place): _checkpoint(each) for place, each in enumerate(experts)}
        if self._has_base:
            given[_BASE] = _checkpoint(base)
        asked = request(self._recipe, None, open_models(self._recipe, given))
        part = self.recipe.parts[0]
        resolved = numbers(self.recipe, part, self.found, list(merged), depth=self.names)
        parts = [replace(each, numbers=resolved) for each in asked.parts]
        asked = replace(asked, parts=parts).with_dtype("float64")
        manifest = asked.manifest()
        outputs = {name: _bytes(each) for name, each in merged.items()}
        said = _core.merge_into(manifest, asked.checkpoints, outputs, threads=self.threads)
        return [*manifest.notes, *said]


def _expert(place: int) -> str:
    return f"expert {place + 1}"


def _checkpoint(cores: Cores) -> _core.Checkpoint:
    described = [(name, "F64", list(each.shape), _bytes(each)) for name, each in cores.items()]
    return _core.Checkpoint.from_memory("Core Space", described)


def _bytes(matrix: Matrix) -> Any:
    return matrix.reshape(math.prod(matrix.shape)).view(np.uint8)
