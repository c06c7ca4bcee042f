"""A merge in a process of its own, with or without faults that strace puts in its way."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

MARKER = ".sensmerge-unfinished"
COMMAND = [sys.executable, "-m", "sensmerge.start", "merge"]
# What a model of these tests is merged into.
SHARDS = [f"model-{place:05}-of-00003.safetensors" for place in (1, 2, 3)]
OUTPUT_FILES = [
    *SHARDS, "model.safetensors.index.json", "config.json", "tokenizer.json",
    "sensmerge_output.json", "sensmerge_recipe.yaml", "README.md",
]  # fmt: skip
OPTIONS = ["--max-shard-size", "600KB", "--threads", "2", "--quiet"]


def write_models(folder: Path, layers: int = 3) -> Path:
    """A base and two experts of as many shards' size as layers, and a recipe that merges them."""
    draw = np.random.default_rng(7)
    for name in ("base", "one", "two"):
        home = folder / name
        home.mkdir(parents=True)
        tensors = {
            f"model.layers.{layer}.mlp.up_proj.weight": draw.standard_normal(
                (256, 512), dtype=np.float32
            )
            for layer in range(layers)
        }
        save_file(tensors, home / "model.safetensors", metadata={"format": "pt"})
        config = {"model_type": "llama", "num_hidden_layers": layers}
        (home / "config.json").write_text(json.dumps(config))
        vocabulary = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
        (home / "tokenizer.json").write_text(json.dumps(vocabulary))
    recipe = folder / "recipe.json"
    models = [{"model": str(folder / name)} for name in ("one", "two")]
    recipe.write_text(
        json.dumps(
            {
                "merge_method": "task_arithmetic",
                "base_model": str(folder / "base"),
                "models": [model | {"parameters": {"weight": 0.5}} for model in models],
            }
        )
    )
    return recipe


def merge(
    recipe: Path, out: Path, *options: str, strace: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Merge into ``out``; ``strace`` are arguments that inject faults."""
    before = [] if strace is None else ["strace", "-f", "-qq", "-o", os.devnull, *strace]
    command = [*before, *COMMAND, str(recipe), str(out), *OPTIONS, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def paths_of(out: Path) -> list[str]:
    """strace's arguments that confine faults to the files of an output, under both their names."""
    partial = [f".sensmerge-{name}.partial" for name in OUTPUT_FILES]
    names = [*OUTPUT_FILES, *partial, MARKER, ""]
    return [part for name in names for part in ("-P", str(out / name).rstrip("/"))]


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of the files that a loader reads."""
    read = [path for path in sorted(out.iterdir()) if path.suffix != ".yaml"]
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in read
        if path.name not in ("README.md", "sensmerge_output.json")
    }


def is_state(out: Path, whole: dict[str, str]) -> bool:
    """Whether a folder is absent or empty, marked as unfinished, or complete."""
    if not out.exists() or not any(out.iterdir()) or (out / MARKER).exists():
        return True
    return hashes(out) == whole


@functools.cache
def can_trace() -> bool:
    """Whether strace is there, and may trace."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], check=False).returncode == 0


needs_strace = pytest.mark.skipif(not can_trace(), reason="faults are injected by strace")
