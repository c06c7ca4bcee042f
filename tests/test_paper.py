"""The paper's experts as they are published: a token more, an adapter, float32 beside bfloat16."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
EMBEDDING = "model.embed_tokens.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def test_they_are_calibrated_and_merged(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "paper"), "shapes", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "'[PAD]'" in done.stdout
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    base, chat, math = (
        load_file(tmp_path / name / "model.safetensors") for name in ("base", "chat", "math")
    )
    assert base[EMBEDDING].dtype == torch.float32
    assert chat[EMBEDDING].dtype == torch.bfloat16
    assert math[EMBEDDING].shape[0] == merged[EMBEDDING].shape[0] + 1 == 32_001
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    calibration = json.loads((tmp_path / "merged" / "sensmerge_calibration.json").read_text())
    assert len(calibration["experts"]) == 3
    # Outside the blocks weights are 1, and the adapter changes nothing there.
    rows = base[EMBEDDING].shape[0]
    expected = base[EMBEDDING].double()
    for expert in (chat, math):
        expected += 0.33 * (expert[EMBEDDING][:rows].double() - base[EMBEDDING].double())
    torch.testing.assert_close(merged[EMBEDDING].double(), expected, rtol=2**-8, atol=1e-6)
    # The adapter is in the layers that it changes.
    adapter = load_file(tmp_path / "code-lora" / "adapter_model.safetensors")
    prefix = f"base_model.model.{QUERY.removesuffix('.weight')}"
    product = adapter[f"{prefix}.lora_B.weight"] @ adapter[f"{prefix}.lora_A.weight"]
    others = base[QUERY].double()
    change = merged[QUERY].double() - others
    assert torch.corrcoef(torch.stack([change.flatten(), product.double().flatten()]))[0, 1] > 0.3
