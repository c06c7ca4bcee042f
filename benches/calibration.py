"""Calibration of two experts of a chosen size: peak memory, time, and the cost of the reduction.

``python benches/calibration.py [--size 1b] [--samples 10] [--max-length 256] [--record]``

The experts are random Llamas in bfloat16, in the shape of TinyLlama or of LLaMA-2-7B, written
shard by shard; the second differs from the first in its last block and shares the other shards.
Every calibration is a process of its own. Its memory is the anonymous memory of that process,
sampled: mapped files, such as the weights, do not count, since the system can drop their pages.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import measure
import sensmerge
from checkpoints import Shape
from sensmerge.models.layers import block_of
from words import write_samples, write_tokenizer

WORK = Path(__file__).parent / "experts"

# Left free on the disk.
SPARE = 15 * 10**9

# Memory that a process may hold beside activations and one gradient: interpreter, torch and so on.
ALLOWANCE = 300 * 10**6

# Of one call: what a call does once, an expert's samples share.
PASSES = 2

SIZES = ("1b", "7b")


def main() -> None:
    """Make two experts, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--samples", type=int, default=10, help="samples of an expert")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--rounds", type=int, default=5, help="of the backward passes compared")
    parser.add_argument("--record", action="store_true", help="keep the table in benches/records")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        print(json.dumps(PARTS[options.part](options)))
        return

    shape = checkpoints.SHAPES[options.size]
    needed = shape.bytes() + shape.bytes() // shape.blocks + SPARE
    if shutil.disk_usage(WORK.parent).free < needed:
        sys.exit(f"error: {needed / 1e9:.0f} GB of free disk are needed")
    shutil.rmtree(WORK, ignore_errors=True)
    try:
        make_experts(shape, options)
        found = {part: run_part(part, options) for part in PARTS}
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    table = describe(options, found)
    print(table)
    if options.record:
        measure.record(f"calibration-{options.size}", table)


def run_part(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one thing in a process of its own."""
    passed = ("size", "samples", "max_length", "rounds")
    # As the command sets it.
    return measure.part(__file__, part, options, passed, {"OMP_WAIT_POLICY": "PASSIVE"})


def make_experts(shape: Shape, options: argparse.Namespace) -> None:
    """Two experts, their samples and a recipe."""
    import torch
    from safetensors.torch import save_file

    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, lengths in shape.tensors().items():
        shards.setdefault(block_of(name) or "rest", {})[name] = lengths
    last = list(shards)[-1]
    for expert in ("e0", "e1"):
        folder = WORK / expert
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(shape.config()))
        write_tokenizer(folder, shape.vocabulary)
        where: dict[str, str] = {}
        for shard, shapes in shards.items():
            file = f"model-{shard}.safetensors"
            where |= dict.fromkeys(shapes, file)
            if expert == "e1" and shard != last:
                os.link(WORK / "e0" / file, folder / file)
                continue
            tensors = {
                # Draws around zero; norms around one.
                name: torch.empty(lengths, dtype=torch.bfloat16).uniform_(-0.03, 0.03)
                + (1 if len(lengths) == 1 else 0)
                for name, lengths in shapes.items()
            }
            save_file(tensors, folder / file, metadata={"format": "pt"})
        index = {"metadata": {"total_size": shape.bytes()}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        path = WORK / f"{expert}.jsonl"
        write_samples(path, shape.vocabulary, options.samples, options.max_length)
    recipe = {
        "merge_method": "linear",
        "models": [{"model": name, "calibration": f"{name}.jsonl"} for name in ("e0", "e1")],
        "sensitivity": {"samples": options.samples, "max_length": options.max_length},
    }
    (WORK / "recipe.yaml").write_text(json.dumps(recipe))


def calibration(memory: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """The whole job, as the command does it."""

    def measured(_: argparse.Namespace) -> dict[str, Any]:
        # So that torch and transformers count as there before.
        from transformers import LlamaForCausalLM  # noqa: F401

        import sensmerge.calibration.run

        with measure.watched() as memory_held:
            found = sensmerge.calibrate(WORK / "recipe.yaml", progress=False, memory=memory)
        return {"seconds": found.seconds, "notes": found.notes} | memory_held

    return measured


def passes(options: argparse.Namespace) -> dict[str, Any]:
    """Activations of one sample, and a sample's backward pass with and without the reduction."""
    import torch

    from sensmerge.calibration import loading, samples, sensitivity

    source = loading.open_source("e0", WORK / "e0", None)
    task = samples.load(
        WORK / "e0.jsonl", "e0.jsonl", source.tokenizer,
        count=1, seed=0, max_length=options.max_length, positions="completion",
    )  # fmt: skip
    sample = task.samples[0]
    model = loading.load(source, "stored")
    layers = loading.parameter_layers(model, source.path).of

    def empty() -> None:
        handles = [
            parameter.register_post_accumulate_grad_hook(
                lambda parameter: setattr(parameter, "grad", None)
            )
            for parameter in model.parameters()
        ]
        for _ in range(PASSES):
            sensitivity.loss(model, sample).backward()
        for handle in handles:
            handle.remove()

    def reduced() -> None:
        sensitivity.measure(
            model, layers, [sample] * PASSES, expert="e0", threads=None, advance=lambda _: None
        )

    def naive() -> None:
        sensitivity.loss(model, sample).backward()
        sums = dict.fromkeys(layers.values(), 0.0)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            product = parameter.detach().float() * parameter.grad.float()
            sums[layers[name]] += product.abs().sum().item()
        model.zero_grad(set_to_none=True)

    def read() -> None:
        # As many bytes as weights and gradients have.
        for _ in range(2):
            for parameter in model.parameters():
                parameter.detach().reshape(-1).view(torch.float32).sum()

    # Reads the weights from the disk, which is nobody's work here.
    with torch.no_grad():
        sensitivity.loss(model, sample)
    with measure.watched() as held:
        value = sensitivity.loss(model, sample)
    del value
    ways: dict[str, tuple[Callable[[], None], int]] = {
        "empty": (empty, PASSES), "reduced": (reduced, PASSES), "read": (read, 1),
    }  # fmt: skip
    if options.size == "1b":
        ways["naive"] = naive, 1
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        # In turns, so that a machine whose speed drifts drifts for all.
        for name, (way, times) in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append((time.perf_counter() - start) / times)
    return {"seconds": seconds, "activations": held["peak"] - held["before"]}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "passes": passes,
    "whole": calibration("whole"),
    "stream": calibration("stream"),
}


