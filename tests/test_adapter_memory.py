"""A merge with adapters within memory that holds no merged copy, nor the float32 factors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROWS, COLUMNS, LAYERS, RANK = 2048, 4096, 12, 64
MODEL = 2 * LAYERS * ROWS * COLUMNS
FACTORS = 4 * LAYERS * RANK * (ROWS + COLUMNS)

# Memory that a merge may take beside what the process has before.
MARGIN = 64_000_000

# The limit is on data memory, like that of `prlimit --data`: mapped files do not count.
LIMITED = """
import resource
import sys
from pathlib import Path

import sensmerge

folder, margin = Path(sys.argv[1]), int(sys.argv[2])

def merged(recipe):
    out = folder / "out"
    options = {"threads": 2, "progress": False, "sync": False, "overwrite": True}
    return sensmerge.merge(folder / recipe, out, **options)

# Before the limit, so that all is imported, and threads are started, that has to be.
merged("small.json")
status = Path("/proc/self/status").read_text().splitlines()
used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
resource.setrlimit(resource.RLIMIT_DATA, (used + margin, resource.RLIM_INFINITY))
merged("large.json")
"""


def write(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def family(folder: Path, rows: int, columns: int, layers: int, *, dora: bool) -> None:
    torch.manual_seed(0)
    modules = [f"model.layers.{layer}.mlp.up_proj" for layer in range(layers)]
    weights = {
        f"{module}.weight": torch.randn(rows, columns).mul_(0.02).bfloat16() for module in modules
    }
    write(folder / "base", "model.safetensors", weights)
    for name in ("a", "b"):
        factors = {}
        for module in modules:
            module = f"base_model.model.{module}"
            factors[f"{module}.lora_A.weight"] = torch.randn(RANK, columns) * 0.01
            factors[f"{module}.lora_B.weight"] = torch.randn(rows, RANK) * 0.01
            if dora:
                factors[f"{module}.lora_magnitude_vector"] = torch.rand(rows) + 0.5
        write(folder / name, "adapter_model.safetensors", factors)
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "use_dora": dora}
        (folder / name / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits data memory")
@pytest.mark.parametrize("dora", [False, True])
def test_no_merged_copy_is_held(tmp_path: Path, dora: bool) -> None:
    assert MODEL > 2 * MARGIN
    assert 2 * FACTORS > MARGIN / 2
    family(tmp_path / "large", ROWS, COLUMNS, LAYERS, dora=dora)
    family(tmp_path / "small", 64, 2048, 1, dora=dora)
    for size in ("large", "small"):
        recipe = {
            # The threshold is one of the whole model, so that all tensors are in work at once.
            "merge_method": "ties",
            "semantics": "original",
            "base_model": f"{size}/base",
            "models": [{"model": f"{size}/base+{size}/{name}"} for name in ("a", "b")],
            "parameters": {"density": 0.5, "weight": 0.5},
        }
        (tmp_path / f"{size}.json").write_text(json.dumps(recipe))
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(MARGIN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
