"""Merges of a base with LoRA adapters, compared with the same merges of merged copies.

``python benches/lora.py [--size 1b|7b|tiny] [--runs N] [--ranks 16,64] [--record]``

Both are whole processes, run in turn, each into a new folder; a ratio is taken within a turn, and
the median of the ratios is reported. The first turn warms up and is not counted. The copies are
full fine-tunes of the same base, which a merge reads as it would merged adapters. Adapters change
every linear layer of the blocks.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import checkpoints
import measure
import sensmerge
from checkpoints import Shape, names

WORK = Path(__file__).resolve().parent / "checkpoints"

EXPERTS = 3


def write_adapter(folder: Path, shape: Shape, rank: int, dtype: str, seed: int) -> int:
    """An adapter of all linear layers; made only if it is not there already. Its size in bytes."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        draw = np.random.default_rng(seed)
        tensors: dict[str, Any] = {}
        for name, size in shape.tensors().items():
            if "_proj." in name:
                module = f"base_model.model.{name.removesuffix('.weight')}"
                for part, sizes in (("A", (rank, size[1])), ("B", (size[0], rank))):
                    factor = 0.01 * draw.standard_normal(sizes, dtype=np.float32)
                    tensors[f"{module}.lora_{part}.weight"] = factor.astype(dtype)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, weights)
    return weights.stat().st_size


def recipe(method: str, models: list[str], density: float) -> dict[str, Any]:
    """A merge of some models onto the base."""
    parameters = {"weight": 1 / len(models), "normalize": False, "lambda": 1.0}
    if density < 1:
        parameters["density"] = density
    return {
        "merge_method": method,
        "base_model": "base",
        "models": [{"model": model} for model in models],
        "parameters": parameters,
    }


def merge(folder: Path, data: dict[str, Any]) -> measure.Taken:
    """One merge, as a user runs it."""
    path, out = folder / "adapters.json", folder / "out"
    path.write_text(json.dumps(data))
    command: list[str | Path] = [
        Path(sys.executable).parent / "sensmerge",
        "merge",
        path,
        out,
        "--quiet",
        "--no-sync",
        "--no-hash",
    ]
    try:
        return measure.run(command)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def row(folder: Path, method: str, density: float, adapters: list[str], runs: int) -> str:
    """The measurements of one merge, as a row of the table."""
    copies = recipe(method, names(EXPERTS)[1:], density)
    added = recipe(method, [f"base+{adapter}" for adapter in adapters], density)
    turns = [(merge(folder, copies), merge(folder, added)) for _ in range(runs + 1)][1:]
    seconds = [[taken.seconds for taken in side] for side in zip(*turns, strict=True)]
    ratio = statistics.median(one.seconds / other.seconds for other, one in turns)
    peak = max(taken.anonymous for _, taken in turns)
    said = [f"{statistics.median(each):.2f} ({min(each):.2f}-{max(each):.2f})" for each in seconds]
    return (
        f"| {method} | {adapters[0]} | {said[0]} | {said[1]} | {ratio:.2f} | {peak / 1e6:.0f} MB |"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, and keep it with ``--record``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=sorted(checkpoints.SHAPES), default="1b")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ranks", default="16,64")
    parser.add_argument("--record", action="store_true", help="keep the table in benches/records")
    options = parser.parse_args(arguments)
    folder = WORK / options.size
    shape = checkpoints.llama(folder, options.size, EXPERTS)
    today = datetime.datetime.now(tz=datetime.UTC).date()
    lines = [
        f"# LoRA adapters against merged copies: {shape.bytes() / 2e6:,.0f} M parameters, "
        f"bfloat16, base + {EXPERTS} adapters",
        "",
        f"{measure.machine()}; sensmerge {sensmerge.__version__} at {measure.commit()}, {today}; "
        "all threads; page cache warm, output not flushed.",
        f"Whole processes in turn, {options.runs} turns after one that warms up. Seconds are "
        "medians (fastest to slowest), ratios medians of those within a turn.",
        "",
        "| method | adapters | merged copies, s | adapters, s | ratio | peak anonymous memory |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for rank in map(int, options.ranks.split(",")):
        for dtype in ("float32", "float16"):
            adapters = [f"rank {rank}, {dtype}, {place}" for place in range(EXPERTS)]
            for place, name in enumerate(adapters):
                write_adapter(folder / name, shape, rank, dtype, place)
            for method, density in (("task_arithmetic", 1.0), ("ties", 0.2)):
                lines.append(row(folder, method, density, adapters, options.runs))
                print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.record:
        measure.record(f"adapters-{options.size}", text)


if __name__ == "__main__":
    main()
