"""Quantised outputs loaded by the programs that they are written for.

By hand, since neither accelerate nor compressed-tensors is among the pins: run this file in an
environment that has them beside this package. Every model is loaded as it is and compared with what
its codes stand for, in bfloat16: the logits must be the same.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import sensmerge
from sensmerge import Recipe, workflow

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from families import llama_family
from quantisation import read


def logits(model: Path) -> torch.Tensor:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    with torch.no_grad():
        found: torch.Tensor = loaded(torch.tensor([[1, 5, 9, 30, 8]])).logits.float()
    return found


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    # Sizes that transformers can dequantise on a CPU: whole tiles.
    sizes: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 384,
        "initializer_range": 0.05,
    }
    family = llama_family(folder, experts=2, layers=2, dtype="bfloat16", **sizes)
    for out_dtype in ("float8_e4m3fn", "int4"):
        recipe = Recipe.from_dict(family.recipe(out_dtype=out_dtype), folder)
        out = folder / out_dtype
        workflow.merge(recipe, out, progress=False)
        said = {"merge_method": "passthrough", "models": [{"model": str(out)}]}
        meant = sensmerge.merge_tensors(Recipe.from_dict(said, folder))
        plain = folder / f"{out_dtype}-dequantised"
        plain.mkdir()
        save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((out / "config.json").read_text())
        del config["quantization_config"]
        (plain / "config.json").write_text(json.dumps(config))
        found, wanted = logits(out), logits(plain)
        difference, largest = float((found - wanted).abs().max()), float(wanted.abs().max())
        print(
            f"{out_dtype}: {len(read(out))} stored tensors, logits up to {largest:.3f}, "
            f"largest difference from the dequantised model's {difference:.3g}"
        )
        if difference > 0:
            raise SystemExit(f"{out_dtype}: is loaded as another model")


if __name__ == "__main__":
    main()
