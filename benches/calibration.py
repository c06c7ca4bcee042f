"""Calibrating two experts of a chosen size: peak memory, time, and what the reduction costs.

``python benches/calibration.py [--size 1b] [--samples 10] [--max-length 256] [--record]``

The experts are random Llamas in bfloat16, in the shape of TinyLlama or of LLaMA-2-7B, written
shard by shard; the second differs from the first in its last block and has the other shards in
common. Every calibration is a process of its own. Its memory is the anonymous memory of that
process, sampled: mapped files, the weights among them, are the system's to drop.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORK = Path(__file__).parent / "experts"
RECORDS = Path(__file__).parent / "records"

VOCABULARY = 32_000

# Left free on the disk.
SPARE = 20 * 10**9

# What a process may hold beside activations and one gradient: the interpreter, torch, the rest.
ALLOWANCE = 300 * 10**6


@dataclass(frozen=True)
class Size:
    """The shape of a Llama."""

    name: str
    blocks: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int

    def block(self) -> dict[str, tuple[int, ...]]:
        """Tensors of one block."""
        narrow = self.hidden * self.key_heads // self.heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (narrow, self.hidden),
            "self_attn.v_proj": (narrow, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
            "input_layernorm": (self.hidden,),
            "post_attention_layernorm": (self.hidden,),
        }

    def bytes(self) -> int:
        """Bytes of one model's weights in bfloat16."""
        entries = sum(rows * (rest[0] if rest else 1) for rows, *rest in self.block().values())
        return 2 * (self.blocks * entries + 2 * VOCABULARY * self.hidden + self.hidden)

    def largest_gradient(self) -> int:
        """Bytes of the largest parameter's gradient in bfloat16."""
        return 2 * self.hidden * max(VOCABULARY, self.intermediate)


SIZES = {
    "1b": Size("1.1 B parameters (TinyLlama's shape)", 22, 2048, 5632, 32, 4),
    "7b": Size("6.7 B parameters (LLaMA-2-7B's shape)", 32, 4096, 11008, 32, 32),
}


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

    size = SIZES[options.size]
    needed = size.bytes() + size.bytes() // size.blocks + SPARE
    if shutil.disk_usage(WORK.parent).free < needed:
        sys.exit(f"error: {needed / 1e9:.0f} GB of free disk are needed")
    shutil.rmtree(WORK, ignore_errors=True)
    try:
        make_experts(size, options)
        found = {part: run_part(part, options) for part in PARTS}
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    table = describe(options, found)
    print(table)
    if options.record:
        RECORDS.mkdir(exist_ok=True)
        name = f"calibration-{options.size}-{time.strftime('%Y-%m-%d')}.md"
        (RECORDS / name).write_text(table)


