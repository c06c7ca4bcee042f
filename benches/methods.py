"""Every method on checkpoints of a chosen size: seconds, ratio to moving the bytes, memory.

``python benches/methods.py [--millions 200] [--experts 3] [--threads N] [--record]``

A merge must read every input byte and write every output byte once. The ratio is to a plain
program that does just that with the same files in the same run: it reads the inputs in turn and
writes as many bytes as the output has. Every merge is a process of its own, interpreter start
included; the figures are medians, and peak memory is what the process alone holds (anonymous
memory; mapped files are the system's to drop).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

WORK = Path(__file__).parent / "checkpoints"
RECORDS = Path(__file__).parent / "records"

METHODS = [
    ("linear", "mergekit", 1.0),
    ("task_arithmetic", "mergekit", 1.0),
    ("dare_linear", "original", 0.5),
    ("dare_linear", "mergekit", 0.5),
    ("dare_ties", "original", 0.5),
    ("dare_ties", "mergekit", 0.5),
    ("ties", "mergekit", 0.2),
    ("ties", "original", 0.3),
]

CHUNK = 1 << 24

MERGE = """
import sys, threading
import sensmerge

def anonymous():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Anonymous"))

peak, done = 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.02):
        peak = max(peak, anonymous())

watcher = threading.Thread(target=watch)
if sys.platform == "linux":
    watcher.start()
threads = int(sys.argv[3]) or None
sensmerge.merge(sys.argv[1], sys.argv[2], progress=False, sync=False, threads=threads)
done.set()
print(peak)
"""


def main() -> None:
    """Make checkpoints, time every method, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=int, default=200, help="parameters of a model")
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="keep the table in benches/records")
    options = parser.parse_args()

    shutil.rmtree(WORK, ignore_errors=True)
    try:
        make_checkpoints(options.millions, options.experts)
        seconds: dict[str, list[float]] = {}
        memory: dict[str, int] = {}
        for _ in range(options.runs):
            # In turns, so that a machine whose speed drifts drifts for all.
            seconds.setdefault("floor", []).append(move_bytes(options.experts))
            for method, semantics, density in METHODS:
                name = f"{method}, {semantics}, density {density:g}"
                took, peak = merge(method, semantics, density, options.experts, options.threads)
                seconds.setdefault(name, []).append(took)
                memory[name] = max(memory.get(name, 0), peak)
        table = describe(options, seconds, memory)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    print(table)
    if options.record:
        RECORDS.mkdir(exist_ok=True)
        (RECORDS / f"methods-{options.millions}m-{time.strftime('%Y-%m-%d')}.md").write_text(table)


def make_checkpoints(millions: int, experts: int) -> None:
    """A base and experts in bfloat16: an embedding, and blocks of large and small tensors.

    Task vectors are small, dense and heavy-tailed, as fine-tuning leaves them.
    """
    import torch
    from safetensors.torch import save_file

    hidden = 2048
    rows_embedded = 32_000 * millions // 1100
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows_embedded, hidden)}
    block = {"q": (hidden, hidden), "k": (256, hidden), "up": (5632, hidden), "norm": (hidden,)}
    per_block = sum(rows * columns for rows, columns in [(hidden + 256 + 5632, hidden)])
    blocks = max(1, (millions * 10**6 - rows_embedded * hidden) // per_block)
    for place in range(blocks):
        shapes |= {f"model.layers.{place}.{name}.weight": size for name, size in block.items()}
    torch.manual_seed(0)
    for name in ["base", *(f"e{place}" for place in range(experts))]:
        draw = torch.Generator().manual_seed(0)
        tensors = {}
        for key, size in shapes.items():
            value = 0.02 * torch.randn(size, generator=draw)
            if name != "base":
                value += (
                    3e-4 * torch.randn(size) * torch.rand(size).reciprocal().clamp(max=8).sqrt()
                )
            tensors[key] = value.bfloat16()
        (WORK / name).mkdir(parents=True)
        save_file(tensors, WORK / name / "model.safetensors", metadata={"format": "pt"})


def move_bytes(experts: int) -> float:
    """Read every input and write as much as one of them holds."""
    inputs = [WORK / name / "model.safetensors" for name in model_names(experts)]
    buffer = bytearray(CHUNK)
    start = time.perf_counter()
    for path in inputs:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    left = inputs[0].stat().st_size
    with (WORK / "floor").open("wb", buffering=0) as file:
        while left > 0:
            left -= file.write(memoryview(buffer)[: min(CHUNK, left)])
    took = time.perf_counter() - start
    (WORK / "floor").unlink()
    return took


def merge(
    method: str, semantics: str, density: float, experts: int, threads: int
) -> tuple[float, int]:
    """One merge in a process of its own: seconds, and peak anonymous memory in kB."""
    recipe = WORK / "recipe.yaml"
    models = [
        {"model": name, "parameters": {"density": density}} for name in model_names(experts)[1:]
    ]
    data = {"merge_method": method, "models": models, "semantics": semantics}
    data["base_model"] = "base"
    recipe.write_text(json.dumps(data))
    out = WORK / "out"
    command = [sys.executable, "-c", MERGE, str(recipe), str(out), str(threads)]
    start = time.perf_counter()
    child = subprocess.run(command, check=True, capture_output=True, text=True)
    took = time.perf_counter() - start
    shutil.rmtree(out)
    return took, int(child.stdout)


def model_names(experts: int) -> list[str]:
    return ["base", *(f"e{place}" for place in range(experts))]


def describe(
    options: argparse.Namespace, seconds: dict[str, list[float]], memory: dict[str, int]
) -> str:
    """The table, with the machine beside it."""
    floor = statistics.median(seconds["floor"])
    threads = options.threads or os.cpu_count()
    lines = [
        f"# {options.millions} M parameters, bfloat16, base + {options.experts} experts",
        "",
        f"{processor()}, {os.cpu_count()} cores, {threads} threads, Python "
        f"{platform.python_version()}; page cache warm, no sync; medians of {options.runs}.",
        f"Reading the inputs and writing the output, plainly, on one thread: {floor:.2f} s.",
        "",
        "| method | seconds | ratio to moving the bytes | peak anonymous memory |",
        "|---|---:|---:|---:|",
    ]
    for name, took in seconds.items():
        if name != "floor":
            median = statistics.median(took)
            peak = f"{memory[name] / 1000:.0f} MB"
            lines.append(f"| {name} | {median:.2f} | {median / floor:.1f} | {peak} |")
    return "\n".join(lines) + "\n"


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
