"""The run: base, samples, experts, calibration, choices, merges and their scores, in stages."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import base_model
import merges
import sensmerge
import splits
import training
from kept import Kept
from merges import BASE, GUIDED, LAMBDAS, SCALED, Way
from outcome import Outcome, Row
from sensmerge import Calibration, MergeResult, Recipe, learn
from sensmerge.calibration.samples import Sample
from sensmerge.demo.evaluate import Score, load, score
from sensmerge.demo.family import Say
from sensmerge.demo.pages import machine, versions
from sensmerge.search import descent
from splits import Amounts
from training import Training


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        amounts: Samples.
        training: Of every expert.
        lambdas: Where every method looks for its λ.
        learning_steps: Steps of ``learn``; 0 leaves it out.
    """

    amounts: Amounts
    training: Training
    lambdas: tuple[float, ...]
    learning_steps: int


FULL = Size(
    Amounts(longest=192, calibration=12, held_back=40, training=600),
    Training(rank=8, alpha=16, steps=60, rows=8, learning_rate=5e-4),
    LAMBDAS,
    learning_steps=8,
)
QUICK = Size(
    Amounts(longest=192, calibration=2, held_back=3, training=4),
    Training(rank=2, alpha=4, steps=2, rows=2, learning_rate=5e-3),
    LAMBDAS[:2],
    learning_steps=1,
)