def run_part(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one thing in a process of its own."""
    command = [sys.executable, __file__, "--part", part]
    for name in ("size", "samples", "max_length", "rounds"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def make_experts(size: Size, options: argparse.Namespace) -> None:
    """Two experts, their samples and a recipe."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    shards: dict[str, dict[str, tuple[int, ...]]] = {
        "input": {"model.embed_tokens.weight": (VOCABULARY, size.hidden)},
        "output": {
            "model.norm.weight": (size.hidden,),
            "lm_head.weight": (VOCABULARY, size.hidden),
        },
    }
    for place in range(size.blocks):
        prefix = f"model.layers.{place}"
        shards[f"block-{place:02}"] = {
            f"{prefix}.{name}.weight": shape for name, shape in size.block().items()
        }
    names = [f"w{place}" for place in range(VOCABULARY)]
    for expert in ("e0", "e1"):
        folder = WORK / expert
        folder.mkdir(parents=True)
        LlamaConfig(
            architectures=["LlamaForCausalLM"],
            dtype="bfloat16",
            vocab_size=VOCABULARY,
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.blocks,
            num_attention_heads=size.heads,
            num_key_value_heads=size.key_heads,
        ).save_pretrained(folder)
        write_tokenizer(folder, names)
        where: dict[str, str] = {}
        for shard, shapes in shards.items():
            file = f"model-{shard}.safetensors"
            where |= dict.fromkeys(shapes, file)
            if expert == "e1" and shard != f"block-{size.blocks - 1:02}":
                os.link(WORK / "e0" / file, folder / file)
                continue
            tensors = {
                # Draws around zero; norms around one.
                name: torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.03, 0.03)
                + (1 if len(shape) == 1 else 0)
                for name, shape in shapes.items()
            }
            save_file(tensors, folder / file, metadata={"format": "pt"})
        index = {"metadata": {"total_size": size.bytes()}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        write_samples(WORK / f"{expert}.jsonl", names, options)
    recipe = {
        "merge_method": "linear",
        "models": [{"model": name, "calibration": f"{name}.jsonl"} for name in ("e0", "e1")],
        "sensitivity": {"samples": options.samples, "max_length": options.max_length},
    }
    (WORK / "recipe.yaml").write_text(json.dumps(recipe))


def write_tokenizer(folder: Path, names: list[str]) -> None:
    """A tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = {name: place for place, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token=names[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def write_samples(path: Path, names: list[str], options: argparse.Namespace) -> None:
    """Texts of as many tokens as are taken, of which every one but the first is scored."""
    draw = random.Random(path.name)
    with path.open("w") as file:
        for _ in range(options.samples):
            text = " ".join(draw.choices(names, k=options.max_length))
            file.write(json.dumps({"text": text}) + "\n")


def calibration(memory: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """The whole job, as the command does it."""

    def measured(_: argparse.Namespace) -> dict[str, Any]:
        import sensmerge
        import sensmerge.calibration.run  # so that torch counts as there before

        with watched() as memory_held:
            found = sensmerge.calibrate(WORK / "recipe.yaml", progress=False, memory=memory)
        return {"seconds": found.seconds, "notes": found.notes} | memory_held

    return measured


def passes(options: argparse.Namespace) -> dict[str, Any]:
    """Activations of one sample, and a sample's backward pass with and without the reduction."""
    import torch

    from sensmerge.calibration import models, samples, sensitivity

    source = models.open_source("e0", WORK / "e0", None)
    task = samples.load(
        WORK / "e0.jsonl", "e0.jsonl", source.tokenizer,
        count=1, seed=0, max_length=options.max_length, positions="completion",
    )  # fmt: skip
    sample = task.samples[0]
    model = models.load(source, "stored")
    layers = models.parameter_layers(model, source.path).of

    def empty() -> None:
        handles = [
            parameter.register_post_accumulate_grad_hook(
                lambda parameter: setattr(parameter, "grad", None)
            )
            for parameter in model.parameters()
        ]
        sensitivity.loss(model, sample).backward()
        for handle in handles:
            handle.remove()

    def reduced() -> None:
        sensitivity.measure(
            model, layers, [sample], expert="e0", threads=None, advance=lambda _: None
        )

    def naive() -> None:
        sensitivity.loss(model, sample).backward()
        sums = dict.fromkeys(layers.values(), 0.0)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            product = parameter.detach().float() * parameter.grad.float()
            sums[layers[name]] += product.abs().sum().item()
        model.zero_grad(set_to_none=True)

    # Reads the weights from the disk, which is nobody's work here.
    with torch.no_grad():
        sensitivity.loss(model, sample)
    with watched() as held:
        value = sensitivity.loss(model, sample)
    del value
    ways: dict[str, Callable[[], None]] = {"empty": empty, "reduced": reduced}
    if options.size == "1b":
        ways["naive"] = naive
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        # In turns, so that a machine whose speed drifts drifts for all.
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {"seconds": seconds, "activations": held["peak"] - held["before"]}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "passes": passes,
    "whole": calibration("whole"),
    "stream": calibration("stream"),
}


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """Anonymous memory of this process in bytes: before, and its peak."""
    held = {"before": anonymous(), "peak": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            held["peak"] = max(held["peak"], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield held
    finally:
        done.set()
        watcher.join()
        held["peak"] = max(held["peak"], anonymous())


def anonymous() -> int:
    """Bytes of anonymous memory, where the system tells them."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def describe(options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> str:
    """The table, with the machine beside it."""
    import torch

    size = SIZES[options.size]
    passes = found["passes"]
    gradient = size.largest_gradient()
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
        f"# Calibration of two experts: {size.name}, bfloat16",
        "",
        f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch "
        f"{torch.__version__}; weights of a model {size.bytes() / 1e9:.1f} GB; {options.samples} "
        f"samples an expert, {options.max_length} tokens each.",
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
        f"{found['whole']['before'] / 1e6:.0f} MB are held by Python and torch before anything is "
        "loaded.",
        "",
        f"| one sample, forward and backward, median of {options.rounds} | seconds |",
        "|---|---:|",
        f"| torch alone, gradients freed by an empty hook | {medians['empty']:.2f} |",
        f"| with the sums of abs(θ · g) | {medians['reduced']:.2f} |",
    ]
    if "naive" in medians:
        lines.append(f"| naively: all gradients held, products in torch | {medians['naive']:.2f} |")
    lines += ["", f"The reduction adds {100 * overhead:.1f} % (median of neighbouring runs)."]
    return "\n".join(lines) + "\n"


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{seconds // 60:.0f}:{seconds % 60:04.1f}"


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
