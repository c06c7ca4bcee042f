"""Nothing is lost, and nothing half-written is taken for whole: kills, failing calls, signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import merges_apart
import sensmerge
from merges_apart import COMMAND, MARKER, OPTIONS, SHARDS, hashes, is_state, merge, needs_strace
from sensmerge import InputError, _core
from test_bad_input import run
from tiers import cases


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merges_apart.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the undisturbed output."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = merge(recipe, out)
    assert done.returncode == 0, done.stderr
    return hashes(out)


WRITES = ["openat", "pwrite64", "write", "fsync", "rename", "unlink", "ftruncate"]
KILLS = [(call, place) for place in (1, 2, 3, 5, 8) for call in WRITES]


@needs_strace
@pytest.mark.tiers
@pytest.mark.parametrize(("call", "place"), KILLS[:: cases(3, 1)])
def test_after_a_kill_the_same_command_ends_with_the_same_bytes(
    recipe: Path, whole: dict[str, str], tmp_path: Path, call: str, place: int
) -> None:
    out = tmp_path / "out"
    calls = f"{call},/{call}at2?$" if call in ("rename", "unlink") else call
    inject = f"inject={calls}:signal=KILL:when={place}"
    stopped = merge(recipe, out, strace=[*merges_apart.paths_of(out), "-e", inject])
    assert is_state(out, whole), sorted(path.name for path in out.iterdir())
    if stopped.returncode == 0 or (
        out.exists() and not (out / MARKER).exists() and any(out.iterdir())
    ):
        assert hashes(out) == whole
        return
    if (out / MARKER).exists():
        with pytest.raises(InputError, match="holds an unfinished merge"):
            _core.Checkpoint(str(out))
    done = merge(recipe, out)
    assert done.returncode == 0, done.stderr
    assert hashes(out) == whole
    assert not [path.name for path in out.iterdir() if path.name.startswith(".sensmerge-")]


FAULTS = [
    (call, error, place)
    for place in (1, 2, 4)
    for call in (*WRITES, "close", "statx", "getdents64")
    for error in ("EIO", "ENOSPC", "EINTR")
]


@needs_strace
@pytest.mark.tiers
@pytest.mark.parametrize(("call", "error", "place"), FAULTS[:: cases(7, 1)])
def test_a_failing_call_leaves_nothing_or_a_mark(
    recipe: Path, whole: dict[str, str], tmp_path: Path, call: str, error: str, place: int
) -> None:
    out = tmp_path / "out"
    calls = f"{call},/{call}at2?$" if call in ("rename", "unlink") else call
    inject = f"inject={calls}:error={error}:when={place}"
    done = merge(recipe, out, strace=[*merges_apart.paths_of(out), "-e", inject])
    assert done.returncode in (0, 1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert "panicked" not in done.stderr
    if done.returncode == 0:
        assert hashes(out) == whole
    else:
        assert "error: " in done.stderr
        assert is_state(out, whole), sorted(path.name for path in out.iterdir())


@needs_strace
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
@pytest.mark.parametrize("call", ["openat", "stat,newfstatat,statx"])
def test_a_file_that_cannot_be_read_is_not_taken_for_absent(
    recipe: Path, tmp_path: Path, name: str, call: str
) -> None:
    path, out = recipe.parent / "base" / name, tmp_path / "out"
    strace = ["-P", str(path), "-e", f"inject={call}:error=EIO:when=1+"]
    done = merge(recipe, out, strace=strace)
    assert done.returncode != 0
    assert str(path) in done.stderr
    assert not out.exists()


def test_a_finished_file_is_used_only_if_it_is_what_the_record_says(
    recipe: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = merge(recipe, out)
    assert done.returncode == 0, done.stderr
    listing = json.loads((out / "sensmerge_output.json").read_text())
    # The state of a merge that was killed before it renamed, with one file that was damaged.
    lines = [{"sensmerge": listing["sensmerge"], "job": listing["job"], "replaces": False}]
    for name in SHARDS:
        digest, size = listing["sha256"][name], (out / name).stat().st_size
        lines.append({"file": name, "bytes": size, "sha256": digest, "notes": []})
        (out / name).rename(out / f".sensmerge-{name}.partial")
    for path in out.iterdir():
        if not path.name.startswith(".sensmerge-"):
            path.unlink()
    (out / MARKER).write_text("".join(json.dumps(line) + "\n" for line in lines))
    kept, damaged = (out / f".sensmerge-{name}.partial" for name in SHARDS[:2])
    with damaged.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    inode = kept.stat().st_ino

    other = tmp_path / "other.json"
    other.write_text(recipe.read_text().replace("0.5", "0.25"))
    refused = merge(other, out)
    assert refused.returncode == 2
    assert "unfinished merge of another recipe" in refused.stderr
    assert "finish it by the command that began it" in refused.stderr

    done = merge(recipe, out)
    assert done.returncode == 0, done.stderr
    assert hashes(out) == whole
    assert (out / SHARDS[0]).stat().st_ino == inode


@pytest.mark.parametrize("how", ["overwritten", "cut", "replaced"])
def test_an_input_that_changes_under_the_merge_is_an_error(
    recipe: Path, tmp_path: Path, how: str
) -> None:
    shutil.copytree(recipe.parent, tmp_path / "models")
    moved = tmp_path / "models" / "recipe.json"
    moved.write_text(recipe.read_text().replace(str(recipe.parent), str(tmp_path / "models")))
    victim = tmp_path / "models" / "two" / "model.safetensors"
    models = sensmerge.open_models(sensmerge.Recipe.load(moved))
    time.sleep(0.02)  # a clock tick of the file system
    if how == "overwritten":
        with victim.open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\x01\x02\x03\x04")
    elif how == "cut":
        # Beyond whole pages: without a handler, reading these ends the process by SIGBUS.
        os.truncate(victim, 8192)
    else:
        shutil.copy(victim, tmp_path / "copy")
        (tmp_path / "copy").replace(victim)
    with pytest.raises(
        InputError, match=r"two/model\.safetensors: was \w+.* while it was being read"
    ):
        sensmerge.merge_tensors(sensmerge.Recipe.load(moved), models)


def test_a_bus_error_that_is_not_ours_ends_the_process_as_before(recipe: Path) -> None:
    script = (
        "import mmap, os, sys, tempfile\n"
        "from sensmerge import _core\n"
        "kept = _core.Checkpoint(sys.argv[1])\n"
        "with tempfile.TemporaryFile() as file:\n"
        "    file.write(bytes(8192)); file.flush()\n"
        "    mapped = mmap.mmap(file.fileno(), 8192, access=mmap.ACCESS_READ)\n"
        "    os.ftruncate(file.fileno(), 0)\n"
        "    mapped[5000]\n"
    )
    arguments = [sys.executable, "-c", script, str(recipe.parent / "base")]
    died = subprocess.run(arguments, check=False, timeout=60)
    assert died.returncode == -signal.SIGBUS


@pytest.mark.tiers
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_at_any_moment_leave_nothing_or_everything(
    recipe: Path, whole: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    for attempt in range(cases(8, 60)):
        out = tmp_path / f"out{attempt}"
        begun = subprocess.Popen(
            [*COMMAND, str(recipe), str(out), *OPTIONS], stderr=subprocess.PIPE, text=True
        )
        time.sleep(0.1 + 0.6 * attempt / cases(8, 60))
        begun.send_signal(number)
        _, said = begun.communicate(timeout=60)
        assert begun.returncode in (0, 128 + number, -number), said
        # Python's own start, before the first line of ours, is not ours to answer for.
        if begun.returncode != -number:
            assert "Traceback" not in said or "site.py" in said, said
        if begun.returncode == 0:
            assert hashes(out) == whole
        else:
            assert not out.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_once_the_output_is_committed_changes_nothing(
    recipe: Path, whole: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    """Sent by the process itself, before the first rename and as the command ends."""
    out = tmp_path / "out"
    script = (
        "import os, sys\n"
        "from sensmerge.cli import signals\n"
        "from sensmerge.start import main\n"
        "drop, ignore = signals.drop, signals.ignore\n"
        f"signals.drop = lambda: (drop(), os.kill(os.getpid(), {int(number)}))\n"
        f"signals.ignore = lambda: (ignore(), os.kill(os.getpid(), {int(number)}))\n"
        "main()\n"
    )
    arguments = [sys.executable, "-c", script, "merge", str(recipe), str(out), *OPTIONS]
    done = subprocess.run(arguments, check=False, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hashes(out) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_turns_into_its_own_error_is_still_one(
    recipe: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As pydantic does, if one comes while it builds what checks recipes."""
    script = (
        "import os\n"
        "from sensmerge import reading\n"
        "def torn(*given, **named):\n"
        "    try:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "    except KeyboardInterrupt as error:\n"
        "        raise ValueError('torn') from error\n"
        "reading.content = torn\n"
        "from sensmerge.start import main\n"
        "main()\n"
    )
    arguments = [sys.executable, "-c", script, "merge", str(recipe), str(tmp_path / "out")]
    done = subprocess.run(arguments, check=False, timeout=60, capture_output=True, text=True)
    assert done.returncode == 128 + number, done.stderr
    assert "torn" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_a_merge_wrote_is_verified(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("merge", str(recipe), str(out), *OPTIONS) == 0
    assert run("verify", str(out), "--check", str(recipe)) == 0
    assert "as written; merged again" in capsys.readouterr().out
    (out / "notes.txt").write_text("mine")
    assert run("verify", str(out)) == 0
    assert "not written by the merge: notes.txt" in capsys.readouterr().err

    # Another weight: each file is as written, but it is not this recipe's output.
    other = tmp_path / "other.json"
    other.write_text(recipe.read_text().replace("0.5", "0.25"))
    assert run("verify", str(out), "--check", str(other)) == 2
    assert "differs from the merge of the recipe" in capsys.readouterr().err

    with (out / SHARDS[1]).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    (out / "config.json").unlink()
    assert run("verify", str(out)) == 2
    said = capsys.readouterr().err
    assert f"{SHARDS[1]}: has another content" in said
    assert "config.json: is missing" in said


def test_an_older_output_is_no_model_once_its_files_are_replaced(
    recipe: Path, tmp_path: Path
) -> None:
    """Stopped between any two renames, by what stands in their way, no model is left that loads."""
    for obstacle in ("README.md", "config.json", "tokenizer.json"):
        out = tmp_path / f"out {obstacle}"
        assert run("merge", str(recipe), str(out), "--quiet") == 0
        (out / obstacle).unlink(missing_ok=True)
        (out / obstacle).mkdir()
        assert run("merge", str(recipe), str(out), "--force", *OPTIONS) == 1
        assert (out / MARKER).exists()
        assert not (out / "model.safetensors").exists()
        assert not (out / "model.safetensors.index.json").exists()
        with pytest.raises(InputError, match="unfinished"):
            _core.Checkpoint(str(out))


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"take \d+ bytes, and its file system has \d+ left"):
        _core.check_space(str(tmp_path / "out"), 1 << 62)
    _core.check_space(str(tmp_path / "out"), 1)
    assert not (tmp_path / "out").exists()
