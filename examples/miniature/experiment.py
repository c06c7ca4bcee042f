"""Merging and scoring, each way for every draw of samples."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import sensmerge
from chosen import CHOICES, Choice
from family import Family
from results import Results, Row
from sensmerge import Calibration, Coefficients, Recipe
from sensmerge.demo.evaluate import Score, evaluate
from sensmerge.demo.family import Say
from sensmerge.demo.recipes import METHODS
from ways import LAMBDAS, SAMPLES, Way


class Experiment:
    """One family, several draws of samples.

    Attributes:
        results: What was measured so far.
    """

    def __init__(self, family: Family, draws: int, threads: int | None, say: Say) -> None:
        """Score what is not merged.

        Args:
            family: The family.
            draws: How many times samples are drawn.
            threads: Threads to use; all cores by default.
            say: Told what is going on.
        """
        self._family = family
        self._draws = range(draws)
        self._threads = threads
        self._say = say
        self._merged = family.folder / "merged"
        self.results = Results({}, {}, {})
        for name in ("base", *family.texts):
            self._keep(name, [evaluate(family.folder / name, family.held_back)])
        # Not a method: a cache on one would outlive the experiment.
        self._calibration = cache(self._calibrated)

    def choose_scales(self) -> dict[str, float]:
        """Every plain method's λ with the lowest loss on the development samples."""
        for method in METHODS:
            self._say(f"{method}: its own best λ, of {len(LAMBDAS)}")
            losses = {
                scale: self._score(Way(method, scale).data(0), None, held_back=False).mean
                for scale in LAMBDAS
            }
            self.results.scales[method] = min(losses, key=lambda scale: losses[scale])
        return self.results.scales

    def run(self, ways: Iterable[Way]) -> None:
        """Merge and score what was not yet."""
        for way in ways:
            if way.name in self.results.rows:
                continue
            scores = []
            for draw in self._draws if way.is_random else range(1):
                found = None if way.mode is None else self._calibration(way.kind, way.count, draw)
                scores.append(self._score(way.data(draw), found))
            self._keep(way.name, scores)

    def choose(self, choice: Choice, kind: str) -> None:
        """Let sensmerge choose coefficients from samples, and score what it chose."""
        scores, notes = [], []
        for draw in self._draws:
            count = CHOICES[choice].count
            data = Way(mode="full", kind=kind, count=count).data(draw)
            measured = self._calibration(kind, count, draw)
            recipe = Recipe.from_dict(data, folder=self._family.folder)
            found, said = CHOICES[choice].make(recipe, measured, draw, self._threads)
            scores.append(self._score(found, measured if "sensitivity" in found else None))
            notes.append(said)
        name = f"{choice}, {kind}"
        self._keep(name, scores)
        self.results.notes[name] = notes

    def first(self) -> tuple[Calibration, Coefficients]:
        """What the first draw measured on fresh samples, and the coefficients from it."""
        recipe = Recipe.from_dict(Way(mode="full").data(0), folder=self._family.folder)
        measured = self._calibration("fresh", SAMPLES, 0)
        return measured, sensmerge.coefficients(measured, recipe)

    def _calibrated(self, kind: str, count: int, draw: int) -> Calibration:
        self._say(f"calibration: {count} {kind} samples a task, draw {draw + 1}")
        data = Way(mode="full", kind=kind, count=count).data(draw)
        recipe = Recipe.from_dict(data, folder=self._family.folder)
        return sensmerge.calibrate(recipe, progress=False, threads=self._threads)

    def _score(
        self, data: dict[str, Any], measured: Calibration | None, *, held_back: bool = True
    ) -> Score:
        recipe = Recipe.from_dict(data, folder=self._family.folder)
        output: Path = self._merged / "model"
        sensmerge.merge(
            recipe, output, calibration=measured, threads=self._threads, progress=False, sync=False
        )
        try:
            samples = self._family.held_back if held_back else self._family.development
            return evaluate(output, samples)
        finally:
            shutil.rmtree(output)

    def _keep(self, name: str, scores: list[Score]) -> None:
        self.results.rows[name] = Row.of(scores)
        self._say(f"{name}: {self.results.rows[name].mean:.4f}")