class Run:
    """One run in one work folder.

    Attributes:
        kept: Its stages.
    """

    def __init__(
        self, folder: Path, source: Path, data: Path, size: Size, threads: int | None, say: Say
    ) -> None:
        """Nothing is done yet.

        Args:
            folder: The work folder.
            source: The base: a GGUF file, or a folder that transformers loads.
            data: The folder of samples.
            size: How much of everything.
            threads: Threads of merges; all cores by default.
            say: Told what is going on.
        """
        self.kept = Kept(folder, say)
        self._folder = folder
        self._source = source
        self._data = data
        self._size = size
        self._threads = threads
        self._say = say
        self._settings: dict[str, Any] = {}
        self._held_back: dict[str, list[Sample]] = {}
        self._calibration: dict[str, list[Sample]] = {}
        self._measured: Calibration | None = None

    def all(self, seed: int) -> Outcome:
        """Carry out every stage that is not done, and put everything together."""
        base = self._make_base()
        learned = self._make_experts(base, seed)
        self._calibrate()
        rows = {name: self._measure(way, name) for name, way in merges.singles().items()}
        scales = self._choose_scales()
        for way in self._ways({name: found["scale"] for name, found in scales.items()}):
            if way.name not in rows:
                rows[way.name] = self._measure(way, way.name)
        if self._size.learning_steps:
            rows["learned"] = self._learn(scales["task_arithmetic"]["scale"])
        amounts = self._size.amounts
        return Outcome(
            rows,
            {task: [len(one.scored) for one in found] for task, found in self._held_back.items()},
            scales,
            [(one.name, round(one.wall, 1), round(one.processor, 1)) for one in self.kept.stages],
            {
                "source": self._source.stem,
                "base": base,
                "experts": learned,
                "amounts": asdict(amounts),
                "training": asdict(self._size.training),
                "lambdas": list(self._size.lambdas),
                "learning_steps": self._size.learning_steps,
                "seed": seed,
                "machine": machine(),
                "versions": versions(),
            },
        )

    def _make_base(self) -> dict[str, Any]:
        found: dict[str, Any] = self.kept.stage(
            "base",
            {"source": str(self._source)},
            lambda: base_model.make(self._source, self._folder / BASE),
            self._folder / BASE / "model.safetensors",
        )
        return found

    def _make_experts(self, base: dict[str, Any], seed: int) -> dict[str, dict[str, Any]]:
        """Deal out the samples, which takes seconds and is done anew, and train the experts."""
        found = splits.split(self._data, self._folder / BASE, self._size.amounts, seed)
        splits.write(found, self._folder / "samples")
        self._held_back = {task: part.held_back for task, part in found.items()}
        self._calibration = {task: part.calibration for task, part in found.items()}
        learned = {}
        for place, (task, part) in enumerate(found.items()):
            settings = {
                "base": base["sha256"],
                "samples": [sample.place for sample in part.training],
                "how": asdict(self._size.training),
                "seed": seed + place,
            }
            output = self._folder / "adapters" / task

            def make(task: str = task, output: Path = output, seed: int = seed + place) -> Any:
                return training.train(
                    self._folder / BASE, found[task].training, output, self._size.training, seed,
                    self._say,
                )  # fmt: skip

            self._say(f"expert {task}: {len(part.training)} samples")
            kept = self.kept.stage(f"expert-{task}", settings, make, output)
            learned[task] = kept | {"samples": len(part.training)}
        self._settings = {
            "base": base["sha256"],
            "experts": {task: one["sha256"] for task, one in learned.items()},
            "sensmerge": sensmerge.__version__,
        }
        return learned

    def _recipe(self, way: Way) -> Recipe:
        amounts = self._size.amounts
        data = way.data(amounts.calibration, amounts.longest)
        return Recipe.from_dict(data, folder=self._folder)

    def _calibrate(self) -> None:
        recipe = self._recipe(merges.plain("task_arithmetic").guided())
        path = self._folder / "calibration.json"

        def make() -> list[str]:
            measured = sensmerge.calibrate(recipe, progress=False, threads=self._threads)
            measured.save(path)
            return list(measured.notes)

        rows = {task: [one.place for one in found] for task, found in self._calibration.items()}
        self._settings["calibration"] = rows
        self.kept.stage("calibration", self._settings | {"recipe": dict(recipe.source)}, make, path)
        self._measured = Calibration.load(path)

    def _choose_scales(self) -> dict[str, dict[str, Any]]:
        """λ with the lowest mean loss on the calibration samples, plain and with Sens-Merging."""
        wanted = {method: merges.plain(method) for method in SCALED}
        wanted |= {f"{method} + sens": merges.plain(method).guided() for method in GUIDED}
        found = {}
        for name, way in wanted.items():

            def make(way: Way = way) -> dict[str, float]:
                return {
                    str(scale): self._merged(way.at(scale), self._calibration)[0].mean
                    for scale in self._size.lambdas
                }

            settings = self._settings | {"recipe": self._source_of(way)}
            settings["lambdas"] = list(self._size.lambdas)
            losses = self.kept.stage(f"lambda-{name.replace(' ', '')}", settings, make)
            best = min(losses, key=lambda scale: losses[scale])
            found[name] = {"scale": float(best), "losses": losses}
        return found

    def _ways(self, scales: dict[str, float]) -> list[Way]:
        found = [*merges.defaults(), *merges.chosen(scales), *merges.pairs()]
        for method in GUIDED:
            found += merges.guided(method, scales[method], scales[f"{method} + sens"])
        return [*found, *merges.ablation(scales["task_arithmetic"]), merges.automatic()]

    def _source_of(self, way: Way) -> dict[str, Any]:
        return dict(self._recipe(way).source)

    def _measure(self, way: Way, name: str) -> Row:
        """Merge and score on the held-back samples."""

        def make() -> dict[str, Any]:
            found, merged = self._merged(way, self._held_back)
            return asdict(Row.of(found, merged.seconds, merged.notes))

        settings = self._settings | {"recipe": self._source_of(way), "held_back": self._places()}
        return Row(**self.kept.stage(_file_name(f"merge-{name}"), settings, make))

    def _places(self) -> dict[str, list[str]]:
        return {task: [one.place for one in found] for task, found in self._held_back.items()}

    def _learn(self, scale: float) -> Row:
        """Learn a weight for every expert and block, from the same samples; merge and score it."""
        recipe = self._recipe(merges.plain("task_arithmetic").at(scale))
        options = descent.Options(steps=self._size.learning_steps)

        def make() -> dict[str, Any]:
            found = learn(recipe, options, threads=self._threads, progress=False)
            asked = Recipe.from_dict(found.recipe, folder=self._folder)
            scored, merged = self._merge(asked, None, self._held_back)
            return asdict(Row.of(scored, merged.seconds, [*found.notes, *merged.notes]))

        settings = self._settings | {"recipe": dict(recipe.source), "options": asdict(options)}
        return Row(**self.kept.stage("learned", settings | {"held_back": self._places()}, make))

    def _merged(self, way: Way, samples: dict[str, list[Sample]]) -> tuple[Score, MergeResult]:
        measured = None if way.sensitivity is None else self._measured
        return self._merge(self._recipe(way), measured, samples)

    def _merge(
        self, recipe: Recipe, measured: Calibration | None, samples: dict[str, list[Sample]]
    ) -> tuple[Score, MergeResult]:
        """Merge into a folder, score the model as any user would load it, remove it."""
        output = self._folder / "merged"
        if output.exists():
            shutil.rmtree(output)
        merged = sensmerge.merge(
            recipe, output, calibration=measured, threads=self._threads, progress=False, sync=False
        )
        try:
            model = load(output)
            with base_model.in_bfloat16():
                found = Score({task: score(model, chosen) for task, chosen in samples.items()})
        finally:
            shutil.rmtree(output)
        return found, replace(merged, calibration=None, coefficients=None)


def _file_name(name: str) -> str:
    """A stage's name that every file system takes."""
    return "".join(one if one.isalnum() or one in "-_.&" else "-" for one in name)
