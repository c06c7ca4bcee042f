"""One model merged by several processes, each some of its weight files, gives the same bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

import merges_apart
from merges_apart import COMMAND, MARKER, SHARDS, hashes, needs_strace
from sensmerge import InputError, PlannedMerge, WaitingError, _core, plan_merge
from sensmerge.distributed import shards
from test_bad_input import run
from tiers import cases

SIZE = ["--max-shard-size", "600KB"]
METHODS = {
    "task_arithmetic": {"merge_method": "task_arithmetic"},
    # Both its cut and its signs are those of the whole model.
    "ties": {"merge_method": "ties", "semantics": "original", "parameters": {"density": 0.3}},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merges_apart.write_models(tmp_path_factory.mktemp("models")).parent


@pytest.fixture(scope="module", params=METHODS)
def recipe(request: pytest.FixtureRequest, models: Path) -> Path:
    said = json.loads((models / "recipe.json").read_text()) | METHODS[request.param]
    for model in said["models"]:
        model.pop("parameters", None)
    said.setdefault("parameters", {})["weight"] = 0.5
    path = models / f"{request.param}.json"
    path.write_text(json.dumps(said))
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the output of one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = merges_apart.merge(recipe, out)
    assert done.returncode == 0, done.stderr
    return hashes(out)


@pytest.fixture
def plan(recipe: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    assert run("plan", str(recipe), str(tmp_path / "out"), "-o", str(path), "--quiet", *SIZE) == 0
    return path


def start(plan: Path, *options: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*before, *COMMAND, "--plan", str(plan), "--quiet", "--threads", "1", *options]
    # Compiled modules would be renamed into place, too.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, said


def strays(out: Path) -> list[str]:
    return [path.name for path in out.iterdir() if path.name.startswith(".sensmerge-")]


def test_processes_at_the_same_time_make_the_same_model(
    plan: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    # The second file is everybody's.
    parts = ["3,2", "2", "1-2"]
    running = [start(plan, "--shards", part, "--wait", "60") for part in parts]
    ended = [outcome(process) for process in running]
    assert [code for code, _ in ended] == [0, 0, 0], ended
    assert (tmp_path / "out" / MARKER).exists()
    with pytest.raises(InputError, match="holds an unfinished merge"):
        _core.Checkpoint(str(tmp_path / "out"))
    assert outcome(start(plan, "--commit")) == (0, "")
    assert hashes(tmp_path / "out") == whole
    assert not strays(tmp_path / "out")
    verified = run("verify", str(tmp_path / "out"), "--quiet")
    assert verified == 0
    # Both may be repeated by whoever did not hear of it.
    assert outcome(start(plan, "--commit")) == (0, "")
    assert outcome(start(plan, "--shards", "1")) == (0, "")
    assert hashes(tmp_path / "out") == whole


def test_what_is_missing_is_said_and_may_come_later(
    plan: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    code, said = outcome(start(plan, "--commit"))
    assert code == 75
    assert "not merged yet" in said
    assert not (tmp_path / "out").exists()
    first = start(plan, "--shards", "1")
    code, said = outcome(first)
    looks_at_all = "ties" in plan.read_text()
    assert code == (75 if looks_at_all else 0), said
    if looks_at_all:
        assert f"{SHARDS[1]}, {SHARDS[2]}" in said
    code, said = outcome(start(plan, "--commit"))
    assert code == 75
    assert SHARDS[2] in said
    # Without a part, one process does what is left.
    assert outcome(start(plan)) == (0, "")
    assert hashes(tmp_path / "out") == whole


@needs_strace
@pytest.mark.tiers
@pytest.mark.parametrize("seed", range(cases(1, 60)))
def test_killed_processes_lose_nothing_but_their_own_file(
    plan: Path, whole: dict[str, str], tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)

    def killed() -> tuple[str, ...]:
        # Calls that nothing but the writing of the output makes.
        call = draw.choice(["pwrite64", "fsync", "rename,/renameat2?$", "ftruncate"])
        inject = f"inject={call}:signal=KILL:when={draw.randint(1, 4)}"
        return ("strace", "-f", "-qq", "-o", os.devnull, "-e", inject)

    for _ in range(2):
        running = [
            start(
                plan, "--shards", str(number), "--wait", "1", before=killed() if number == 2 else ()
            )
            for number in (1, 2, 3)
        ]
        ended = [outcome(process)[0] for process in running]
        assert ended[0] in (0, 75), ended
        assert ended[2] in (0, 75), ended
    running = [start(plan, "--shards", str(number), "--wait", "60") for number in (1, 2, 3)]
    assert [outcome(process)[0] for process in running] == [0, 0, 0]
    outcome(start(plan, "--commit", before=killed()))
    assert outcome(start(plan, "--commit")) == (0, "")
    assert hashes(tmp_path / "out") == whole
    assert not strays(tmp_path / "out")


def test_a_signal_during_the_commit_keeps_what_others_merged(
    plan: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    assert outcome(start(plan, "--shards", "1-3")) == (0, "")
    for delay in (0.1, 0.3, 0.5):
        process = start(plan, "--commit")
        time.sleep(delay)
        process.terminate()
        code, _ = outcome(process)
        # Without a handler, in the first moments.
        assert code in (0, 143, -15)
        if code == 143:
            assert (tmp_path / "out" / MARKER).exists()
    assert outcome(start(plan, "--commit")) == (0, "")
    assert hashes(tmp_path / "out") == whole


def test_what_has_changed_since_the_plan_is_refused(models: Path, tmp_path: Path) -> None:
    home = shutil.copytree(models, tmp_path / "models")
    text = (models / "recipe.json").read_text().replace(str(models), str(home))
    (home / "recipe.json").write_text(text)
    plan_merge(home / "recipe.json", tmp_path / "out", max_shard_size="600KB").save(
        tmp_path / "plan.json"
    )
    weights = home / "one" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-4] + b"\0\0\0\0")
    with pytest.raises(InputError, match=r"one.*has changed since the manifest was made"):
        PlannedMerge.load(tmp_path / "plan.json").merge([1], progress=False)
    weights.write_bytes(before)
    PlannedMerge.load(tmp_path / "plan.json").merge([1], progress=False)
    (home / "base" / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(
        InputError, match=r"tokenizer\.json: has changed since the merge was planned"
    ):
        PlannedMerge.load(tmp_path / "plan.json")


def test_a_plan_that_is_none_is_refused(plan: Path, tmp_path: Path) -> None:
    said = json.loads(plan.read_text())
    bad = tmp_path / "bad.json"
    for keys, words in (
        ({"sensmerge_plan": 2}, "is a plan of version 2"),
        ({"shards": 3}, "shards: Extra inputs"),
        (
            {"copies": [{"name": "a", "path": "/etc/hostname"}]},
            r"copies\.0\.sha256: Field required",
        ),
        ({"manifest": {}}, "manifest: cannot be read"),
    ):
        bad.write_text(json.dumps(said | keys))
        with pytest.raises(InputError, match=words):
            PlannedMerge.load(bad)
    bad.write_text(json.dumps(said["manifest"]))
    with pytest.raises(InputError, match="is not a plan that `sensmerge plan RECIPE OUT` wrote"):
        PlannedMerge.load(bad)
    # A file beside the weights stays in the folder.
    bad.write_text(json.dumps(said | {"texts": [["../escaped", "x"]]}))
    escaping = PlannedMerge.load(bad)
    escaping.merge(progress=False)
    with pytest.raises(InputError, match="is not a file name"):
        escaping.commit(progress=False)
    assert not (tmp_path / "escaped").exists()


def test_parts_are_counted_as_the_files_are_named(plan: Path) -> None:
    planned = PlannedMerge.load(plan)
    assert planned.shards == SHARDS
    for number in (0, 4):
        with pytest.raises(InputError, match=f"no weight file {number}; they are 1 to 3"):
            planned.merge([number])
    with pytest.raises(WaitingError, match="not merged yet"):
        planned.commit(progress=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["r.yaml", "out", "--shards", "1"], "needs --plan"),
        (["r.yaml", "out", "--wait", "1"], "needs --plan"),
        (["r.yaml", "--plan", "p.json"], "exclude each other"),
        (["--plan", "p.json", "--force"], "no effect with --plan"),
        (["--plan", "p.json", "--max-shard-size", "1GB"], "no effect with --plan"),
        (["--plan", "p.json", "--shards", "1", "--commit"], "exclude each other"),
        (["--plan", "p.json", "--address", "here"], "needs --engine ray"),
        ([], "Missing argument 'RECIPE'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("merge", *arguments) == 2
    assert words in capsys.readouterr().err


def test_a_recipe_whose_statistics_would_be_gone_needs_a_calibration(
    models: Path, tmp_path: Path
) -> None:
    said = json.loads((models / "recipe.json").read_text())
    said["merge_method"] = "fisher"
    del said["base_model"]
    path = tmp_path / "fisher.json"
    path.write_text(json.dumps(said))
    with pytest.raises(InputError, match="--calibration"):
        plan_merge(path, tmp_path / "out")


def test_lists_of_weight_files_are_read() -> None:
    assert shards.numbers("3-5, 1,4") == [1, 3, 4, 5]
    for wrong in ("", "a", "1-", "5-3", "1,,2", "-1"):
        with pytest.raises(InputError, match="shards"):
            shards.numbers(wrong)


ARRAYS: list[tuple[dict[str, str], list[list[int]]]] = [
    (
        {
            "SLURM_ARRAY_TASK_ID": "INDEX",
            "SLURM_ARRAY_TASK_MIN": "5",
            "SLURM_ARRAY_TASK_COUNT": "3",
        },
        [[], [], [], [], [], [1, 4, 7], [2, 5], [3, 6]],
    ),
    ({"JOB_COMPLETION_INDEX": "INDEX"}, [[1], [2], [3], [4], [5], [6], [7], []]),
    ({"CLOUD_RUN_TASK_INDEX": "INDEX", "CLOUD_RUN_TASK_COUNT": "2"}, [[1, 3, 5, 7], [2, 4, 6]]),
    (
        {"SGE_TASK_ID": "INDEX", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "4"},
        [[], [1, 5], [2, 6], [3, 7], [4]],
    ),
    ({"LSB_JOBINDEX": "INDEX", "LSB_JOBINDEX_END": "2"}, [[], [1, 3, 5, 7], [2, 4, 6]]),
]


@pytest.mark.parametrize(("variables", "expected"), ARRAYS)
def test_a_task_of_an_array_finds_its_weight_files(
    variables: dict[str, str], expected: list[list[int]]
) -> None:
    for index, files in enumerate(expected):
        said = {key: str(index) if value == "INDEX" else value for key, value in variables.items()}
        if not files and index < 5:
            with pytest.raises(InputError, match="below the first"):
                shards.from_environment(7, said)
            continue
        assert shards.from_environment(7, said) == files


def test_an_environment_without_an_array_is_refused() -> None:
    for said in ({}, {"SGE_TASK_ID": "undefined"}):
        with pytest.raises(InputError, match=r"SLURM_ARRAY_TASK_ID \(Slurm\)"):
            shards.from_environment(3, said)
    with pytest.raises(InputError, match="where the place of a task"):
        shards.from_environment(3, {"JOB_COMPLETION_INDEX": "one"})
    beyond = {"CLOUD_RUN_TASK_INDEX": "3", "CLOUD_RUN_TASK_COUNT": "2"}
    with pytest.raises(InputError, match="beyond the array's 2 tasks"):
        shards.from_environment(3, beyond)
