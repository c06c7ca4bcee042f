"""Learning and tuning of coefficients: peak memory, and the cost beyond the model's passes.

``python benches/search.py [--size 1b] [--samples 12] [--max-length 256] [--record]``

A base and six experts of random weights in bfloat16. Every measurement is a process of its own; its
memory is its anonymous memory, sampled: mapped files, such as the experts' weights, do not count,
since the system can drop their pages.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import checkpoints
import measure
import sensmerge
from checkpoints import FILE, names
from merge import build_floor
from words import write_samples, write_tokenizer

WORK = Path(__file__).resolve().parent / "family"

EXPERTS = 6
FEW = 2

# Memory that learning may hold beside the model, its activations and one gradient.
ALLOWANCE = 300 * 10**6

STEPS = 2
DOTS_TARGET = 0.1
CANDIDATE_TARGET = 1.3


def main() -> None:
    """Make a family, measure, print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(checkpoints.SHAPES), default="1b")
    parser.add_argument("--samples", type=int, default=12, help="samples in all, a multiple of 6")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--rounds", type=int, default=3, help="of what is compared")
    parser.add_argument("--record", action="store_true", help="keep the tables in benches/records")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--floor", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        print(json.dumps(PARTS[options.part](options)))
        return

    options.floor = str(build_floor())
    try:
        make_family(options, EXPERTS)
        found = {part: run_part(part, options) for part in PARTS}
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    table = describe(options, found)
    print(table)
    if options.record:
        measure.record(f"search-{options.size}", table)


