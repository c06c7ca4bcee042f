"""Adapters in PEFT's format, written by hand, and the weights that they make in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

PREFIX = "base_model.model."


@dataclass
class Written:
    """An adapter's tensors, by their names in its file, and what its config says."""

    tensors: dict[str, Matrix] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def factors(
        self,
        draw: np.random.Generator,
        module: str,
        outputs: int,
        inputs: int,
        rank: int,
        *,
        magnitude: bool = False,
        embedding: bool = False,
    ) -> None:
        """Add the factors of a low-rank change to a module."""
        a, b = ("embedding_A", "embedding_B") if embedding else ("A.weight", "B.weight")
        self.tensors[f"{PREFIX}{module}.lora_{a}"] = 0.1 * draw.standard_normal((rank, inputs))
        self.tensors[f"{PREFIX}{module}.lora_{b}"] = 0.1 * draw.standard_normal((outputs, rank))
        if magnitude:
            norms = 0.5 + draw.random(outputs)
            self.tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = norms

    def save(self, folder: Path, dtype: str = "float32") -> None:
        """Write the adapter, and round its tensors to what is stored."""
        import torch
        from safetensors.torch import save_file

        kind = getattr(torch, dtype)
        stored = {name: torch.tensor(value).to(kind) for name, value in self.tensors.items()}
        self.tensors = {name: value.double().numpy() for name, value in stored.items()}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "base"}
        (folder / "adapter_config.json").write_text(json.dumps(config | self.config))


def changed(
    weight: Matrix,
    written: Written,
    module: str,
    *,
    scale: float,
    transposed: bool = False,
    embedding: bool = False,
) -> Matrix:
    """A weight with an adapter's change: W + s·B·A and, where there are magnitudes, DoRA's."""
    a, b = ("embedding_A", "embedding_B") if embedding else ("A.weight", "B.weight")
    factors = [written.tensors[f"{PREFIX}{module}.lora_{name}"] for name in (a, b)]
    plain = (weight.T if transposed or embedding else weight) + scale * factors[1] @ factors[0]
    magnitude = written.tensors.get(f"{PREFIX}{module}.lora_magnitude_vector")
    if magnitude is not None:
        plain = plain * (magnitude / np.linalg.norm(plain, axis=1))[:, None]
    return plain.T if transposed or embedding else plain


def scale_of(config: Mapping[str, Any]) -> float:
    """α/r, or α/√r."""
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))
