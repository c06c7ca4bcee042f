"""mergekit's options on the command line of `sensmerge merge`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from families import Family
from test_bad_input import run

Said = pytest.CaptureFixture[str]

# Every option of mergekit-yaml 0.1.5, as it is typed.
ALL = """--allow-crimes --no-allow-crimes --unsafe-truncate-embeddings --lora-merge-cache cache
--lora-merge-dtype float32 --cuda --device cuda --low-cpu-memory --out-shard-size 5B
--copy-tokenizer --clone-tensors --trust-remote-code --random-seed 7 --lazy-unpickle
--write-model-card --safe-serialization -v --quiet --read-to-gpu --multi-gpu --num-threads 2
--gpu-rich --async-write --write-threads 4""".split()  # noqa: SIM905


@pytest.fixture
def recipe(family: Family) -> str:
    return str(family.write_recipe(family.recipe("dare_ties", parameters={"density": 0.5})))


def weights(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))


def test_a_command_line_of_mergekit_runs(recipe: str, tmp_path: Path, capsys: Said) -> None:
    assert run("merge", recipe, str(tmp_path / "out"), *ALL) == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_what_has_no_effect_is_said_in_one_line(recipe: str, tmp_path: Path, capsys: Said) -> None:
    options = [each for each in ALL if each != "--quiet"]
    assert run("merge", recipe, str(tmp_path / "out"), *options) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "without effect" in line]
    assert len(notes) == 1
    assert "--trust-remote-code (code that comes with a model is never run)" in notes[0]
    assert "--cuda, " in notes[0]
    for name in ("--random-seed", "--out-shard-size", "--safe-serialization", "--num-threads"):
        assert name not in notes[0]
    # Without them, and with their defaults, nothing is said.
    assert run("merge", recipe, str(tmp_path / "two"), "--no-cuda", "--safe-serialization") == 0
    assert "without effect" not in capsys.readouterr().err
    assert run("merge", recipe, str(tmp_path / "three"), "--no-safe-serialization") == 0
    assert "(weights are always written as safetensors)" in capsys.readouterr().err


def test_a_seed_is_the_recipes(recipe: str, family: Family, tmp_path: Path) -> None:
    seeded = family.recipe("dare_ties", parameters={"density": 0.5}, seed=7)
    other = str(family.write_recipe(seeded, "seeded.yaml"))
    for name, path, options in (
        ("plain", recipe, []),
        ("asked", recipe, ["--random-seed", "7"]),
        ("written", other, []),
        ("both", other, ["--random-seed", "7"]),
    ):
        assert run("merge", path, str(tmp_path / name), *options, "--quiet") == 0
    assert (
        weights(tmp_path / "asked") == weights(tmp_path / "written") == weights(tmp_path / "both")
    )
    assert weights(tmp_path / "asked") != weights(tmp_path / "plain")
    assert "seed: 7" in (tmp_path / "asked" / "sensmerge_recipe.yaml").read_text()


def test_shards_are_of_bytes(recipe: str, tmp_path: Path, capsys: Said) -> None:
    for size, option in (("20000", "--out-shard-size"), ("20K", "--out-shard-size"),
                         ("20KB", "--max-shard-size")):  # fmt: skip
        assert run("merge", recipe, str(tmp_path / size), option, size, "--quiet") == 0
    files = [sorted(p.name for p in (tmp_path / size).glob("*.safetensors"))
             for size in ("20000", "20K", "20KB")]  # fmt: skip
    assert files[0] == files[1] == files[2]
    assert len(files[0]) > 1
    for wrong in ("5GB", "0", "", "B", "1.5B"):
        assert run("merge", recipe, str(tmp_path / "x"), "--out-shard-size", wrong) == 2
        assert "--out-shard-size" in capsys.readouterr().err


def test_files_that_are_not_wanted(recipe: str, tmp_path: Path) -> None:
    options = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    assert run("merge", recipe, str(tmp_path / "out"), *options) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "sensmerge_recipe.yaml"} <= names
    assert names.isdisjoint({"README.md", "tokenizer.json", "tokenizer_config.json"})


def test_where_the_output_goes(recipe: str, tmp_path: Path, capsys: Said) -> None:
    # As mergekit-multi has it.
    assert run("merge", recipe, "--out-path", str(tmp_path / "out"), "--quiet") == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert run("merge", recipe) == 2
    assert "OUT" in capsys.readouterr().err


def test_where_models_of_the_hub_are_kept(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "before")
    options = ["--transformers-cache", str(tmp_path / "cache"), "--quiet"]
    assert run("merge", recipe, str(tmp_path / "out"), *options) == 0
    assert os.environ["HF_HUB_CACHE"] == str(tmp_path / "cache")


def test_the_help_is_not_crowded(capsys: Said) -> None:
    assert run("merge", "--help") == 0
    said = capsys.readouterr().out
    assert "--gpu-rich" not in said
    assert "mergekit's options are understood too" in said