def make_family(options: argparse.Namespace, experts: int) -> None:
    """The models, and as many samples of every expert's task as a few experts need."""
    shape = checkpoints.llama(WORK, options.size, experts)
    for name in names(experts):
        write_tokenizer(WORK / name, shape.vocabulary)
    for name in names(experts)[1:]:
        path = WORK / f"{name}.jsonl"
        write_samples(path, shape.vocabulary, options.samples // FEW, options.max_length)


def run_part(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one thing in a process of its own."""
    passed = ("size", "samples", "max_length", "rounds", "floor")
    return measure.part(__file__, part, options, passed)


def recipe(experts: int, options: argparse.Namespace, method: str = "task_arithmetic") -> Any:
    """So many experts with, together, as many samples as were asked for."""
    data: dict[str, Any] = {
        "merge_method": method,
        "base_model": "base",
        "models": [
            {"model": name, "calibration": f"{name}.jsonl"} for name in names(experts)[1:]
        ],
        "parameters": {"weight": 1.0},
        "sensitivity": {
            "mode": "off",
            "samples": options.samples // experts,
            "max_length": options.max_length,
        },
    }  # fmt: skip
    return sensmerge.Recipe.from_dict(data, folder=WORK)


def activations(options: argparse.Namespace) -> dict[str, Any]:
    """Anonymous memory that one sample's forward pass with its loss holds."""
    import torch

    from sensmerge.calibration import loading, samples, sensitivity

    source = loading.open_source("expert0", WORK / "expert0", None)
    task = samples.load(
        WORK / "expert0.jsonl", "expert0.jsonl", source.tokenizer,
        count=1, seed=0, max_length=options.max_length, positions="completion",
    )  # fmt: skip
    model = loading.load(source, "stored")
    with torch.no_grad():
        sensitivity.loss(model, task.samples[0])
    with measure.watched() as held:
        sensitivity.loss(model, task.samples[0])
    return {"bytes": held["peak"] - held["before"]}


def learning(experts: int) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """The whole verb for a few steps."""

    def measured(options: argparse.Namespace) -> dict[str, Any]:
        from sensmerge.search import descent

        wanted = descent.Options(steps=STEPS, validation=0)
        with measure.watched() as held:
            start = time.perf_counter()
            # The check for memorised samples runs the experts one after the other.
            descent.learn(recipe(experts, options), wanted, progress=False)
            seconds = time.perf_counter() - start
        return {"seconds": seconds} | held

    return measured


def dots(experts: int) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """A step's forward and backward passes with the derivatives by the weights, and without."""

    def measured(options: argparse.Namespace) -> dict[str, Any]:
        import numpy as np

        from sensmerge.merging.manifest import Request
        from sensmerge.search import descent
        from sensmerge.search.candidates import Candidate

        problem = descent.Problem(recipe(experts, options), descent.Options(validation=0))
        offsets = np.zeros_like(problem.weights.start)
        # Merging is timed separately: it is not part of the passes.
        merging: list[float] = []
        merge = Candidate.merge

        def timed(candidate: Candidate, asked: Request) -> None:
            start = time.perf_counter()
            merge(candidate, asked)
            merging.append(time.perf_counter() - start)

        def passes() -> float:
            start = time.perf_counter()
            problem.differentiate(offsets)
            return time.perf_counter() - start - merging[-1]

        seconds: dict[str, list[float]] = {"with": [], "without": []}
        with mock.patch.object(Candidate, "merge", timed):
            for _ in range(options.rounds):
                seconds["with"].append(passes())
                with mock.patch.object(Candidate, "derivatives", return_value={}):
                    seconds["without"].append(passes())
        return seconds | {"merge": merging}

    return measured


@contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - start)


def candidates(options: argparse.Namespace) -> dict[str, Any]:
    """The cost of a candidate of ``tune``, of its passes alone, and of the floor in memory."""
    from sensmerge.search import tasks
    from sensmerge.search.judge import Judge
    from sensmerge.search.settings import Settings

    count = 3
    inputs = [str(WORK / name / FILE) for name in names(count)]
    found: dict[str, Any] = {"samples": options.samples // count * count}
    for method, density in (("task_arithmetic", None), ("dare_linear", 0.5), ("ties", 0.3)):
        judge = Judge(
            recipe(count, options, method), calibration=None, validation=0, threads=None
        )  # fmt: skip
        whole: list[float] = []
        passes: list[float] = []
        floor: list[float] = []
        run = tasks.sample_losses

        def only(*given: Any, run: Any = run, passes: list[float] = passes) -> Any:
            with _timed(passes):
                return run(*given)

        with mock.patch.object(tasks, "sample_losses", only):
            for place in range(options.rounds + 1):
                command = [options.floor, "--memory", *inputs]
                told = subprocess.run(command, check=True, capture_output=True, text=True)
                floor.append(float(told.stdout))
                # With another density thresholds are computed again, as in a search that tries it.
                other = None if density is None else density + 0.01 * place
                with _timed(whole):
                    judge.losses(Settings(method, 0.3 + 0.01 * place, other))
        # The first one loads the model.
        found[method] = {"whole": whole[1:], "passes": passes[1:], "floor": floor[1:]}
    return found


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "activations": activations,
    "learn-few": learning(FEW),
    "learn-all": learning(EXPERTS),
    "dots-few": dots(FEW),
    "dots-all": dots(EXPERTS),
    "candidates": candidates,
}


def describe(options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> str:
    """The tables, with the machine beside them."""
    import torch

    shape = checkpoints.SHAPES[options.size]
    held = found["activations"]["bytes"]
    kept = options.samples * shape.blocks * options.max_length * shape.hidden * 2
    gradient = shape.largest_gradient()
    bound = shape.bytes() + held + kept + gradient + ALLOWANCE
    lines = [
        f"# Learning and tuning: {shape.bytes() / 2e9:.1f} B parameters, bfloat16",
        "",
        f"{measure.machine()}, torch {torch.__version__}; sensmerge {sensmerge.__version__} at "
        f"{measure.commit()}, {time.strftime('%Y-%m-%d')}; {options.samples} samples in all, "
        f"{options.max_length} tokens each; task arithmetic, weights by block.",
        "",
        "| learn, experts | peak anonymous memory | of the bound | passes of a step "
        "| with derivatives | they add | target | merge of a step |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for count, part in ((FEW, "few"), (EXPERTS, "all")):
        peak = found[f"learn-{part}"]["peak"]
        step = found[f"dots-{part}"]
        # Of neighbouring runs, so that a machine whose speed drifts says little.
        added = statistics.median(
            ours / plain - 1 for ours, plain in zip(step["with"], step["without"], strict=True)
        )
        lines.append(
            f"| {count} | {peak / 1e6:.0f} MB | {100 * peak / bound:.0f} % "
            f"| {statistics.median(step['without']):.1f} s "
            f"| {statistics.median(step['with']):.1f} s | {100 * added:.1f} % "
            f"| {100 * DOTS_TARGET:.0f} % | {statistics.median(step['merge']):.2f} s |"
        )
    lines += [
        "",
        f"The bound, {bound / 1e6:.0f} MB, is the model ({shape.bytes() / 1e6:.0f} MB), what one "
        f"sample's forward pass with its loss holds ({held / 1e6:.0f} MB), the inputs of the "
        f"blocks for all samples ({kept / 1e6:.0f} MB), the largest gradient "
        f"({gradient / 1e6:.0f} MB) and {ALLOWANCE // 10**6} MB; "
        f"{found['learn-few']['before'] / 1e6:.0f} MB are held by Python and torch before.",
        "",
        f"A candidate of `tune`, three experts, {found['candidates']['samples']} samples; every "
        "candidate has a λ and a density of its own:",
        "",
        "| method | candidate | its passes | floor's merge in memory | ratio | target |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for method, seconds in found["candidates"].items():
        if method == "samples":
            continue
        rows = zip(seconds["whole"], seconds["passes"], seconds["floor"], strict=True)
        ratio = statistics.median(whole / (passes + floor) for whole, passes, floor in rows)
        lines.append(
            f"| {method} | {statistics.median(seconds['whole']):.2f} s "
            f"| {statistics.median(seconds['passes']):.2f} s "
            f"| {statistics.median(seconds['floor']):.2f} s | {ratio:.2f} | {CANDIDATE_TARGET} |"
        )
    lines += [
        "",
        "The ratio is a candidate over its passes and the floor's merge, which is a sum of task "
        "vectors for every method.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
