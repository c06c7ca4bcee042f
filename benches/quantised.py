"""Merges of quantised models beside the same merge in bfloat16, in turns.

Processor seconds of the merge alone, of all threads, page cache warm: they say what the codes cost
where a merge is bound by the processor, whatever else runs. The target is at most twice those in
bfloat16. ``--record`` keeps the table in benches/records.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import checkpoints
import measure

ROOT = measure.ROOT
EXPERTS = 3
TARGET = 2.0

# The stored form of all models, and the output's.
WAYS = {
    "bfloat16": (None, None),
    "fp8 to fp8": ("float8_e4m3fn", None),
    "fp8 to bfloat16": ("float8_e4m3fn", "bfloat16"),
    "int4 to int4": ("int4", None),
    "bfloat16 to fp8": (None, "float8_e4m3fn"),
}
METHODS: dict[str, dict[str, float]] = {"task_arithmetic": {}, "ties": {"density": 0.2}}


def family(folder: Path, size: str, stored: str | None) -> list[Path]:
    """The models' folders, quantised where asked, made once."""
    plain = folder / size
    checkpoints.llama(plain, size, EXPERTS)
    names = checkpoints.names(EXPERTS)
    for name in names:
        config = plain / name / "config.json"
        if not config.exists():
            config.write_text(json.dumps({"dtype": "bfloat16"}))
    if stored is None:
        return [plain / name for name in names]
    quantised = folder / f"{size}-{stored}"
    for name in names:
        if not (quantised / name).exists():
            command = ["convert", plain / name, quantised / name, "--dtype", stored, "--quiet"]
            subprocess.run(
                [*sensmerge(), *map(str, command)], check=True, stderr=subprocess.DEVNULL
            )
    return [quantised / name for name in names]


def sensmerge() -> list[str]:
    return [str(Path(sys.executable).parent / "sensmerge")]


def command(folder: Path, way: str, method: str, size: str) -> list[str | Path]:
    """The command of one merge, whose recipe is written beside the models."""
    stored, out_dtype = WAYS[way]
    base, *experts = family(folder, size, stored)
    data: dict[str, Any] = {
        "merge_method": method,
        "base_model": str(base),
        "models": [
            {"model": str(model), "parameters": {"weight": 1 / EXPERTS}} for model in experts
        ],
        "parameters": METHODS[method],
    }
    data |= {} if out_dtype is None else {"out_dtype": out_dtype}
    recipe = folder / f"{way.replace(' ', '-')}-{method}.json"
    recipe.write_text(json.dumps(data))
    out = folder / "merged"
    return [sys.executable, __file__, "--one", recipe, out]


def one(recipe: Path, out: Path) -> None:
    """Merge, and print the seconds that processors worked on it."""
    from sensmerge import Recipe, workflow

    before = time.process_time()
    workflow.merge(Recipe.load(recipe), out, progress=False, sync=False, overwrite=True)
    print(time.process_time() - before)


def processor_seconds(parts: list[str | Path]) -> float:
    done = subprocess.run([str(part) for part in parts], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1b")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=ROOT / "target" / "benches")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--one", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(*options.one)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for method in METHODS:
        commands = {way: command(options.folder, way, method, options.size) for way in WAYS}
        turns: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(options.runs + 1):
            for way, parts in commands.items():
                taken = processor_seconds(parts)
                turns[way] += [taken] if turn else []
        shutil.rmtree(options.folder / "merged")
        for way, seconds in turns.items():
            ratios = [a / b for a, b in zip(seconds, turns["bfloat16"], strict=True)]
            rows.append(
                f"| {method} | {way} | {statistics.median(seconds):.2f} "
                f"({min(seconds):.2f}-{max(seconds):.2f}) | {statistics.median(ratios):.2f} "
                f"| {TARGET:g} |"
            )
    today = datetime.datetime.now(datetime.UTC).date()
    text = (
        f"# Quantised models, {options.size}, base + {EXPERTS} experts\n\n"
        f"{measure.machine()}; {measure.commit()}, {today}; page cache warm, output not flushed.\n"
        f"Processor seconds of the merge, {options.runs} turns after one that warms up; ratios are "
        "medians of those within a turn to bfloat16.\n\n"
        "| method | stored | seconds | ratio | target |\n"
        "|---|---|---:|---:|---:|\n" + "\n".join(rows) + "\n"
    )
    print(text)
    if options.record:
        name = f"quantised-{options.size}-{today}.md"
        (ROOT / "benches" / "records" / name).write_text(text)


if __name__ == "__main__":
    main()
