"""Parity with mergekit 0.1.5, run by hand: ``python tests/parity/run.py [WORK_FOLDER [NAME ...]]``.

All cases are run or, with NAMEs, those whose name contains one of them. mergekit is installed into
an environment of its own, a sharded bfloat16 Llama family is made, and both programs merge it with
the same recipes (``dtype: float32, out_dtype: bfloat16``). The merges are compared entry by entry:

- linear, task_arithmetic, ties and breadcrumbs, and the dare and della methods at density 1: within
  one unit in the last place of bfloat16, but for ties between equal magnitudes at a threshold,
  whose order in mergekit is undefined;
- the dare and della methods at density 0.5: by tensor, the fraction of kept entries and their mean
  and spread, since the random generators differ;
- the others (``interpolation.py``): within one unit, and both within one unit of the float64
  reference too; where entries are selected by a threshold, but for those at it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import sensmerge
from families import llama_family
from parity import interpolation
from parity.interpolation import tensors
from sensmerge import Recipe
from sensmerge.workflow import as_mergekit

MERGEKIT = "mergekit==0.1.5"
WEIGHTS = [0.6, 0.9, 1.3]

Tensors = dict[str, torch.Tensor]
# A finding, and whether it is parity.
Verdict = tuple[str, bool]
Comparison = Callable[[Path, float, Tensors, Tensors], Verdict]


def main() -> None:
    """Compare every case; exit with 1 if one is not at parity."""
    work = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="parity-"))
    wanted = sys.argv[2:]
    work.mkdir(parents=True, exist_ok=True)
    environment = install(work / "environment")
    family, edges = work / "family", work / "edges"
    if not family.exists():
        llama_family(family, dtype="bfloat16", max_shard_size="20KB", layers=4)
    if not edges.exists():
        interpolation.with_edges(family, edges)
    chosen = [
        (folder, compared)
        for folder, compared in comparisons(environment, work)
        if not wanted or any(part in folder.name for part in wanted)
    ]
    run_mergekit(environment, [folder for folder, _ in chosen])
    failed = 0
    for folder, compared in chosen:
        said, good = compared()
        print(f"{'ok  ' if good else 'FAIL'} {folder.name:<48} {said}", flush=True)
        failed += not good
    sys.exit(failed > 0)


def comparisons(python: Path, work: Path) -> Iterator[tuple[Path, Callable[[], Verdict]]]:
    """Every case: a folder named after it, with its recipe, and what compares the two merges."""
    family, edges = work / "family", work / "edges"
    for name, data, compare in cases():
        folder = prepare(work / name.replace(" ", "-"), data, family)
        density = data["models"][0]["parameters"].get("density", 1.0)
        yield folder, partial(by_pair, folder, family, density, compare)
    exported = work / "Sens-Merging-as-a-mergekit-recipe"
    yield exported, partial(by_exported_recipe, python, exported, family)
    for name, data in interpolation.cases():
        folder = prepare(work / name.replace(" ", "-"), data, edges)
        yield folder, partial(by_interpolation, folder, edges, data)


def install(folder: Path) -> Path:
    """Python with mergekit, in an environment of its own."""
    python = folder / "bin" / "python"
    if not (folder / "bin" / "mergekit-yaml").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", MERGEKIT], check=True)
    return python


# mergekit's own command, for many recipes in one process.
COMMAND = """
import sys
from mergekit.scripts.run_yaml import main
for folder in sys.argv[1:]:
    options = ["--no-cuda", "--quiet"]
    main([f"{folder}/recipe.yaml", f"{folder}/theirs", *options], standalone_mode=False)
