"""A model whose weights alone exceed the memory that the process may have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from families import llama_family, word_tokenizer, write_samples
from sensmerge import Calibration

HIDDEN, INTERMEDIATE, BLOCKS = 1024, 2816, 5
WEIGHTS = 4 * BLOCKS * (4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE)

# Memory that a calibration may take beside torch's; its largest gradient is 12 MB.
MARGIN = 120_000_000

# The limit is on data memory, like that of `prlimit --data`: mapped files do not count.
LIMITED = """
import resource
import sys
from pathlib import Path

import sensmerge
from sensmerge.calibration import loading, run

folder, margin = Path(sys.argv[1]), int(sys.argv[2])

def calibrated(recipe):
    return sensmerge.calibrate(folder / recipe, progress=False, threads=1, memory="stream")

# Before the limit, so that all is imported, and threads are started, that has to be.
calibrated("small.yaml")
status = Path("/proc/self/status").read_text().splitlines()
used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
resource.setrlimit(resource.RLIMIT_DATA, (used + margin, resource.RLIM_INFINITY))
calibrated("large.yaml").save(folder / "calibration.json")

mapped = loading.mapped
loading.mapped = lambda path, **_: {name: tensor.clone() for name, tensor in mapped(path).items()}
calibrated("large.yaml")
"""


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts of 256 MB each, and two small ones."""
    folder = tmp_path_factory.mktemp("large")
    tokenizer = word_tokenizer()
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=BLOCKS,
        num_attention_heads=8,
    )
    square, wide = (HIDDEN, HIDDEN), (INTERMEDIATE, HIDDEN)
    shapes = {f"self_attn.{name}_proj": square for name in "qkvo"} | {
        "mlp.gate_proj": wide,
        "mlp.up_proj": wide,
        "mlp.down_proj": wide[::-1],
    }
    for place in range(2):
        draw = torch.Generator().manual_seed(place)
        tensors = {"model.norm.weight": torch.ones(HIDDEN)}
        for name in ("model.embed_tokens", "lm_head"):
            tensors[f"{name}.weight"] = torch.rand(len(tokenizer), HIDDEN, generator=draw) - 0.5
        for block in range(BLOCKS):
            prefix = f"model.layers.{block}"
            for name, shape in shapes.items():
                weight = torch.rand(shape, generator=draw).sub_(0.5).mul_(0.1)
                tensors[f"{prefix}.{name}.weight"] = weight
            for name in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}.{name}.weight"] = torch.ones(HIDDEN)
        path = folder / f"e{place}"
        config.save_pretrained(path)
        tokenizer.save_pretrained(path)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        write_samples(folder / f"t{place}.jsonl", seed=place)
    large = {"e0": "t0.jsonl", "e1": "t1.jsonl"}
    small = {"small/e0": "small/t0.jsonl", "small/e1": "small/t1.jsonl"}
    llama_family(folder / "small", experts=2)
    for name, experts in {"large": large, "small": small}.items():
        recipe = {
            "merge_method": "linear",
            "models": [{"model": model, "calibration": task} for model, task in experts.items()],
            "sensitivity": {"samples": 3},
        }
        (folder / f"{name}.yaml").write_text(json.dumps(recipe))
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits data memory")
def test_it_is_calibrated(experts: Path) -> None:
    assert WEIGHTS > 2 * MARGIN
    command = [sys.executable, "-c", LIMITED, str(experts), str(MARGIN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    file = experts / "calibration.json"
    assert file.exists(), done.stderr
    found = Calibration.load(file)
    assert found.sensitivity.all()
    assert found.alignment[0, 1] > 0
    # Check that the limit works: weights that are read into memory do not fit.
    assert done.returncode == 1
    assert "can't allocate memory" in done.stderr
