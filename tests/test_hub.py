"""Models on the Hub: what is downloaded, what is recorded, and what is said when it fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from families import Family, llama_family
from hub_server import COMMIT, TOKEN, Hub, Repository, serving
from sensmerge import _core
from sensmerge.models.hub import Reference

OTHER = "f" * 40


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return llama_family(tmp_path_factory.mktemp("models"), experts=1, layers=1)


@pytest.fixture
def hub(models: Family) -> Iterator[Hub]:
    """A Hub with the base and the expert, whose repositories hold more than is needed."""
    with serving() as hub:
        for name in ("base", "e0"):
            repository = Repository.of(models.folder / name)
            repository.files |= {
                "README.md": b"a card",
                "original/params.json": b"{}",
                "original/consolidated.00.pth": b"PK",
                "model.Q4_K_M.gguf": b"GGUF",
                "pytorch_model.bin": b"PK",
                "runs/events": b"",
            }
            hub.repositories[f"org/{name}"] = repository
        yield hub


def sensmerge(
    hub: Hub, home: Path, *arguments: str | Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command with the Hub's address and a cache in ``home``."""
    environment = {**os.environ, **hub.environment(home, **variables)}
    command = [str(Path(sys.executable).parent / "sensmerge"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def refused(hub: Hub, home: Path, name: str, **variables: str) -> str:
    run = sensmerge(hub, home, "inspect", name, **variables)
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr


def write_recipe(folder: Path, base: object, expert: object) -> Path:
    path = folder / "recipe.yaml"
    data = {"merge_method": "task_arithmetic", "base_model": base, "models": [{"model": expert}]}
    path.write_text(json.dumps(data | {"parameters": {"weight": 0.5}}))
    return path


def test_a_merge_of_models_on_the_hub(hub: Hub, models: Family, tmp_path: Path) -> None:
    hub.repositories["org/e0"].commits = {"main": OTHER, "v1": COMMIT}
    named = {"model": {"path": "org/e0", "revision": "v1"}}
    recipe = write_recipe(tmp_path, "org/base", named)
    run = sensmerge(hub, tmp_path / "home", "merge", recipe, tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert "downloading org/base" in run.stderr
    # Only what is read: not the other formats, nor what lies in folders.
    assert {name for name in hub.downloads if not name.endswith((".json", ".jinja"))} == {
        "model.safetensors"
    }
    local = write_recipe(models.folder, "base", "e0")
    assert sensmerge(hub, tmp_path, "merge", local, tmp_path / "local").returncode == 0
    merged = tmp_path / "out" / "model.safetensors"
    assert merged.read_bytes() == (tmp_path / "local" / "model.safetensors").read_bytes()

    written = json.loads((tmp_path / "out" / "sensmerge_output.json").read_text())
    assert written["origins"] == [
        {"repository": "org/base", "commit": COMMIT},
        {"repository": "org/e0", "commit": COMMIT},
    ]
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'base_model:\n- "org/base"\n- "org/e0"\n---' in card
    assert f"| org/e0@v1 | expert | `{COMMIT}` |" in card
    assert "base_model:\n" not in (tmp_path / "local" / "README.md").read_text().split("---")[1]

    plan = tmp_path / "plan.json"
    assert sensmerge(hub, tmp_path / "home", "plan", recipe, "-o", plan).returncode == 0
    assert json.loads(plan.read_text())["models"][1]["origin"] == written["origins"][1]
    assert (
        "origin" not in _core.Manifest.from_json(plan.read_text()).to_json().partition("files")[0]
    )


def test_the_cache_is_used_again_and_alone_when_offline(hub: Hub, tmp_path: Path) -> None:
    first = sensmerge(hub, tmp_path, "inspect", "org/base")
    assert first.returncode == 0, first.stderr
    hub.downloads.clear()
    for variables in ({}, {"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        again = sensmerge(hub, tmp_path, "inspect", "org/base", **variables)
        assert again.stdout == first.stdout, again.stderr
    assert hub.downloads == []
    said = refused(hub, tmp_path, "org/e0", HF_HUB_OFFLINE="1")
    assert "'org/e0'" in said
    assert "HF_HUB_OFFLINE" in said
    assert "does not answer" in refused(hub, tmp_path, "org/e0", HF_ENDPOINT="http://127.0.0.1:9")


def test_a_download_that_breaks_off_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.cut["model.safetensors"] = 1
    assert sensmerge(hub, tmp_path / "one", "inspect", "org/base").returncode == 0
    assert hub.downloads.count("model.safetensors") == 2
    hub.cut["model.safetensors"] = 1000
    said = refused(hub, tmp_path / "two", "org/base")
    assert "downloading it from the Hugging Face Hub failed" in said
    hub.cut.clear()
    assert sensmerge(hub, tmp_path / "two", "inspect", "org/base").returncode == 0


def test_what_is_not_there_or_not_open(hub: Hub, tmp_path: Path) -> None:
    said = refused(hub, tmp_path, "org/bsae")
    assert "no such folder" in said
    assert "check the spelling or, if it is private, log in with" in said
    assert "has no revision 'v7' of 'org/base'" in refused(hub, tmp_path, "org/base@v7")
    hub.repositories["org/e0"].gated = True
    said = refused(hub, tmp_path, "org/e0")
    assert f"is gated: accept its conditions at {hub.address}/org/e0, and log in with" in said
    opened = sensmerge(hub, tmp_path, "inspect", "org/e0", HF_TOKEN=TOKEN)
    assert opened.returncode == 0, opened.stderr


def test_repositories_without_a_model_are_refused_without_downloading_weights(
    hub: Hub, tmp_path: Path
) -> None:
    config = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"}).encode()
    hub.repositories["org/adapter"] = Repository(
        {"adapter_config.json": config, "adapter_model.safetensors": b"x"}
    )
    assert "is a LoRA adapter for 'org/base'" in refused(hub, tmp_path, "org/adapter")
    hub.repositories["org/quantised"] = Repository({"config.json": b"{}", "a.gguf": b"GGUF"})
    assert "only as a.gguf" in refused(hub, tmp_path, "org/quantised")
    hub.repositories["org/old"] = Repository({"config.json": b"{}", "pytorch_model.bin": b"PK"})
    said = refused(hub, tmp_path, "org/old")
    assert "only as pytorch_model.bin" in said
    assert "hint: merge, merge-lora, calibrate, convert and eval read pickles" in said
    assert set(hub.downloads) == {"adapter_config.json", "config.json"}


def test_adapters_and_shards(hub: Hub, tmp_path: Path, models: Family) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    hub.repositories["org/sharded"] = Repository(
        {
            "model.safetensors.index.json": json.dumps(index).encode(),
            "model-1.safetensors": b"1",
            "model-2.safetensors": b"2",
            "model-3.safetensors": b"3",
            "adapter_config.json": b"{}",
            "adapter_model.safetensors": b"adapter",
        }
    )
    code = (
        "import sys; from pathlib import Path; from sensmerge.models.references import resolve\n"
        "print(resolve('org/sharded', Path(), adapter=sys.argv[1] == 'adapter', progress=False))"
    )
    for kind, expected in [
        ("adapter", {"adapter_model.safetensors"}),
        ("model", {"model-1.safetensors", "model-2.safetensors"}),
    ]:
        environment = {**os.environ, **hub.environment(tmp_path / kind)}
        command = [sys.executable, "-c", code, kind]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        folder = Path(run.stdout.strip())
        assert folder.name == COMMIT
        assert {path.name for path in folder.glob("*.safetensors")} == expected
        assert run.stderr == ""
    said = "adapter 'org/base': its repository has no adapter_config.json"
    environment = {**os.environ, **hub.environment(tmp_path)}
    command = [sys.executable, "-c", code.replace("org/sharded", "org/base"), "adapter"]
    assert said in subprocess.run(command, env=environment, capture_output=True, text=True).stderr


def test_pickles_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    saved = tmp_path / "pytorch_model.bin"
    torch.save({"a.weight": torch.arange(6.0)}, saved)
    hub.repositories["org/old"] = Repository({"pytorch_model.bin": saved.read_bytes()})
    out = tmp_path / "out"
    run = sensmerge(hub, tmp_path / "home", "convert", "org/old", out, "--unpickle")
    assert run.returncode == 0, run.stderr
    assert [tensor.shape for tensor in _core.Checkpoint(str(out)).tensors] == [[6]]
    written = json.loads((out / "sensmerge_output.json").read_text())
    assert written["origins"] == [{"repository": "org/old", "commit": COMMIT}]


def test_a_single_weight_file(models: Family, hub: Hub, tmp_path: Path) -> None:
    for name in ("base", "e0"):
        shutil.copyfile(
            models.folder / name / "model.safetensors", tmp_path / f"{name}.safetensors"
        )
    recipe = write_recipe(tmp_path, "base.safetensors", "e0.safetensors")
    run = sensmerge(hub, tmp_path, "merge", recipe, tmp_path / "out")
    assert run.returncode == 0, run.stderr


def test_names_of_the_hub() -> None:
    assert Reference.of("org/name") == Reference("org/name", None)
    assert str(Reference.of("org/na.me@refs/pr/1")) == "org/na.me@refs/pr/1"
    for name in ("name", "./org/name", "a/b/c", "/org/name", "org/name@", "org/name+adapter", ""):
        assert Reference.of(name) is None
