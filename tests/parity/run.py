"""Parity with mergekit 0.1.5, run by hand: ``python tests/parity/run.py [WORK_FOLDER]``.

mergekit is installed into an environment of its own (it and the package never meet), a sharded
bfloat16 Llama family is made, and both merge it with the same recipes
(``dtype: float32, out_dtype: bfloat16``). Compared entry by entry:

- linear, task_arithmetic and ties, and the dare methods at density 1: within one unit in the last
  place of bfloat16, but for ties between equal magnitudes at the trim's threshold, whose order in
  mergekit is undefined;
- the dare methods at density 0.5: share of entries kept, mean and spread of what is kept, by
  tensor, since no two generators draw alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))

import sensmerge
from families import llama_family
from sensmerge import Recipe
from sensmerge.workflow import as_mergekit

MERGEKIT = "mergekit==0.1.5"
WEIGHTS = [0.6, 0.9, 1.3]


def main() -> None:
    """Compare every method; exit 1 where one is not at parity."""
    work = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="parity-"))
    work.mkdir(parents=True, exist_ok=True)
    program = install(work / "environment")
    family = work / "family"
    if not family.exists():
        llama_family(family, dtype="bfloat16", max_shard_size="20KB", layers=4)
    failed = 0
    for name, recipe, compare in cases():
        theirs, ours = merge_twice(program, work, name, recipe)
        density = recipe["models"][0]["parameters"].get("density", 1.0)
        said, good = compare(family, density, theirs, ours)
        print(f"{'ok  ' if good else 'FAIL'} {name:<40} {said}")
        failed += not good
    said, good = by_exported_recipe(program, work)
    print(f"{'ok  ' if good else 'FAIL'} {'Sens-Merging as a mergekit recipe':<40} {said}")
    sys.exit(failed > 0 or not good)


def install(folder: Path) -> Path:
    """mergekit's command, in an environment of its own."""
    program = folder / "bin" / "mergekit-yaml"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, MERGEKIT], check=True)
    return program


def cases() -> Any:
    """Name, recipe and comparison of every case."""
    for method in ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"):
        for normalize in (None, True, False):
            for density in (1.0, 0.5) if method.startswith(("ties", "dare")) else (1.0,):
                options = {} if normalize is None else {"normalize": normalize}
                random = method.startswith("dare") and density < 1
                if random and normalize is not None:
                    continue
                name = f"{method} normalize={normalize} density={density}"
                yield (
                    name,
                    recipe(method, density, options),
                    in_distribution if random else by_entry,
                )
    gradient = recipe("task_arithmetic", 1.0, {})
    gradient["models"][1]["parameters"]["weight"] = [
        {"filter": "mlp", "value": [0.0, 1.0, 0.5]},
        {"value": 0.25},
    ]
    yield "task_arithmetic gradient and filter", gradient, by_entry
    yield "ties rescale", recipe("ties", 0.5, {"rescale": True, "lambda": 0.7}), by_entry


def recipe(method: str, density: float, options: dict[str, Any]) -> dict[str, Any]:
    models: list[dict[str, Any]] = [
        {"model": f"e{place}", "parameters": {"weight": weight, "density": density}}
        for place, weight in enumerate(WEIGHTS)
    ]
    if method == "linear":
        for model in models:
            del model["parameters"]["density"]
    data: dict[str, Any] = {"merge_method": method, "models": models}
    if method != "linear":
        data["base_model"] = "base"
    return data | {"parameters": options, "dtype": "float32", "out_dtype": "bfloat16"}


def merge_twice(
    program: Path, work: Path, name: str, data: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    folder = work / name.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    family = work / "family"
    absolute = json.loads(json.dumps(data))
    for model in absolute["models"]:
        model["model"] = str(family / model["model"])
    if "base_model" in absolute:
        absolute["base_model"] = str(family / absolute["base_model"])
    (folder / "recipe.yaml").write_text(json.dumps(absolute))
    if not (folder / "theirs").exists():
        command = [program, folder / "recipe.yaml", folder / "theirs", "--no-cuda", "--quiet"]
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
    ours = folder / "ours"
    sensmerge.merge(Recipe.load(folder / "recipe.yaml"), ours, progress=False, overwrite=True)
    return tensors(folder / "theirs"), tensors(ours)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def by_exported_recipe(program: Path, work: Path) -> tuple[str, bool]:
    """What `coefficients --format mergekit` writes, run by mergekit, against our own merge."""
    family, folder = work / "family", work / "exported"
    folder.mkdir(exist_ok=True)
    data = recipe("ties", 0.5, {"lambda": 0.8}) | {"sensitivity": {"temperature": 0.02}}
    data["base_model"] = str(family / data["base_model"])
    for place, model in enumerate(data["models"]):
        model["model"] = str(family / model["model"])
        model["calibration"] = str(family / f"t{place}.jsonl")
    ours = Recipe.from_dict(data, folder=folder)
    merged = sensmerge.merge(ours, folder / "ours", progress=False, overwrite=True)
    assert merged.coefficients is not None
    (folder / "recipe.yaml").write_text(as_mergekit(ours, merged.coefficients))
    command = [program, folder / "recipe.yaml", folder / "theirs", "--no-cuda", "--quiet"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return by_entry(family, 0.5, tensors(folder / "theirs"), tensors(folder / "ours"))


def at_threshold(delta: torch.Tensor, density: float) -> torch.Tensor:
    """Entries whose magnitude is the trim's threshold: which of them stay is undefined there."""
    kept = max(1, int(density * delta.numel()))
    magnitude = delta.abs()
    return magnitude == magnitude.flatten().sort(descending=True).values[kept - 1]


def by_entry(
    family: Path, density: float, theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]
) -> tuple[str, bool]:
    apart = different = total = 0
    missing = theirs.keys() ^ ours.keys()
    base = tensors(family / "base")
    experts = [tensors(family / f"e{place}") for place in range(len(WEIGHTS))]
    for name, their in theirs.items():
        our, their_values = ours[name].double(), their.double()
        unit = 2.0 ** (torch.floor(torch.log2(their_values.abs().clamp(min=2.0**-126))) - 7)
        decided = torch.ones_like(their, dtype=torch.bool)
        for expert in experts if density < 1 else []:
            decided &= ~at_threshold(expert[name].float() - base[name].float(), density)
        apart += int(((our - their_values).abs() > unit)[decided].sum())
        different += int((our != their_values)[decided].sum())
        total += int(decided.sum())
    said = f"{total} entries, {different} differ, {apart} by more than one unit"
    return said, not missing and apart <= total / 2000


def in_distribution(
    family: Path, density: float, theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]
) -> tuple[str, bool]:
    base = tensors(family / "base")
    worst = 0.0
    for name, their in theirs.items():
        if their.numel() < 1000:
            continue
        scores = []
        one, other = (values[name].double() - base[name].double() for values in (theirs, ours))
        size = their.numel()
        for first, second in (((one != 0).double(), (other != 0).double()), (one, other)):
            spread = np.sqrt(float(first.var() + second.var()) / size) + 1e-30
            scores.append(abs(float(first.mean() - second.mean())) / spread)
        # The spread of an estimated spread, for tails as heavy as a product of drops makes them.
        ratio = float(one.std() / other.std())
        scores.append(abs(ratio - 1) / (3 / np.sqrt(size)))
        worst = max(worst, *scores)
    return f"largest deviation {worst:.2f} standard errors", worst < 5


if __name__ == "__main__":
    main()
