"""The merge farm: candidates, scores, what is kept, and going on after every kind of stop."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import sensmerge
from families import Family
from sensmerge import InputError, Recipe
from sensmerge.farm import jobs, lock
from sensmerge.farm.board import Board
from sensmerge.farm.database import Database
from sensmerge.farm.evaluators.registry import Evaluate
from sensmerge.farm.jobs import Job, Merged, Outcome, Scores, tree_bytes
from sensmerge.farm.running import Options, farm
from sensmerge.farm.settings import FarmFile
from sensmerge.farm.workbench import Workbench
from sensmerge.search.judge import Judge
from test_bad_input import run
from test_evaluation import CHOICE, choices
from test_evaluation import write as write_task

Said = pytest.CaptureFixture[str]
QUIET = Options(threads=1, progress=False)

# Prints how large a model's first weights are, as a score, and what it was called with.
SCORER = """
import json, struct, sys
folder = sys.argv[1]
with open(folder + "/model.safetensors", "rb") as file:
    (size,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(size))
    start, end = header["model.embed_tokens.weight"]["data_offsets"]
    file.seek(8 + size + start)
    numbers = struct.unpack(f"<{(end - start) // 4}f", file.read(end - start))
open(sys.argv[2], "a").write(folder.rpartition("/")[2] + chr(10))
print("a line before")
print(json.dumps({"results": {"first": numbers[0], "sum": sum(map(abs, numbers))}}))
"""


GATED = """
import os, sys, time
parent, gate = os.getppid(), "gate"
while "/00005-" in sys.argv[1] and not os.path.exists(gate) and os.getppid() == parent:
    time.sleep(0.02)
if os.getppid() != parent:
    sys.exit(1)
"""


def write_farm(family: Family, **keys: Any) -> Path:
    """A farm file in the family's folder; JSON is YAML."""
    data = {"recipe": family.recipe(parameters={"lambda": 0.4}), "keep": 2} | keys
    path = family.folder / "farm.yaml"
    path.write_text(json.dumps(data))
    return path


def by_command(family: Family, **keys: Any) -> dict[str, Any]:
    """An evaluation by the sum of the embedding's magnitudes; every call is a line of ``calls``."""
    (family.folder / "scorer.py").write_text(SCORER)
    words = [sys.executable, "scorer.py", "{model}", str(family.folder / "calls")]
    return {"command": {"run": words, "score": "results.sum"} | keys}


def calls(family: Family) -> list[str]:
    return (family.folder / "calls").read_text().splitlines()


def models(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "models").iterdir())


@pytest.fixture
def own(family: Family, tmp_path: Path) -> Family:
    return family.copy(tmp_path / "family")


def test_losses_are_those_of_the_merges_and_the_best_are_written(
    own: Family, tmp_path: Path
) -> None:
    few = {"samples": 4, "dtype": "float32"}
    recipe = own.recipe(parameters={"lambda": 0.4}, sensitivity=few)
    grid = {"lambda": [0.2, 0.9], "temperature": [0.02, 0.5], "mode": ["full", "task"]}
    path = write_farm(own, recipe=recipe, grid=grid, evaluate={"loss": {"validation": 0.25}})
    board = farm(path, tmp_path / "out", QUIET)
    assert board.counts == {"waiting": 0, "running": 0, "done": 8, "failed": 0}
    (calibration,) = (tmp_path / "out" / "calibrations").glob("*.json")
    judge = Judge(
        Recipe.from_dict(recipe, folder=own.folder),
        calibration=calibration,
        validation=0.25,
        threads=1,
    )
    for each in board.candidates:
        asked = Recipe.from_dict(each.recipe, folder=own.folder)
        losses = judge.losses_of(asked)
        assert list(each.scores.values()) == pytest.approx(losses, rel=1e-9)
        assert each.score == pytest.approx(sum(losses) / 3, rel=1e-9)
        held = judge.losses_of(asked, "validation")
        assert each.validation == pytest.approx(sum(held) / 3, rel=1e-9)
        assert each.coefficients is not None
        assert asked.sensitivity is not None
        assert each.coefficients["temperature"] == asked.sensitivity.temperature
    scores = [each.score for each in board.candidates]
    assert scores == sorted(score for score in scores if score is not None)
    # The best two are what a merge of their recipes writes.
    for place, each in enumerate(board.candidates):
        assert each.kept == (place < 2)
    best = board.candidates[0]
    model = board.model(best)
    assert model is not None
    asked = Recipe.from_dict(best.recipe, folder=own.folder)
    sensmerge.merge(asked, tmp_path / "merged", calibration, progress=False, sync=False)
    weights = "model.safetensors"
    assert (model / weights).read_bytes() == (tmp_path / "merged" / weights).read_bytes()
    assert len(models(tmp_path / "out")) == 2


