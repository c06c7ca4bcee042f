"""Output bytes depend on nothing but the recipe and the inputs."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sensmerge
from sensmerge import Recipe
from sensmerge.recipe import methods
from tiers import TORTURE

METHODS = [
    "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "della",
]  # fmt: skip
EXPERTS = 3

# Around one chunk of 1 MiB of float32, several of them, around one block, one entry, none.
SIZES = {
    "model.embed_tokens.weight": (1000, 800),
    "model.layers.0.mlp.up_proj.weight": (262_145,),
    "model.layers.0.mlp.down_proj.weight": (512, 512),
    "model.layers.1.mlp.up_proj.weight": (4097,),
    "model.layers.1.norm.weight": (33,),
    "model.layers.1.scale": (1,),
    "model.layers.1.empty": (0, 4),
}

CHUNKS = [64 * 1024, 1024 * 1024, 7_340_033]
THREADS = [1, 2, 3, 8]
# Each number of threads and each size of chunks once or twice; in the long tier each with each.
SPLITS = list(
    itertools.product(THREADS, CHUNKS) if TORTURE else zip(THREADS, itertools.cycle(CHUNKS))
)

# Cases that each go through different stages of a merge.
CASES: dict[str, dict[str, Any]] = {
    f"{method} {semantics}": {"merge_method": method, "semantics": semantics}
    for method, semantics in itertools.product(METHODS, ["mergekit", "original"])
} | {
    "ties, rescaled": {
        "merge_method": "ties", "semantics": "mergekit", "parameters": {"rescale": True},
    },
    "dare_ties, not rescaled": {
        "merge_method": "dare_ties", "semantics": "mergekit", "parameters": {"rescale": False},
    },
    "breadcrumbs_ties, rescaled": {
        "merge_method": "breadcrumbs_ties", "parameters": {"rescale": True},
    },
    "sce": {"merge_method": "sce", "parameters": {"select_topk": 0.3}},
    "ramplus_tl": {"merge_method": "ramplus_tl", "parameters": {"epsilon": 1e-3}},
    "nuslerp, columns": {
        "merge_method": "nuslerp",
        "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    },
    "multislerp": {"merge_method": "multislerp"},
    "karcher": {"merge_method": "karcher"},
    "nearswap": {"merge_method": "nearswap", "parameters": {"t": 1e-3}},
    "arcee_fusion": {"merge_method": "arcee_fusion"},
    "magmax": {"merge_method": "magmax"},
    "emr": {"merge_method": "emr"},
    "consensus": {"merge_method": "consensus"},
    "pcb": {"merge_method": "pcb"},
    "widen": {"merge_method": "widen"},
    "wsm": {"merge_method": "wsm", "parameters": {"power": 0.3}},
}  # fmt: skip


def dtype_of(family: str, tensor: int, model: int) -> str:
    """The dtype of a model's tensor in a family; in the mixed family it varies."""
    # A float64 output, of the largest tensor, shows the last bits of sums.
    mixed = [*(["float64"] if "float64" in family else []), "bfloat16", "float16", "float32"]
    return mixed[(tensor + model) % len(mixed)] if "mixed" in family else family


FAMILIES = ["bfloat16", "float16", "float32", "mixed", "mixed with float64"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and three experts."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp(request.param)
    draw = np.random.default_rng(5)
    base = {name: 0.02 * draw.standard_normal(size) for name, size in SIZES.items()}
    for model, name in enumerate(["base", *(f"e{place}" for place in range(EXPERTS))]):
        stored = {}
        for place, (tensor, values) in enumerate(base.items()):
            change = 0.002 * draw.standard_t(3, values.shape) if model else 0.0
            dtype = getattr(torch, dtype_of(request.param, place, model))
            stored[tensor] = torch.tensor(values + change).to(dtype)
        (folder / name).mkdir()
        save_file(stored, folder / name / "model.safetensors", metadata={"format": "pt"})
    return folder


def recipe_of(case: str) -> dict[str, Any]:
    """The case's recipe: densities at which many entries are dropped and trimmed."""
    models = [
        {"model": f"e{place}", "parameters": {"weight": weight, "density": 0.3}}
        for place, weight in enumerate([1.0, 0.7, 1.3])
    ]
    said = CASES[case]
    found = methods.find(said["merge_method"])
    assert found is not None
    parameters = {"ties_density": 0.6, "lambda": 0.9 if found.parameter("lambda") else 1.0}
    return said | {
        "base_model": "base",
        "models": models[: found.most],
        "parameters": parameters | said.get("parameters", {}),
    }


@pytest.mark.tiers
@pytest.mark.parametrize("case", CASES)
def test_neither_threads_nor_chunks_change_a_byte(family: Path, tmp_path: Path, case: str) -> None:
    recipe = Recipe.from_dict(recipe_of(case), folder=family)
    written: dict[str, list[tuple[int, int]]] = {}
    for threads, chunk_bytes in SPLITS:
        sensmerge.merge(
            recipe, tmp_path / "out", threads=threads, chunk_bytes=chunk_bytes,
            progress=False, sync=False, overwrite=True,
        )  # fmt: skip
        content = (tmp_path / "out" / "model.safetensors").read_bytes()
        written.setdefault(hashlib.sha256(content).hexdigest(), []).append((threads, chunk_bytes))
    assert len(written) == 1, list(written.values())


MERGES = """
import hashlib, json, sys
from pathlib import Path
import sensmerge

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
digests = {}
for case, recipe in json.load(sys.stdin).items():
    recipe = sensmerge.Recipe.from_dict(recipe, folder=folder)
    sensmerge.merge(recipe, out, threads=2, progress=False, sync=False, overwrite=True)
    content = (out / "model.safetensors").read_bytes()
    digests[case] = hashlib.sha256(content).hexdigest()
print(json.dumps(digests))
"""


def test_no_level_of_vector_instructions_changes_a_byte(family: Path, tmp_path: Path) -> None:
    """On a processor that lacks a level, the next lower one runs and is compared."""
    recipes = json.dumps({case: recipe_of(case) for case in CASES})
    digests = {}
    # The level is looked up once a process.
    for level in ["baseline", "avx2", "avx512"]:
        child = subprocess.run(
            [sys.executable, "-c", MERGES, str(family), str(tmp_path / "out")],
            input=recipes, capture_output=True, text=True, check=True,
            env=os.environ | {"SENSMERGE_SIMD": level},
        )  # fmt: skip
        digests[level] = json.loads(child.stdout)
    assert digests["baseline"].keys() == CASES.keys()
    assert digests["avx2"] == digests["baseline"]
    assert digests["avx512"] == digests["baseline"]
