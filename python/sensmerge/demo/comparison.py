"""The demo from start to end, through nothing but the package's public calls."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import sensmerge
from sensmerge import InputError, report
from sensmerge.calibration.surroundings import torch_threads
from sensmerge.demo.evaluate import Score, evaluate
from sensmerge.demo.family import FULL, QUICK, build
from sensmerge.demo.recipes import Variant
from sensmerge.demo.table import Outcome, ablation, paragraphs, render, verdict
from sensmerge.demo.text import TASKS, Corpus, corpora

# Where task arithmetic looks for its own best λ, beside 1/K and 1.
_LAMBDAS = (0.1, 0.2, 0.5, 0.7)

# Tokens to which samples are cut that models are scored on: a little more than they were trained
# on at a time.
LONGEST = 128

_NOTE = """\
Made by `sensmerge demo`, which replaces what is listed here when it runs again.

{folders}
    the family: a base and its experts
calibration/*.jsonl
    samples that sensitivity and alignment are measured on
calibration.json
    what was measured
recipes/*.yaml
    one recipe a merge; change one under another name and run it:
    sensmerge merge recipes/{example}.yaml my-merge --calibration calibration.json
merged/*
    the merged models
table.txt, report.html, figure.png
    what came out; sensitivity, coefficients and alignment as pictures
"""


def compare(folder: Path, *, seed: int, threads: int | None, quick: bool) -> None:
    """Train, calibrate, merge, evaluate, print; see :func:`sensmerge.demo.run`."""
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s] {text}", file=sys.stderr, flush=True)

    size = QUICK if quick else FULL
    _prepare(folder)
    with torch_threads(threads):
        say("text: Python's documentation, generated problems, Python's library")
        texts = corpora(size.amounts, seed)
        build(folder, texts, size, seed, say)
        _write_samples(folder, texts)
        reference = Variant("task_arithmetic", "full", 1 / len(TASKS))
        recipe = sensmerge.Recipe.load(_write_recipe(folder, reference, seed))
        say("calibration: sensitivity of every expert, alignment of every pair")
        calibration = sensmerge.calibrate(recipe, progress=False, threads=threads)
        calibration.save(folder / "calibration.json")
        coefficients = sensmerge.coefficients(calibration, recipe)
        trial = _Trial(folder, calibration, texts, seed, threads)
        say("evaluation: the base and each expert")
        singles = {name: trial.score(folder / name) for name in ("base", *TASKS)}
        variants = list(dict.fromkeys([*ablation(None), *ablation(1 / len(TASKS))]))
        say(f"merging and evaluating {len(variants)} models")
        merged = {variant: trial.score(trial.merge(variant)) for variant in variants}
        say("task arithmetic: its own best λ, with and without Sens-Merging")
        plain, full = trial.best(None), trial.best("full")
        for variant in (plain, Variant(full.method, "full", plain.scale), full):
            if variant not in merged:
                merged[variant] = trial.score(trial.merge(variant))
    outcome = Outcome(singles, merged, plain, full, size.amounts.held_back)
    spread = [f"{sentence}." for sentence in coefficients.sentences()]
    text = "\n".join([render(outcome), "", paragraphs([*verdict(outcome), *spread])])
    (folder / "table.txt").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n", flush=True)
    report.write(calibration, coefficients, folder / "report.html", png=folder / "figure.png")
    print(f"report: {folder / 'report.html'}, figure: {folder / 'figure.png'}")
    print(f"recipes to play with: {folder / 'recipes'}")
    print(f"{time.monotonic() - start:.0f} s in all", flush=True)


class _Trial:
    """Merges variants of the family and scores them, each once."""

    def __init__(
        self,
        folder: Path,
        calibration: sensmerge.Calibration,
        texts: dict[str, Corpus],
        seed: int,
        threads: int | None,
    ) -> None:
        self._folder = folder
        self._calibration = calibration
        self._development = {task: corpus.development for task, corpus in texts.items()}
        self._held_back = {task: corpus.held_back for task, corpus in texts.items()}
        self._seed = seed
        self._threads = threads

    def merge(self, variant: Variant) -> Path:
        """The variant's folder; merged now if it is not there yet."""
        output = self._folder / "merged" / variant.name
        if not output.exists():
            recipe = sensmerge.Recipe.load(_write_recipe(self._folder, variant, self._seed))
            sensmerge.merge(
                recipe,
                output,
                calibration=None if variant.mode is None else self._calibration,
                threads=self._threads,
                progress=False,
                sync=False,
            )
        return output

    def score(self, model: Path) -> Score:
        """Score a model on held-back samples."""
        return evaluate(model, self._held_back, longest=LONGEST)

    def best(self, mode: str | None) -> Variant:
        """Task arithmetic at the λ that is best on samples the table does not use."""
        scales = sorted({*_LAMBDAS, 1 / len(TASKS), 1.0})
        variants = [Variant("task_arithmetic", mode, scale) for scale in scales]

        def loss(variant: Variant) -> float:
            return evaluate(self.merge(variant), self._development, longest=LONGEST).mean

        return min(variants, key=loss)


def _prepare(folder: Path) -> None:
    """Make the folder, or clear an earlier demo's models out of it.

    Raises:
        InputError: It is a file, or holds something that no demo made.
    """
    note = folder / "README.txt"
    first = _NOTE.split("\n", 1)[0]
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is not a folder")
    if folder.is_dir() and any(folder.iterdir()):
        earlier = note.is_file() and note.read_text(encoding="utf-8").startswith(first)
        if not earlier:
            raise InputError(
                f"{folder}: is not empty and holds no earlier demo; name another folder"
            )
    for name in ("base", *TASKS, "merged"):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for name in ("calibration", "recipes", "merged"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    example = Variant("task_arithmetic", "full", 1 / len(TASKS)).name
    folders = ", ".join(f"{name}/" for name in ("base", *TASKS))
    note.write_text(_NOTE.format(folders=folders, example=example), encoding="utf-8")


def _write_samples(folder: Path, texts: dict[str, Corpus]) -> None:
    for task, corpus in texts.items():
        rows = [
            json.dumps({"prompt": sample.prompt, "completion": sample.completion})
            for sample in corpus.calibration
        ]
        path = folder / "calibration" / f"{task}.jsonl"
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def _write_recipe(folder: Path, variant: Variant, seed: int) -> Path:
    path = folder / "recipes" / f"{variant.name}.yaml"
    path.write_text(variant.recipe(list(TASKS), seed), encoding="utf-8")
    return path
