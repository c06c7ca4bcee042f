"""Tuning: trials equal merges, searches continue after a stop, notes report gains truthfully."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

import sensmerge
import torch_oracle as oracle
from families import Family
from sensmerge import Calibration, InputError, Recipe
from sensmerge.cli import commands
from sensmerge.search import auto, trials
from sensmerge.search.choice import difference
from sensmerge.search.judge import Judge, Objective
from sensmerge.search.lines import EVALUATIONS, minimise
from sensmerge.search.results import Result
from sensmerge.search.settings import Settings
from sensmerge.search.trials import Options
from test_bad_input import run

SENSITIVITY = {"samples": 4, "dtype": "float32"}


def recipe(family: Family, method: str = "task_arithmetic", **keys: Any) -> Recipe:
    keys = {"sensitivity": SENSITIVITY, "parameters": {"lambda": 0.4}} | keys
    return Recipe.from_dict(family.recipe(method, **keys), folder=family.folder)


def tuned(family: Family, measured: Calibration, **keys: Any) -> trials.Tuned:
    options = Options(**({"trials": 5, "validation": 0.25} | keys.pop("options", {})))
    keys = {"recipe": recipe(family), "calibration": measured, **keys}
    asked = keys.pop("recipe")
    return trials.tune(asked, options, progress=False, threads=1, **keys)


def losses_of(folder: Path, family: Family) -> list[float]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return [
            float(np.mean([oracle.loss(model, sample) for sample in oracle.samples_of(family, i)]))
            for i in range(3)
        ]


@pytest.mark.parametrize(
    "settings",
    [
        Settings("task_arithmetic", 0.7),
        Settings("task_arithmetic", 0.7, None, "full", 0.01, "distance"),
        Settings("ties", 0.5, 0.4, "task", 0.02),
        Settings("dare_linear", 0.5, 0.5, "cross", 0.3, "transfer"),
        Settings("dare_ties", 1.0, 0.5),
        Settings("linear", None, None, "full", 0.05, "transfer"),
        Settings("magmax", 0.6, None, "full", 0.05, "transfer"),
        Settings("emr", 0.5),
        Settings("consensus", 0.7, None, "task", 0.02),
        Settings("pcb", 1.1, 0.2, "cross", 0.05, "distance"),
        Settings("widen", 0.4, None, "full", 0.02, "transfer"),
    ],
    ids=Settings.describe,
)
def test_a_candidate_is_the_merge_of_its_recipe(
    family: Family, measured: Calibration, settings: Settings, tmp_path: Path
) -> None:
    judge = Judge(recipe(family), calibration=measured, validation=0.0, threads=1)
    # Another candidate first, so that this one is not the first that was merged.
    judge.losses(Settings("ties", 0.9, 0.8))
    found = judge.losses(settings)
    written = settings.recipe(recipe(family))
    calibration = measured if settings.mode != "off" else None
    sensmerge.merge(written, tmp_path / "out", calibration, progress=False, sync=False)
    assert found == pytest.approx(losses_of(tmp_path / "out", family), rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no CUDA here")
def test_a_device_gives_the_same(
    family: Family, measured: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [Settings("ties", 0.9, 0.8), Settings("task_arithmetic", 0.6, None, "full", 0.05)]
    found = []
    for device in ("cpu", "cuda"):
        judge = Judge(
            recipe(family), calibration=measured, validation=0.0, device=device, threads=1
        )
        found.append([judge.losses(each) for each in settings])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    # A whole search, a choice of auto values, and learning, as typed.
    asked = recipe(family, sensitivity=SENSITIVITY, parameters={"lambda": "auto"})
    path = str(family.write_recipe(asked.source, "auto.yaml"))
    plain = str(family.write_recipe(recipe(family).source, "plain.yaml"))
    for command in (
        ["merge", path, str(tmp_path / "out")],
        ["tune", plain, "-o", str(tmp_path / "tuned.yaml"), "--trials", "3"],
        ["learn", plain, "-o", str(tmp_path / "learned.yaml"), "--steps", "2"],
        [
            "learn",
            plain,
            "-o",
            str(tmp_path / "distilled.yaml"),
            "--steps",
            "2",
            "--loss",
            "distill",
        ],
    ):
        done = CliRunner().invoke(commands, [*command, "--device", "cuda"])
        assert done.exit_code == 0, done.output


def test_a_device_that_is_not_there_is_refused(
    family: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(family.write_recipe(recipe(family).source, "sensitive.yaml"))
    for command in (
        ["merge", path, str(tmp_path / "out")],
        ["tune", path, "-o", str(tmp_path / "tuned.yaml")],
        ["learn", path, "-o", str(tmp_path / "learned.yaml")],
    ):
        assert run(*command, "--device", "xyz") == 2
        assert "device: 'xyz' cannot be used" in capsys.readouterr().err
        assert not any(tmp_path.iterdir())


def test_methods_are_searched_by_what_their_schemas_say(
    family: Family, measured: Calibration
) -> None:
    names = ("magmax", "emr", "consensus", "pcb", "widen")
    space = trials.Space(recipe(family), Options(methods=names))
    assert all(space.scale(name) for name in names)
    assert [name for name in names if space.density(name)] == ["pcb"]
    # The first trial is the recipe's own merge, with the default where it says nothing.
    found = tuned(family, measured, recipe=recipe(family, "pcb"), options={"trials": 1})
    assert found.trials[0].settings.density == 0.1
    found = tuned(family, measured, options={"methods": names, "trials": 6})
    assert {result.settings.method for result in found.baselines} == set(names)
    for result in [*found.baselines, *found.trials]:
        assert math.isfinite(result.objective)
        assert result.settings.density is None or result.settings.method == "pcb"


def test_every_trial_and_baseline_is_told(
    family: Family, measured: Calibration, tmp_path: Path
) -> None:
    found = tuned(family, measured, options={"methods": ("task_arithmetic", "ties")})
    assert len(found.trials) == 5
    assert {result.settings.method for result in found.baselines} == {"task_arithmetic", "ties"}
    assert all(result.settings.mode == "off" for result in found.baselines)
    scales = [result.settings.scale for result in found.baselines]
    assert scales.count(1 / 3) == 2
    # The first trial is the recipe's own.
    first = found.trials[0].settings
    assert (first.scale, first.temperature, first.mode) == (0.4, 0.05, "full")
    assert found.best.objective == min(trial.objective for trial in found.trials)
    assert not math.isnan(found.best.validation_objective)

    written = found.write(tmp_path / "best.yaml")
    assert [path.name for path in written] == [
        "best.yaml",
        "best.trials.csv",
        "best.trials.json",
        "best.png",
    ]
    rows = list(csv.DictReader(written[1].read_text().splitlines()))
    assert len(rows) == len(found.baselines) + 5
    assert {row["kind"] for row in rows} == {"baseline", "trial"}
    data = json.loads(written[2].read_text())
    assert data["notes"] == found.notes
    assert written[3].read_bytes().startswith(b"\x89PNG")


def test_the_best_recipe_merges_to_what_was_seen(
    family: Family, measured: Calibration, tmp_path: Path
) -> None:
    found = tuned(family, measured, options={"validation": 0.0}, home=tmp_path)
    (path, *_) = found.write(tmp_path / "best.yaml")
    written = Recipe.load(path)
    calibration = measured if found.taken.settings.mode != "off" else None
    sensmerge.merge(written, tmp_path / "out", calibration, progress=False, sync=False)
    assert losses_of(tmp_path / "out", family) == pytest.approx(found.taken.losses, rel=1e-5)
    assert any("nothing was validated" in note for note in found.notes)


@pytest.mark.parametrize("sampler", trials.SAMPLERS)
def test_what_was_stopped_goes_on(
    family: Family, measured: Calibration, sampler: str, tmp_path: Path
) -> None:
    options = {"sampler": sampler, "trials": 8, "keys": ("temperature", "lambda")}
    unbroken = tuned(family, measured, options=options)
    study = tmp_path / "trials.study"

    class StoppedError(Exception):
        pass

    real = Judge.losses
    calls = 0

    def stops(self: Judge, settings: Settings, *args: Any, **keys: Any) -> Any:
        nonlocal calls
        calls += settings.mode != "off"
        if calls == 5:
            raise StoppedError
        return real(self, settings, *args, **keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judge, "losses", stops)
        with pytest.raises(StoppedError):
            tuned(family, measured, options=options, study=study)
    # The state that a process leaves if it is killed while writing.
    study.write_bytes(study.read_bytes() + b'{"op_code": 5, "work')
    resumed = tuned(family, measured, options=options, study=study)
    assert resumed.trials == unbroken.trials
    assert resumed.recipe == unbroken.recipe
    more = tuned(family, measured, options=options | {"trials": 9}, study=study)
    assert [trial.settings for trial in more.trials[:8]] == [
        trial.settings for trial in unbroken.trials
    ]
    assert len(more.trials) == 9


def test_a_study_of_another_search_is_refused(
    family: Family, measured: Calibration, tmp_path: Path
) -> None:
    study = tmp_path / "trials.study"
    tuned(family, measured, options={"trials": 1}, study=study)
    with pytest.raises(InputError, match="is the study of a search with other"):
        tuned(family, measured, options={"trials": 1, "seed": 5}, study=study)
    study.write_text("no study\nat all\n")
    with pytest.raises(InputError, match="is not a study"):
        tuned(family, measured, options={"trials": 1}, study=study)


def test_plain_recipes_are_tuned_too(family: Family) -> None:
    plain = recipe(family, "dare_linear", sensitivity={"samples": 4, "mode": "off"})
    options = Options(trials=3, validation=0.0)
    found = trials.tune(plain, options, progress=False, threads=1)
    assert all(trial.settings.mode == "off" for trial in found.trials)
    assert len({trial.settings.density for trial in found.trials}) > 1
    assert any("a plain merge won" in note for note in found.notes)


def test_objectives() -> None:
    losses = [1.0, 2.0, 6.0]
    assert Objective().of(losses) == 3.0
    assert Objective("worst").of(losses) == 6.0
    assert Objective("mean", (2.0, 2.0, 0.0)).of(losses) == 1.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trials": 0}, "trials: 0"),
        ({"keys": ("colour",)}, "search: 'colour'"),
        ({"sampler": "gp"}, "sampler: 'gp'"),
        ({"objective": Objective("best")}, "objective: 'best'"),
        ({"objective": Objective("mean", (1.0,))}, "task_weights: 1 weights for 3 tasks"),
        ({"objective": Objective("worst", (1.0, 1.0, 1.0))}, "task_weights: the worst"),
        ({"objective": Objective("mean", (0.0, 0.0, 0.0))}, "task_weights: give"),
    ],
)
def test_options_that_cannot_be_are_refused(
    family: Family, measured: Calibration, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        tuned(family, measured, options=options)


def result(objective: float, validation: float, mode: str = "full") -> Result:
    temperature = 0.05 if mode != "off" else None
    settings = Settings("task_arithmetic", 0.3, None, mode, temperature)
    return Result("trial", settings, [objective], objective, [validation], validation)


@pytest.mark.parametrize(
    ("best", "plain", "said"),
    [
        ((1.0, 2.0), (1.5, 2.25), "it holds (50 % of it)"),
        ((1.0, 2.0), (1.5, 1.9), "it does not hold"),
    ],
)
def test_words_are_plain(best: tuple[float, float], plain: tuple[float, float], said: str) -> None:
    words = trials._words(result(*best), result(*plain, mode="off"), ["e0"])
    assert "0.5000 lower" in words[0]
    assert said in words[1]


def test_a_candidate_is_taken_by_more_than_a_standard_error(
    family: Family, measured: Calibration
) -> None:
    found = tuned(family, measured, options={"trials": 6})
    judge = Judge(recipe(family), calibration=measured, validation=0.25, threads=1)
    start = judge.by_sample(found.trials[0].settings)
    assert [len(task) for task in start] == [4, 4, 4]
    taken = judge.by_sample(found.taken.settings)
    everything = [*found.baselines, *found.trials]
    for result in everything:
        gain = difference(judge.by_sample(result.settings), taken, Objective())
        assert gain.mean <= gain.error
    if found.taken.settings != found.trials[0].settings:
        gain = difference(taken, start, Objective())
        assert gain.mean > 0
    assert found.notes[0].startswith(("the recipe's own settings are kept", "taken", "a plain"))
    assert "by cross-validation such a choice is" in found.notes[1]
    for part, losses in (("search", found.taken.losses), ("validation", found.taken.validation)):
        assert judge.losses(found.taken.settings, part) == pytest.approx(losses)


def test_the_least_of_a_line() -> None:
    calls = []

    def valley(place: float) -> float:
        calls.append(place)
        return math.log(place / 0.37) ** 2

    found = minimise(valley, 0.01, 10.0, start=0.5)
    assert found == pytest.approx(0.37, rel=0.1)
    assert len(calls) == len(set(calls)) <= EVALUATIONS
    assert minimise(lambda place: place, 0.01, 10.0) == pytest.approx(0.01)
    assert minimise(lambda place: -place, 0.01, 10.0) == pytest.approx(10.0)


def test_auto_is_found_and_recorded(
    family: Family, measured: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On these few samples no value is better than the start by more than chance.
    monkeypatch.setattr(auto, "ERRORS", 0)
    asked = recipe(
        family, sensitivity=SENSITIVITY | {"temperature": "auto"}, parameters={"lambda": "auto"}
    )
    assert asked.auto == ["parameters.lambda", "sensitivity.temperature"]
    done = sensmerge.merge(asked, tmp_path / "out", measured, progress=False, sync=False)
    assert any(note.startswith("lambda: auto chose") for note in done.notes)
    recorded = Recipe.load(tmp_path / "out" / "sensmerge_recipe.yaml")
    assert recorded.auto == []
    assert recorded.sensitivity is not None

    judge = Judge(recorded_in(family, recorded), calibration=measured, validation=0.0, threads=1)
    best = np.mean(judge.losses(Settings.of(recorded)))
    for scale in (1 / 3, 0.1, 1.5):
        settings = Settings("task_arithmetic", scale, None, "full", 0.05, "transfer")
        assert best <= np.mean(judge.losses(settings)) + 1e-12
    assert losses_of(tmp_path / "out", family) == pytest.approx(
        judge.losses(Settings.of(recorded)), rel=1e-5
    )


def recorded_in(family: Family, recorded: Recipe) -> Recipe:
    return Recipe.from_dict(recorded.source, folder=family.folder)


def test_auto_keeps_its_start_where_samples_do_not_tell(family: Family, tmp_path: Path) -> None:
    asked = recipe(
        family,
        sensitivity={"samples": 1, "dtype": "float32", "mode": "off"},
        parameters={"lambda": "auto"},
    )
    done = sensmerge.merge(asked, tmp_path / "out", progress=False, sync=False)
    assert any("auto keeps 0.3333" in note for note in done.notes)
    recorded = Recipe.load(tmp_path / "out" / "sensmerge_recipe.yaml")
    assert recorded.parameters.get("lambda") == pytest.approx(1 / 3)


def test_auto_is_refused_where_nothing_is_searched(family: Family, measured: Calibration) -> None:
    asked = recipe(family, parameters={"lambda": "auto"})
    for verb in (
        lambda: sensmerge.coefficients(measured, asked),
        lambda: sensmerge.merge_tensors(asked, calibration=measured),
    ):
        with pytest.raises(
            InputError, match=r"parameters\.lambda: only `sensmerge merge` searches"
        ):
            verb()
    shown = sensmerge.workflow.plan(asked)
    assert any("merge searches for values that are auto" in note for note in shown.notes)


def test_the_command(family: Family, tmp_path: Path) -> None:
    copy = family.copy(tmp_path / "family")
    path = copy.write_recipe(copy.recipe(sensitivity=SENSITIVITY, parameters={"lambda": 0.3}))
    out = tmp_path / "out" / "best.yaml"
    arguments = ["tune", str(path), "-o", str(out), "--trials", "3", "--task-weights", "1,2,1"]
    done = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "plain task_arithmetic, λ = 0.333" in done.output
    names = {file.name for file in out.parent.iterdir()}
    assert names == {
        "best.yaml", "best.trials.csv", "best.trials.json", "best.png", "best.study",
        "best.calibration.json",
    }  # fmt: skip
    done = CliRunner().invoke(commands, [*arguments, "--methods", "ensemble"])
    assert "'ensemble' is none of linear" in str(done.exception)
