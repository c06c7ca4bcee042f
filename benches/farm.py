"""Candidates an hour of the merge farm, beside the same merges one after the other.

``python benches/farm.py [--size 1b] [--candidates 20] [--rounds 3] [--record]``

A base and three experts of random weights in bfloat16. Every candidate is written to the disk,
scored by a command that prints a number at once, and deleted unless it is the best. Beside it the
same recipes are merged by ``sensmerge.merge``, with the same options, each over the one before.
Both in turns, in one process; the evaluation costs next to nothing, so that what is left is the
farm's own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import checkpoints
import measure
import sensmerge
from checkpoints import names
from sensmerge.farm.board import Board
from sensmerge.farm.running import Options, farm

WORK = Path(__file__).resolve().parent / "farm-family"

EXPERTS = 3
METHODS = ("task_arithmetic", "ties", "dare_ties")

SHARE_TARGET = 0.8
BOOKKEEPING_TARGET = 0.2


def main() -> None:
    """Make a family, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(checkpoints.SHAPES), default="1b")
    parser.add_argument("--candidates", type=int, default=12, help="of each method")
    parser.add_argument("--rounds", type=int, default=3, help="of both, in turns")
    parser.add_argument("--record", action="store_true", help="keep the table in benches/records")
    options = parser.parse_args()
    try:
        checkpoints.llama(WORK, options.size, EXPERTS)
        found = {method: measured(method, options) for method in METHODS}
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    table = describe(options, found)
    print(table)
    if options.record:
        measure.record(f"farm-{options.size}", table)


def measured(method: str, options: argparse.Namespace) -> list[dict[str, float]]:
    """Rounds of one method: seconds of farm and bare merges, and the farm's own a candidate."""
    scales = [0.1 + 0.8 * place / options.candidates for place in range(options.candidates)]
    recipe: dict[str, Any] = {
        "merge_method": method,
        "base_model": "base",
        "models": [{"model": name} for name in names(EXPERTS)[1:]],
        "parameters": {"lambda": 0.5} | ({} if method == "task_arithmetic" else {"density": 0.5}),
    }
    path = WORK / "farm.json"
    path.write_text(
        json.dumps(
            {
                "recipe": recipe,
                "grid": {"lambda": scales},
                "evaluate": {"command": {"run": ["echo", '{"score": 1, "of": "{model}"}'],
                                         "score": "score"}},
                "keep": 1,
            }
        )
    )  # fmt: skip
    rounds = []
    for _ in range(options.rounds):
        bare = _bare(recipe, scales)
        start = time.perf_counter()
        board = farm(path, WORK / "out", Options(progress=False))
        whole = time.perf_counter() - start
        rounds.append({"bare": bare, "farm": whole, "own": _own(board, whole)})
        shutil.rmtree(WORK / "out")
    return rounds


def _bare(recipe: dict[str, Any], scales: list[float]) -> float:
    start = time.perf_counter()
    for scale in scales:
        asked = sensmerge.Recipe.from_dict(
            recipe | {"parameters": recipe["parameters"] | {"lambda": scale}}, folder=WORK
        )
        sensmerge.merge(asked, WORK / "bare", progress=False, sync=False)
        shutil.rmtree(WORK / "bare")
    return time.perf_counter() - start


def _own(board: Board, whole: float) -> float:
    """Seconds a candidate beside its merge; those of its evaluation count, which ran meanwhile."""
    merges = sum(each.merge_seconds or 0.0 for each in board.candidates)
    assert board.counts["done"] == len(board.candidates)
    return (whole - merges) / len(board.candidates)


def describe(options: argparse.Namespace, found: dict[str, list[dict[str, float]]]) -> str:
    """The table, with the machine beside it."""
    shape = checkpoints.SHAPES[options.size]
    lines = [
        f"# The merge farm: {shape.bytes() / 2e9:.1f} B parameters, bfloat16",
        "",
        f"{measure.machine()}; sensmerge {sensmerge.__version__} at {measure.commit()}, "
        f"{time.strftime('%Y-%m-%d')}; {EXPERTS} experts, {options.candidates} candidates, "
        f"{options.rounds} rounds in turns.",
        "",
        "| method | merges alone, an hour | candidates an hour | share | target "
        "| beside the merge, a candidate | target |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for method, rounds in found.items():
        share = statistics.median(each["bare"] / each["farm"] for each in rounds)
        hourly = {
            key: 3600 * options.candidates / statistics.median(each[key] for each in rounds)
            for key in ("bare", "farm")
        }
        own = statistics.median(each["own"] for each in rounds)
        lines.append(
            f"| {method} | {hourly['bare']:.0f} | {hourly['farm']:.0f} | {100 * share:.0f} % "
            f"| {100 * SHARE_TARGET:.0f} % | {own:.3f} s | {BOOKKEEPING_TARGET} s |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
