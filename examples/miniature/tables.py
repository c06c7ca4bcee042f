"""Everything that is measured, in order, and what it was measured with."""

from __future__ import annotations

from typing import Any, get_args

from chosen import Choice
from experiment import Experiment
from family import KINDS, Family
from sensmerge.demo.family import Size
from sensmerge.demo.pages import machine, versions
from ways import (
    TEMPERATURES,
    Way,
    ablation,
    sample_counts,
    temperatures,
    three_experts,
    two_experts,
)

QUICK_TEMPERATURES = (0.05, 1.0)

# What is chosen again from the experts' own training data.
FROM_TRAINING: tuple[Choice, ...] = ("tuned", "learned, block")


def everything(experiment: Experiment, *, grid: tuple[float, ...] = TEMPERATURES) -> None:
    """Measure every row of every table."""
    scales = experiment.choose_scales()
    for sections in (three_experts(scales), ablation(), two_experts(), sample_counts()):
        for _, ways in sections:
            experiment.run(ways)
    for ways in temperatures(scales, grid).values():
        experiment.run(ways)
    experiment.run(from_either(scales))
    for choice in get_args(Choice):
        experiment.choose(choice, "fresh")
    for choice in FROM_TRAINING:
        experiment.choose(choice, "training")


def from_either(scales: dict[str, float]) -> list[Way]:
    """Sens-Merging at plain task arithmetic's own best λ, by samples of either kind."""
    return [Way(scale=scales["task_arithmetic"], mode="full", kind=kind) for kind in KINDS]


def made(
    family: Family, size: Size, seed: int, grid: tuple[float, ...], minutes: float
) -> dict[str, Any]:
    """By what everything was measured."""
    return {
        "parameters": family.parameters,
        "blocks": size.blocks,
        "held_back": size.amounts.held_back,
        "development": size.amounts.development,
        "seed": seed,
        "temperatures": list(grid),
        "minutes": minutes,
        "machine": machine(),
        "versions": versions(),
    }
