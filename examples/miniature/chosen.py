"""Coefficients that sensmerge chooses from samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sensmerge import Calibration, Recipe, learn, tune
from sensmerge.search import auto, descent, trials
from ways import SAMPLES

Choice = Literal[
    "auto", "tuned", "learned, global", "learned, block", "learned, tensor", "learned, distill",
    "learned, 30 samples",
]  # fmt: skip

# A recipe's keys, and what sensmerge said about them.
Made = tuple[dict[str, Any], list[str]]
Make = Callable[[Recipe, Calibration, int, int | None], Made]


@dataclass(frozen=True)
class Means:
    """How coefficients are chosen.

    Attributes:
        make: Makes a recipe of one, a calibration, a seed and a number of threads.
        count: Samples a task.
    """

    make: Make
    count: int = SAMPLES


def _auto(recipe: Recipe, measured: Calibration, seed: int, threads: int | None) -> Made:
    source = dict(recipe.source)
    source["parameters"] = source["parameters"] | {"lambda": "auto"}
    source["sensitivity"] = source["sensitivity"] | {"temperature": "auto"}
    asked = Recipe.from_dict(source, folder=recipe.folder)
    found, notes = auto.choose(asked, measured, threads=threads, progress=False)
    return dict(found.source), notes


def _tuned(recipe: Recipe, measured: Calibration, seed: int, threads: int | None) -> Made:
    options = trials.Options(trials=40, seed=seed)
    found = tune(recipe, options, calibration=measured, threads=threads, progress=False)
    return found.recipe, found.notes


def _learned(**options: Any) -> Make:
    def make(recipe: Recipe, measured: Calibration, seed: int, threads: int | None) -> Made:
        asked = descent.Options(**options)
        found = learn(recipe, asked, calibration=measured, threads=threads, progress=False)
        return found.recipe, found.notes

    return make


CHOICES: dict[Choice, Means] = {
    "auto": Means(_auto),
    "tuned": Means(_tuned),
    "learned, global": Means(_learned(groups="global")),
    "learned, block": Means(_learned()),
    "learned, tensor": Means(_learned(groups="tensor")),
    "learned, distill": Means(_learned(loss="distill")),
    "learned, 30 samples": Means(_learned(), count=30),
}