def test_benchmarks_score_merges_in_memory(own: Family, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from sensmerge.evaluation import scores_of

    (own.folder / "tasks").mkdir()
    write_task(own.folder / "tasks", "choice", CHOICE, choices())
    asked = {"benchmarks": {"tasks": ["choice"], "tasks_dir": "tasks"}}
    path = write_farm(own, grid={"lambda": [0.2, 0.9]}, keep=1, evaluate=asked)
    board = farm(path, tmp_path / "out", QUIET)
    assert board.counts["done"] == 2
    for each in board.candidates:
        recipe = Recipe.from_dict(each.recipe, folder=own.folder)
        found = scores_of(recipe, "choice", tasks_dir=own.folder / "tasks", progress=False)
        assert each.scores == found
        assert each.score == found["choice"]
    assert any("choose by validation samples" in note for note in board.notes)
    assert len(models(tmp_path / "out")) == 1


def test_a_command_scores_models_and_the_rest_are_deleted(own: Family, tmp_path: Path) -> None:
    tasks = {"first": "results.first", "sum": "results.sum"}
    path = write_farm(
        own,
        grid={"lambda": [0.1, 0.9, 0.5], "models[1].weight": [1, 0.5]},
        evaluate=by_command(own, tasks=tasks),
    )
    board = farm(path, tmp_path / "out", Options(workers=2, threads=1, progress=False))
    assert board.counts["done"] == 6
    assert board.tasks == ["first", "sum"]
    assert sorted(calls(own)) == sorted(each.folder for each in board.candidates)
    assert models(tmp_path / "out") == sorted(each.folder for each in board.candidates[:2])
    merged = tmp_path / "merged"
    best = board.candidates[0]
    sensmerge.merge(
        Recipe.from_dict(best.recipe, folder=own.folder), merged, progress=False, sync=False
    )
    command = [sys.executable, str(own.folder / "scorer.py"), str(merged), os.devnull]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(said.splitlines()[-1])["results"]
    assert best.scores == found
    assert best.score == found["sum"] == max(each.score or 0 for each in board.candidates)
    # Run again, nothing is done twice; a larger grid adds what is new.
    before = calls(own)
    farm(path, tmp_path / "out", QUIET)
    assert calls(own) == before
    larger = {"lambda": [0.1, 0.9, 0.5, 0.7], "models[1].weight": [0.5]}
    path = write_farm(own, grid=larger, evaluate=by_command(own, tasks=tasks), keep=3)
    board = farm(path, tmp_path / "out", QUIET)
    assert len(calls(own)) == 7
    assert board.counts["done"] == 7
    assert models(tmp_path / "out") == sorted(each.folder for each in board.candidates[:3])


def test_the_same_recipe_written_otherwise_is_one_candidate(own: Family, tmp_path: Path) -> None:
    # linear has no lambda, and 1 is the weight that it has anyway.
    path = write_farm(
        own,
        grid={
            "merge_method": ["linear", "task_arithmetic"],
            "lambda": [0.4, "4e-1", 0.5],
            "weight": [1, 1.0],
        },
        evaluate=by_command(own),
    )
    with pytest.raises(InputError, match=r"grid.weight: has 1.0 twice"):
        farm(path, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()
    path = write_farm(
        own,
        grid={"merge_method": ["linear", "task_arithmetic"], "lambda": [0.4, "4e-1", 0.5]},
        evaluate=by_command(own),
    )
    board = farm(path, tmp_path / "out", QUIET)
    assert sorted(json.dumps(each.chosen) for each in board.candidates) == [
        '{"merge_method": "linear"}',
        '{"merge_method": "task_arithmetic", "lambda": 0.4}',
        '{"merge_method": "task_arithmetic", "lambda": 0.5}',
    ]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_study_goes_on_as_if_it_had_not_been_stopped(
    own: Family, tmp_path: Path, sampler: str
) -> None:
    ranges = {
        "lambda": {"low": 0.1, "high": 1.0},
        "merge_method": ["ties", "task_arithmetic"],
        "density": None,
        "seed": {"low": 0, "high": 3, "whole": True},
    }

    def study(trials: int) -> Path:
        settings = {"ranges": ranges, "trials": trials, "sampler": sampler}
        return write_farm(own, study=settings, evaluate="loss", keep=0)

    whole = farm(study(7), tmp_path / "whole", QUIET)
    farm(study(3), tmp_path / "parts", QUIET)
    parts = farm(study(7), tmp_path / "parts", QUIET)
    assert whole.counts["done"] == 7

    def found(board: Board) -> list[Any]:
        ordered = sorted(board.candidates, key=lambda each: each.number)
        return [each.chosen for each in ordered]

    assert found(parts)[:3] == found(whole)[:3]
    assert len({json.dumps(each) for each in found(parts)}) == 7
    if sampler == "random":
        assert found(parts) == found(whole)
    for chosen in found(whole):
        assert ("density" in chosen) == (chosen["merge_method"] == "ties")
        assert 0.1 <= chosen["lambda"] <= 1.0


def test_a_candidate_that_fails_says_why_and_the_others_go_on(own: Family, tmp_path: Path) -> None:
    evaluate = by_command(own)
    script = own.folder / "scorer.py"
    script.write_text(
        "import sys, json, time\n"
        "n = int(sys.argv[1].rpartition('/')[2][:5])\n"
        "if n == 1: print('bad luck', file=sys.stderr); sys.exit(3)\n"
        "if n == 2: time.sleep(60)\n"
        "if n == 3: print('no json')\n"
        "elif n == 4: print(json.dumps({'other': 1}))\n"
        'elif n == 5: print(\'{"results": {"sum": NaN}}\')\n'
        "else: print(json.dumps({'results': {'sum': n}}))\n"
    )
    evaluate["command"]["time_limit"] = 2
    path = write_farm(own, grid={"seed": [0, 1, 2, 3, 4, 5]}, evaluate=evaluate)
    began = time.monotonic()
    board = farm(path, tmp_path / "out", Options(workers=3, threads=1, progress=False))
    assert time.monotonic() - began < 30
    reasons = {each.number: each.reason for each in board.candidates}
    program = sys.executable
    assert reasons == {
        1: f"{program}: failed with exit code 3: bad luck",
        2: f"{program}: took longer than 2 s",
        3: "printed no JSON: 'no json\\n'",
        4: "printed no number 'results.sum'",
        5: "printed nan as 'results.sum', which is no score",
        6: None,
    }
    assert models(tmp_path / "out") == [board.candidates[0].folder]
    assert board.candidates[0].number == 6
    # --retry runs them again.
    script.write_text('print(\'{"results": {"sum": 1}}\')')
    assert farm(path, tmp_path / "out", QUIET).counts["failed"] == 5
    retried = Options(threads=1, retry=True, progress=False)
    assert farm(path, tmp_path / "out", retried).counts["done"] == 6


def test_where_every_candidate_fails_that_is_an_error(own: Family, tmp_path: Path) -> None:
    path = write_farm(own, grid={"seed": [0, 1]}, evaluate=by_command(own, score="nothing"))
    assert run("farm", str(path), str(tmp_path / "out"), "--quiet") == 2
    assert Board.read(tmp_path / "out").counts["failed"] == 2


def start(path: Path, folder: Path) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    command = [sys.executable, "-m", "sensmerge.start", "farm", str(path), str(folder)]
    return subprocess.Popen(
        [*command, "-j", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if what():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("it took too long")


def test_a_farm_that_is_killed_goes_on_and_repeats_nothing(own: Family, tmp_path: Path) -> None:
    evaluate = by_command(own)
    # The fifth waits for a gate, or for the end of whoever started it.
    (own.folder / "scorer.py").write_text(GATED + SCORER)
    path = write_farm(
        own, grid={"lambda": [place / 12 for place in range(1, 13)]}, evaluate=evaluate
    )
    out, seen = tmp_path / "out", own.folder / "calls"
    process = start(path, out)
    try:
        wait_for(lambda: seen.exists() and len(calls(own)) >= 4, process)
        with pytest.raises(InputError, match="another farm runs in it"):
            farm(path, out, QUIET)
        assert Board.read(out).running
    finally:
        process.kill()
        process.communicate()
    stopped = Board.read(out)
    assert not stopped.running
    done = {each.folder for each in stopped.done}
    assert sorted(each.number for each in stopped.done) == [1, 2, 3, 4]
    (own.folder / "gate").touch()
    # What a killed merge leaves: a folder that is no model, of a candidate and of nobody.
    waiting = next(each for each in stopped.candidates if each.status == "waiting")
    for name in (waiting.folder, "00099-nobody"):
        (out / "models" / name).mkdir(exist_ok=True)
        (out / "models" / name / "model.safetensors").write_bytes(b"half")
    before = calls(own)
    board = farm(path, out, QUIET)
    assert board.counts["done"] == 12
    assert board.notes == []
    repeated = [name for name in calls(own)[len(before) :] if name in done]
    assert repeated == []
    assert set(calls(own)) == {each.folder for each in board.candidates}
    assert models(out) == sorted(each.folder for each in board.candidates[:2])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_farm_and_its_commands(
    own: Family, tmp_path: Path, number: int, code: int
) -> None:
    evaluate = by_command(own)
    (own.folder / "scorer.py").write_text(
        "import os, sys, time\nopen(sys.argv[2], 'a').write(str(os.getpid()) + chr(10))\n"
        "time.sleep(600)\n"
    )
    path, out = write_farm(own, grid={"seed": [0, 1, 2]}, evaluate=evaluate), tmp_path / "out"
    process = start(path, out)
    try:
        wait_for(lambda: (own.folder / "calls").exists() and bool(calls(own)), process)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert said.splitlines()[-1] == "error: " + ("interrupted" if code == 130 else "terminated")
    with pytest.raises(ProcessLookupError):
        os.kill(int(calls(own)[0]), 0)
    board = Board.read(out)
    assert board.counts == {"waiting": 3, "running": 0, "done": 0, "failed": 0}


def test_a_budget_is_never_exceeded(own: Family, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(own.recipe(parameters={"lambda": 0.4}), folder=own.folder)
    size = Workbench().bytes_of(recipe)
    out = tmp_path / "out"
    evaluate = by_command(own)
    # Every call writes down what the farm's folder takes.
    script = own.folder / "scorer.py"
    script.write_text(
        SCORER + "import pathlib\nout = pathlib.Path(folder).parent.parent\n"
        "taken = sum(file.lstat().st_size for file in out.rglob('*') if file.is_file())\n"
        "open(sys.argv[2] + '.sizes', 'a').write(str(taken) + chr(10))\n"
    )
    grid = {"lambda": [place / 10 for place in range(1, 7)]}
    path = write_farm(own, grid=grid, evaluate=evaluate, disk=size // 2)
    with pytest.raises(InputError, match=r"disk: an output takes up to .*; allow more"):
        farm(path, out, QUIET)
    assert not out.exists()
    # Room for two models, where four are to be kept.
    budget = 2 * size + 400_000
    path = write_farm(own, grid=grid, evaluate=evaluate, disk=budget, keep=4)
    board = farm(path, out, Options(workers=2, threads=1, progress=False))
    assert board.counts["done"] == 6
    assert max(map(int, (own.folder / "calls.sizes").read_text().split())) <= budget
    assert tree_bytes(out) <= budget
    kept = [each for each in board.candidates if each.kept]
    assert kept == board.candidates[: len(kept)]
    assert len(kept) in (2, 3)
    assert any("does not fit into the budget" in note for note in board.notes)
    for each in kept:
        assert each.bytes is not None
        assert each.bytes <= size


def test_a_full_disk_fails_a_candidate_and_stops_where_it_stays_full(
    own: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge, tried = jobs.merge, list[int]()
    full = {2, 4, 5, 6}

    def failing(job: Job, bench: Workbench) -> Any:
        tried.append(job.number)
        if job.number in full:
            assert job.output is not None
            Path(job.output).mkdir(parents=True)
            raise OSError(f"{job.output}: No space left on device (os error 28)")
        return merge(job, bench)

    monkeypatch.setattr(jobs, "merge", failing)
    grid = {"lambda": [place / 10 for place in range(1, 9)]}
    path, out = write_farm(own, grid=grid, evaluate=by_command(own)), tmp_path / "out"
    with pytest.raises(InputError, match=r"the disk is full, 3 candidates .* --retry"):
        farm(path, out, QUIET)
    assert tried == [1, 2, 3, 4, 5, 6]
    board = Board.read(out)
    assert board.counts == {"waiting": 2, "running": 0, "done": 2, "failed": 4}
    assert all("No space left" in (each.reason or "") for each in board.candidates[-4:])
    assert models(out) == sorted(each.folder for each in board.candidates[:2])
    full.clear()
    board = farm(path, out, Options(threads=1, retry=True, progress=False))
    assert board.counts["done"] == 8
    assert len(calls(own)) == 8


def test_another_farm_in_the_same_folder_is_refused(own: Family, tmp_path: Path) -> None:
    grid, out = {"lambda": [0.1]}, tmp_path / "out"
    farm(write_farm(own, grid=grid, evaluate=by_command(own)), out, QUIET)
    other = by_command(own, score="results.first")
    with pytest.raises(InputError, match=r"were scored otherwise .* name another folder"):
        farm(write_farm(own, grid=grid, evaluate=other), out, QUIET)
    # What changes no score may change.
    evaluate = by_command(own, time_limit=5)
    assert farm(write_farm(own, grid=grid, evaluate=evaluate, keep=0), out, QUIET).done
    assert models(out) == []
    with closing(Database(out, write=True)) as database:
        database._connection.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="was written in format 99"):
        Board.read(out)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "farm.sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(InputError, match=r"farm\.sqlite: file is not a database"):
        Board.read(tmp_path / "else")
    with pytest.raises(InputError, match=r"has no farm\.sqlite"):
        Board.read(tmp_path)


def test_a_folder_is_locked_by_one(tmp_path: Path) -> None:
    assert not lock.is_held(tmp_path)
    with lock.held(tmp_path):
        code = "from sensmerge.farm import lock; import pathlib, sys\n"
        code += "print(lock.is_held(pathlib.Path(sys.argv[1])))"
        asked = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        )
        assert asked.stdout == "True\n"
    assert not lock.is_held(tmp_path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"grid": {"lambda": [0.1]}, "study": {"ranges": {"seed": [1]}}}, "a grid or a study"),
        ({}, "give a grid or a study, one of them"),
        ({"grid": {"lamda": [1]}}, "grid.lamda: is no place in a recipe; did you mean 'lambda'?"),
        ({"grid": {"models[7].weight": [1]}}, "grid.models[7].weight: the recipe has 3 models"),
        ({"grid": {"models[0].seed": [1]}}, "grid.models[0].seed: is no place in a recipe"),
        ({"grid": {"density": []}}, "grid.density: list should have at least 1 item"),
        ({"grid": {"lambda": [0.1], "parameters.lambda": [1]}}, "is the same place as lambda"),
        ({"grid": {"merge_method": ["tiess"]}}, "merge_method: 'tiess' is none of"),
        ({"grid": {"lambda": ["much"]}}, "with lambda: much: parameters.lambda: "),
        ({"grid": {"seed": [1]}, "evaluate": {}}, "evaluate: name one of loss, command"),
        ({"grid": {"seed": [1]}, "evaluate": "los"}, "evaluate.los: unknown key; did you mean"),
        ({"grid": {"seed": [1]}, "disk": "much"}, "disk: 'much' is not a size"),
        ({"grid": {"seed": [1]}, "keeep": 1}, "keeep: unknown key; did you mean 'keep'?"),
        ({"grid": {"seed": [1]}, "recipe": 3}, "recipe: expected a recipe, or the path of one"),
        (
            {"grid": {"seed": [1]}, "evaluate": {"command": {"run": "echo", "score": "a"}}},
            "evaluate.command.run: no word has {model}",
        ),
        (
            {
                "grid": {"seed": [1]},
                "evaluate": {"command": {"run": "nonesuch {model}", "score": "a"}},
            },
            "there is no program 'nonesuch'",
        ),
        (
            {"grid": {"seed": [1]}, "evaluate": {"command": {"run": "echo {model}"}}},
            "name the number that it prints",
        ),
        ({"study": {"ranges": {"lambda": {"low": 1, "high": 1}}}}, "study.ranges.lambda: low, 1,"),
        ({"study": {"ranges": {"seed": None}}}, "study.ranges.seed: no interval of it is known"),
        ({"study": {"ranges": {"weight": [[1, 2]]}}}, "a study chooses among single values"),
    ],
)  # fmt: skip
def test_refusals_name_the_key(
    own: Family, tmp_path: Path, capsys: Said, keys: dict[str, Any], said: str
) -> None:
    path = write_farm(own, **{"evaluate": "loss"} | keys)
    assert run("farm", str(path), str(tmp_path / "out")) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_calibrations_are_measured_once_for_each_way_to_measure(
    own: Family, tmp_path: Path
) -> None:
    recipe = own.recipe(parameters={"lambda": 0.4}, sensitivity={"samples": 2, "dtype": "float32"})
    grid = {"sensitivity.samples": [2, 3], "temperature": [0.05, 0.5]}
    path = write_farm(own, recipe=recipe, grid=grid, evaluate={"loss": {"validation": 0}}, keep=1)
    out = tmp_path / "out"
    board = farm(path, out, QUIET)
    files = sorted((out / "calibrations").iterdir())
    assert len(files) == 2
    assert all(file.suffix == ".json" for file in files)
    assert any(note.startswith("nothing is validated") for note in board.notes)
    made = [file.stat().st_mtime_ns for file in files]
    larger = grid | {"temperature": [0.05, 0.5, 0.1]}
    path = write_farm(own, recipe=recipe, grid=larger, evaluate={"loss": {"validation": 0}}, keep=1)
    assert farm(path, out, QUIET).counts["done"] == 6
    assert [file.stat().st_mtime_ns for file in files] == made
    # One that was measured before serves as well.
    given = write_farm(
        own, recipe=recipe, grid={"temperature": [0.05, 0.5]}, calibration=str(files[0]),
        evaluate=by_command(own),
    )  # fmt: skip
    if json.loads(files[0].read_text())["options"]["samples"] != 2:
        files.reverse()
        given.write_text(given.read_text().replace(str(files[1]), str(files[0])))
    board = farm(given, tmp_path / "given", QUIET)
    assert board.counts["done"] == 2
    assert not (tmp_path / "given" / "calibrations").exists()


def test_a_test_set_is_called_one(own: Family, tmp_path: Path) -> None:
    (own.folder / "t0.jsonl").rename(own.folder / "gsm8k_test.jsonl")
    rows = (own.folder / "t1.jsonl").read_text().splitlines()
    rows = [json.dumps(json.loads(row) | {"split": "test"}) for row in rows]
    (own.folder / "t1.jsonl").write_text("\n".join(rows))
    recipe = own.recipe(parameters={"lambda": 0.4})
    recipe["models"][0]["calibration"] = "gsm8k_test.jsonl"
    path = write_farm(own, recipe=recipe, grid={"seed": [1]}, evaluate="loss", keep=0)
    notes = farm(path, tmp_path / "out", QUIET).notes
    assert [note.partition(":")[0] for note in notes] == ["gsm8k_test.jsonl", "t1.jsonl"]
    assert notes[0].startswith("gsm8k_test.jsonl: is a test set by its name")
    assert notes[1].startswith("t1.jsonl: is a test set, as its rows say")
    evaluate = by_command(own)
    evaluate["command"]["run"].append("--split=test")
    path = write_farm(own, grid={"seed": [1]}, evaluate=evaluate, keep=0)
    path.write_text(path.read_text().replace("t0.jsonl", "gsm8k_test.jsonl"))
    (note,) = farm(path, tmp_path / "command", QUIET).notes
    assert note.startswith("evaluate.command: '--split=test' names a test set")


def test_a_job_is_plain_data_and_runs_by_itself(own: Family, tmp_path: Path) -> None:
    class Sizes:
        """Scores a model by the size of its files."""

        needs_output = True

        def evaluate(self, job: Job) -> jobs.Scores:
            if job.number == 2:
                raise InputError("no")
            return jobs.Scores(tree_bytes(Path(str(job.output))))

    recipe = own.recipe(parameters={"lambda": 0.4})
    evaluator: Any = Sizes()
    done = [
        jobs.run(
            Job(number, recipe, str(own.folder), str(tmp_path / str(number))),
            Workbench(),
            evaluator,
        )
        for number in (1, 2)
    ]
    assert [each.number for each in done] == [1, 2]
    assert done[0].scores is not None
    assert done[0].scores.score == done[0].merged.bytes > 0
    assert done[1] == Outcome(2, done[1].merged, None, "no")


def test_where_the_disk_is_full_nothing_is_half_written(tmp_path: Path) -> None:
    outcome = Outcome(1, Merged(1.0, 5, {"e": "x" * 100_000}), Scores(1.0, {"task": 2.0}))
    with closing(Database(tmp_path, write=True)) as database:
        database.add([("a" * 64, {}, {"seed": 1})])
        (pages,) = database._one("PRAGMA page_count")
        # SQLite's answer is that to a full disk.
        database._one(f"PRAGMA max_page_count = {pages}")
        assert (tmp_path / "spare").stat().st_size > 0
        with pytest.raises(InputError, match="full; free space, and run the same command again"):
            database.end(outcome, kept=True)
        # It was given up, in vain here.
        assert not (tmp_path / "spare").exists()
        (found,) = database.candidates()
        assert (found.status, found.kept, found.scores) == ("waiting", False, {})
        database._one("PRAGMA max_page_count = 1000")
        database.end(outcome, kept=True)
        assert database.candidate(1).scores == {"task": 2.0}
    with closing(Database(tmp_path, write=True)):
        assert (tmp_path / "spare").exists()


def test_the_schema_for_editors_knows_every_key(capsys: Said) -> None:
    assert run("schema", "--farm") == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(FarmFile.model_fields)
    sections = schema["$defs"]
    assert set(sections["Evaluate"]["properties"]) == set(Evaluate.model_fields)
    assert {"lambda", "density"} <= set(sections["Parameters"]["properties"])
    named = re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema))
    assert set(named) <= set(sections)