"""


def run_mergekit(python: Path, folders: list[Path]) -> None:
    """Merge all recipes that no earlier run has merged."""
    missing = [
        str(folder)
        for folder in folders
        if (folder / "recipe.yaml").exists() and not (folder / "theirs").exists()
    ]
    if missing:
        subprocess.run([str(python), "-c", COMMAND, *missing], check=True, capture_output=True)


def cases() -> Iterator[tuple[str, dict[str, Any], Comparison]]:
    """Name, recipe and comparison of every case."""
    methods = (
        "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs",
        "breadcrumbs_ties", "della_linear", "della",
    )  # fmt: skip
    for method in methods:
        for normalize in (None, True, False):
            for density in (1.0,) if method in methods[:2] else (1.0, 0.5):
                options: dict[str, Any] = {} if normalize is None else {"normalize": normalize}
                random = method.startswith(("dare", "della")) and density < 1
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
    for density, gamma in ((0.9, 0.01), (0.5, 0.2), (0.5, 0.8), (0.1, 0.0)):
        for method in ("breadcrumbs", "breadcrumbs_ties"):
            name = f"{method} density={density} gamma={gamma}"
            yield name, recipe(method, density, {"gamma": gamma}), partial(by_entry, gamma=gamma)
    rescaled = recipe("breadcrumbs", 0.5, {"gamma": 0.1, "rescale": True})
    yield "breadcrumbs rescale", rescaled, partial(by_entry, gamma=0.1)
    for epsilon in (0.4, 0.0):
        name = f"della_linear epsilon={epsilon}"
        yield name, recipe("della_linear", 0.5, {"epsilon": epsilon}), in_distribution
    unscaled = recipe("della_linear", 0.5, {"rescale": False})
    yield "della_linear rescale=False", unscaled, in_distribution
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


def prepare(folder: Path, data: dict[str, Any], family: Path) -> Path:
    """A folder with the recipe. A merge of another recipe in it is removed."""
    absolute = json.loads(json.dumps(data))
    for model in absolute["models"]:
        model["model"] = str(family / model["model"])
    if "base_model" in absolute:
        absolute["base_model"] = str(family / absolute["base_model"])
    return write(folder, json.dumps(absolute))


def write(folder: Path, recipe: str) -> Path:
    path = folder / "recipe.yaml"
    if not path.exists() or path.read_text() != recipe:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path.write_text(recipe)
    return folder


def ours(folder: Path) -> Tensors:
    made = folder / "ours"
    sensmerge.merge(Recipe.load(folder / "recipe.yaml"), made, progress=False, overwrite=True)
    return tensors(made)


def by_pair(folder: Path, family: Path, density: float, compare: Comparison) -> Verdict:
    """Our merge against mergekit's."""
    return compare(family, density, tensors(folder / "theirs"), ours(folder))


def by_interpolation(folder: Path, family: Path, data: dict[str, Any]) -> Verdict:
    """mergekit's merge against the reference, and ours against both."""
    wanted, largest = interpolation.expected(data, family)
    theirs = tensors(folder / "theirs")
    allowed = interpolation.exceptions(data)
    said, good = interpolation.by_reference(theirs, wanted, largest, allowed)
    said = f"mergekit, reference: {said}"
    made = ours(folder)
    for peer, (more, fine) in (
        ("reference", interpolation.by_reference(made, wanted, largest, allowed)),
        ("mergekit", by_entry(family, 1.0, theirs, made, exceptions=max(allowed, 1 / 2000))),
    ):
        said, good = f"{said}; sensmerge, {peer}: {more}", good and fine
    return said, good


def by_exported_recipe(python: Path, folder: Path, family: Path) -> Verdict:
    """The recipe of `coefficients --format mergekit`, run by mergekit, against our own merge."""
    data = recipe("ties", 0.5, {"lambda": 0.8}) | {"sensitivity": {"temperature": 0.02}}
    data["base_model"] = str(family / data["base_model"])
    for place, model in enumerate(data["models"]):
        model["model"] = str(family / model["model"])
        model["calibration"] = str(family / f"t{place}.jsonl")
    known = Recipe.from_dict(data)
    merged = sensmerge.merge(known, folder / "ours", progress=False, overwrite=True)
    assert merged.coefficients is not None
    made = tensors(folder / "ours")
    write(folder, as_mergekit(known, merged.coefficients))
    run_mergekit(python, [folder])
    return by_entry(family, 0.5, tensors(folder / "theirs"), made)


def at_threshold(delta: torch.Tensor, density: float, gamma: float) -> torch.Tensor:
    """Entries whose magnitude is a threshold: mergekit does not define which of them are kept."""
    kept = max(1, int(density * delta.numel()))
    dropped = min(int(gamma * delta.numel()), delta.numel() - kept)
    magnitude = delta.abs()
    ordered = magnitude.flatten().sort(descending=True).values
    found = magnitude == ordered[kept + dropped - 1]
    return found | (magnitude == ordered[dropped - 1]) if dropped else found


def by_entry(
    family: Path,
    density: float,
    theirs: Tensors,
    ours: Tensors,
    *,
    gamma: float = 0.01,
    exceptions: float = 1 / 2000,
) -> Verdict:
    apart = different = total = 0
    missing = theirs.keys() ^ ours.keys()
    base = tensors(family / "base")
    experts = [tensors(family / f"e{place}") for place in range(len(WEIGHTS))]
    for name, their in theirs.items():
        our, their_values = ours[name].double(), their.double()
        unit = 2.0 ** (torch.floor(torch.log2(their_values.abs().clamp(min=2.0**-126))) - 7)
        decided = torch.ones_like(their, dtype=torch.bool)
        for expert in experts if density < 1 else []:
            decided &= ~at_threshold(expert[name].float() - base[name].float(), density, gamma)
        apart += int(((our - their_values).abs() > unit)[decided].sum())
        different += int((our != their_values)[decided].sum())
        total += int(decided.sum())
    said = f"{total} entries, {different} differ, {apart} by more than one unit"
    return said, not missing and apart <= total * exceptions


def in_distribution(family: Path, density: float, theirs: Tensors, ours: Tensors) -> Verdict:
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