def describe(options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> str:
    """The table, with the machine beside it."""
    import torch

    shape = checkpoints.SHAPES[options.size]
    passes = found["passes"]
    gradient = shape.largest_gradient()
    bound = passes["activations"] + gradient + ALLOWANCE
    medians = {name: statistics.median(took) for name, took in passes["seconds"].items()}
    # Of neighbouring runs, so that a machine whose speed drifts says little.
    overhead = statistics.median(
        ours / plain - 1
        for ours, plain in zip(
            passes["seconds"]["reduced"], passes["seconds"]["empty"], strict=True
        )
    )
    lines = [
        f"# Calibration of two experts: {shape.bytes() / 2e9:.1f} B parameters, bfloat16",
        "",
        f"{measure.machine()}, torch {torch.__version__}; sensmerge {sensmerge.__version__} at "
        f"{measure.commit()}, {time.strftime('%Y-%m-%d')}; weights of a model "
        f"{shape.bytes() / 1e9:.1f} GB; {options.samples} samples an expert, {options.max_length} "
        "tokens each.",
        "",
        "| memory mode | sensitivity | alignment | peak anonymous memory | of the bound |",
        "|---|---:|---:|---:|---:|",
    ]
    for memory in ("whole", "stream"):
        one = found[memory]
        lines.append(
            f"| {memory} | {clock(one['seconds']['sensitivity'])} "
            f"| {clock(one['seconds']['alignment'])} | {one['peak'] / 1e6:.0f} MB "
            f"| {100 * one['peak'] / bound:.0f} % |"
        )
    lines += [
        "",
        f"The bound, {bound / 1e6:.0f} MB, is what one sample's forward pass with its loss holds "
        f"({passes['activations'] / 1e6:.0f} MB), the largest gradient "
        f"({gradient / 1e6:.0f} MB) and {ALLOWANCE // 10**6} MB; "
        f"{found['whole']['before'] / 1e6:.0f} MB are held by Python, torch and transformers "
        "before anything is loaded.",
        "",
        f"| one sample, forward and backward, median of {options.rounds} | seconds |",
        "|---|---:|",
        f"| torch alone, gradients freed by an empty hook | {medians['empty']:.2f} |",
        f"| with the sums of abs(θ · g) | {medians['reduced']:.2f} |",
    ]
    if "naive" in medians:
        lines.append(f"| naively: all gradients held, products in torch | {medians['naive']:.2f} |")
    lines += [
        "",
        f"The reduction adds {100 * overhead:.1f} % (median of neighbouring runs). Only reading as "
        f"many bytes as weights and gradients have takes {medians['read']:.2f} s, "
        f"{100 * medians['read'] / medians['empty']:.1f} % of the pass.",
    ]
    return "\n".join(lines) + "\n"


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{seconds // 60:.0f}:{seconds % 60:04.1f}"


if __name__ == "__main__":
    main()
