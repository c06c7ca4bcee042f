"""Calibrating and searching on the processor and on a GPU, side by side.

``python benches/devices.py [--size 1b] [--samples 12] [--max-length 256] [--devices cpu,cuda]``

A base and two experts of random weights in bfloat16. Every measurement is a process of its own. On
every device weights are merged by the processor, which has the task vectors; a GPU gets a copy.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

import checkpoints
import measure
import search
import sensmerge
from search import FEW, WORK


def main() -> None:
    """Make a family, measure on every device, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(checkpoints.SHAPES), default="1b")
    parser.add_argument("--samples", type=int, default=12, help="samples in all, a multiple of 2")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--rounds", type=int, default=5, help="of a step and of a candidate")
    parser.add_argument("--devices", default="cpu,cuda", help="torch devices, with commas between")
    parser.add_argument("--record", action="store_true", help="keep the table in benches/records")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        print(json.dumps(PARTS[options.part](options)))
        return

    devices = options.devices.split(",")
    try:
        search.make_family(options, FEW)
        found = {
            device: {part: run_part(part, device, options) for part in PARTS} for device in devices
        }
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    table = describe(options, found)
    print(table)
    if options.record:
        measure.record(f"devices-{options.size}", table)


def run_part(part: str, device: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure one thing on one device in a process of its own."""
    passed = ("size", "samples", "max_length", "rounds", "devices")
    options = argparse.Namespace(**vars(options) | {"devices": device})
    return measure.part(__file__, part, options, passed)


def calibration(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of both measurements, the loading of models included."""
    found = sensmerge.calibrate(
        search.recipe(FEW, options), progress=False, device=options.devices
    )  # fmt: skip
    return {f"{name}, both experts": seconds for name, seconds in found.seconds.items()}


def learning(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step: merge, all samples forward and backward, derivatives by task vectors."""
    from sensmerge.search import descent

    problem = descent.Problem(
        search.recipe(FEW, options), descent.Options(validation=0), device=options.devices
    )
    start = problem.weights.start
    return {"a step of learn": _median(options, lambda at: problem.differentiate(start * at)[0])}


def candidate(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a candidate of tune: merge, all samples forward."""
    from sensmerge.search.judge import Judge
    from sensmerge.search.settings import Settings

    judge = Judge(
        search.recipe(FEW, options),
        calibration=None,
        validation=0,
        device=options.devices,
        threads=None,
    )
    found = _median(options, lambda at: judge.losses(Settings("task_arithmetic", 0.3 + at)))
    return {"a candidate of tune": found}


def _median(options: argparse.Namespace, run: Callable[[float], Any]) -> float:
    """The median time of a run, whose results are numbers; the first run is not counted."""
    seconds = []
    for place in range(options.rounds + 1):
        start = time.perf_counter()
        run(0.01 * place)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "calibration": calibration,
    "learning": learning,
    "candidate": candidate,
}


def describe(options: argparse.Namespace, found: dict[str, dict[str, dict[str, float]]]) -> str:
    """The table, with the machine beside it."""
    import torch

    shape = checkpoints.SHAPES[options.size]
    cards = [torch.cuda.get_device_name(device) for device in found if device.startswith("cuda")]
    lines = [
        f"# Devices: {shape.bytes() / 2e9:.1f} B parameters, bfloat16, base and {FEW} experts",
        "",
        f"{', '.join([measure.machine(), *cards])}, torch {torch.__version__}; sensmerge "
        f"{sensmerge.__version__} at {measure.commit()}, {time.strftime('%Y-%m-%d')}; "
        f"{options.samples} samples in all, {options.max_length} tokens each.",
        "",
        f"| seconds | {' | '.join(found)} |",
        "|---|" + "---:|" * len(found),
    ]
    for part in PARTS:
        for what in next(iter(found.values()))[part]:
            numbers = [f"{device[part][what]:.2f}" for device in found.values()]
            lines.append(f"| {what} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
