"""Checkpoints to measure merges with: a base and experts whose task vectors look like real ones.

Task vectors are small, dense and heavy-tailed, as fine-tuning leaves them. Everything is bfloat16,
one file a model, the same header in all, which is what the floor reads.
"""

from __future__ import annotations

import json
import math
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = "model.safetensors"


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes: widths in entries, and how many heads and blocks."""

    hidden: int
    intermediate: int
    blocks: int
    heads: int
    key_value: int
    vocabulary: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's name and shape, in the order of the file."""
        hidden, inner = self.hidden, self.intermediate
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, hidden)}
        for block in range(self.blocks):
            prefix = f"model.layers.{block}."
            found |= {
                f"{prefix}input_layernorm.weight": (hidden,),
                f"{prefix}mlp.down_proj.weight": (hidden, inner),
                f"{prefix}mlp.gate_proj.weight": (inner, hidden),
                f"{prefix}mlp.up_proj.weight": (inner, hidden),
                f"{prefix}post_attention_layernorm.weight": (hidden,),
                f"{prefix}self_attn.k_proj.weight": (self.key_value, hidden),
                f"{prefix}self_attn.o_proj.weight": (hidden, hidden),
                f"{prefix}self_attn.q_proj.weight": (hidden, hidden),
                f"{prefix}self_attn.v_proj.weight": (self.key_value, hidden),
            }
        return found | {"model.norm.weight": (hidden,), "lm_head.weight": (self.vocabulary, hidden)}

    def bytes(self) -> int:
        """Bytes of a model in bfloat16."""
        return 2 * sum(math.prod(shape) for shape in self.tensors().values())

    def largest_gradient(self) -> int:
        """Bytes of the largest tensor's gradient in bfloat16."""
        return 2 * max(math.prod(shape) for shape in self.tensors().values())

    def config(self) -> dict[str, Any]:
        """The content of ``config.json``, from which mergekit takes the number of blocks."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value * self.heads // self.hidden,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
        }


SHAPES = {
    "300m": Shape(
        hidden=1024, intermediate=2816, blocks=22, heads=16, key_value=256, vocabulary=32_000
    ),
    "1b": Shape(
        hidden=2048, intermediate=5632, blocks=22, heads=32, key_value=256, vocabulary=32_000
    ),
    "7b": Shape(
        hidden=4096, intermediate=11_008, blocks=32, heads=32, key_value=4096, vocabulary=32_000
    ),
    "tiny": Shape(hidden=64, intermediate=176, blocks=2, heads=4, key_value=16, vocabulary=320),
}


def names(experts: int) -> list[str]:
    """The models' folders, the base first."""
    return ["base", *(f"expert{place}" for place in range(experts))]


def llama(folder: Path, size: str, experts: int) -> Shape:
    """A family in the shape of a Llama; made only if it is not there already."""
    shape = SHAPES[size]
    _make(folder, shape.tensors(), experts, {"size": asdict(shape)}, shape.config())
    return shape


def small_tensors(folder: Path, experts: int, count: int, entries: int) -> None:
    """A family of many small tensors, a hundred blocks of them."""
    tensors: dict[str, tuple[int, ...]] = {
        f"model.layers.{place % 100}.t{place}.weight": (entries,) for place in range(count)
    }
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    _make(folder, tensors, experts, {"small": [count, entries]}, config)


def _make(
    folder: Path,
    tensors: dict[str, tuple[int, ...]],
    experts: int,
    specification: dict[str, Any],
    config: dict[str, Any],
) -> None:
    mark = folder / "specification.json"
    text = json.dumps(specification | {"experts": experts, "version": 3})
    if mark.is_file() and mark.read_text() == text:
        return
    mark.unlink(missing_ok=True)
    # Made for other weights.
    (folder / "calibration.json").unlink(missing_ok=True)
    models = names(experts)
    header = _header(tensors)
    files = []
    for name in models:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        files.append((folder / name / FILE).open("wb"))
        files[-1].write(header)
    draws = [np.random.default_rng(place) for place in range(len(models))]
    # Tensor by tensor, so that a model larger than memory can be made; experts side by side.
    with ThreadPoolExecutor(len(models)) as pool:
        for name, shape in tensors.items():
            base = _narrow(_parameters(draws[0], name, shape))
            wide = (base.astype(np.uint32) << 16).view(np.float32)
            tuned = pool.map(lambda draw, wide=wide: _narrow(wide + _delta(draw, wide)), draws[1:])
            for file, entries in zip(files, [base, *tuned], strict=True):
                file.write(entries.tobytes())
    for file in files:
        file.close()
    mark.write_text(text)


def _header(tensors: dict[str, tuple[int, ...]]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _parameters(
    draw: np.random.Generator, name: str, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    found = draw.standard_normal(math.prod(shape), dtype=np.float32) * np.float32(0.02)
    return found + np.float32(1) if "norm" in name else found


def _delta(draw: np.random.Generator, like: NDArray[np.float32]) -> NDArray[np.float32]:
    share = np.maximum(draw.random(like.size, dtype=np.float32), np.float32(0.125))
    found: NDArray[np.float32] = draw.standard_normal(like.size, dtype=np.float32)
    found *= np.float32(3e-4)
    found /= np.sqrt(share)
    return found


def _narrow(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
