"""Models quantised by torch, as the published ones are: the oracle of reading and writing them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FP8 = torch.float8_e4m3fn

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Scheme:
    """A way to quantise: what the config says, and the parts of a matrix.

    Attributes:
        config: The ``quantization_config``.
        parts: The stored parts of a matrix, by the endings of their names.
        value: The matrix that the parts stand for, in float32.
    """

    config: dict[str, Any]
    parts: Callable[[torch.Tensor], Tensors]
    value: Callable[[Tensors], torch.Tensor]
    chosen: Callable[[str], bool] = field(default=lambda name: name.endswith("_proj.weight"))

    def stored(self, tensors: Tensors) -> Tensors:
        """The tensors of a model as they are stored."""
        found = {}
        for name, tensor in tensors.items():
            if not self.chosen(name):
                found[name] = tensor
                continue
            found |= {f"{name}{ending}": part for ending, part in self.parts(tensor).items()}
        return found

    def meant(self, tensors: Tensors) -> Tensors:
        """What the stored tensors of a model stand for, in float32."""
        return {
            name: self.value(self.parts(tensor)) if self.chosen(name) else tensor.float()
            for name, tensor in tensors.items()
        }


def spread(scales: torch.Tensor, tile: tuple[int, int], shape: torch.Size) -> torch.Tensor:
    """Scales of tiles, one for every entry of a matrix."""
    whole = scales.repeat_interleave(tile[0], 0).repeat_interleave(tile[1], 1)
    return whole[: shape[0], : shape[1]]


def largest(matrix: torch.Tensor, tile: tuple[int, int]) -> torch.Tensor:
    """The largest magnitude of every tile."""
    rows, columns = (-(-size // part) for size, part in zip(matrix.shape, tile, strict=True))
    padded = torch.zeros(rows * tile[0], columns * tile[1])
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix.float().abs()
    return padded.reshape(rows, tile[0], columns, tile[1]).amax((1, 3))


def float8(matrix: torch.Tensor, tile: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a matrix."""
    scales = (largest(matrix, tile) / 448).clamp(min=1e-12)
    divided = matrix.float() / spread(scales, tile, matrix.shape)
    return divided.clamp(-448, 448).to(FP8), scales


def float8_value(codes: torch.Tensor, scales: torch.Tensor, tile: tuple[int, int]) -> torch.Tensor:
    return codes.float() * spread(scales.float(), tile, codes.shape)


def fp8_blocks(tile: tuple[int, int] = (128, 128), scale_dtype: str = "float32") -> Scheme:
    """transformers' fp8."""

    def parts(matrix: torch.Tensor) -> Tensors:
        codes, scales = float8(matrix, tile)
        return {"": codes, "_scale_inv": scales.to(getattr(torch, scale_dtype))}

    return Scheme(
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(tile)},
        parts,
        lambda stored: float8_value(stored[""], stored["_scale_inv"], tile),
    )


def fp8_per_tensor(codes: torch.dtype = FP8, ending: str = "_scale_inv") -> Scheme:
    """fp8 with one scale a tensor, and scales of inputs that belong to the quantised model."""

    def parts(matrix: torch.Tensor) -> Tensors:
        scale = matrix.float().abs().max() / torch.finfo(codes).max
        return {
            "": (matrix.float() / scale).to(codes),
            ending: scale,
        }

    return Scheme(
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
        parts,
        lambda stored: stored[""].float() * stored[ending],
    )


def compressed(strategy: str, tile: tuple[int, int]) -> Scheme:
    """compressed-tensors' float-quantized."""

    def tile_of(matrix: torch.Tensor) -> tuple[int, int]:
        rows, columns = matrix.shape
        sizes = {"tensor": (rows, columns), "channel": (1, columns), "block": tile}
        return sizes[strategy]

    def parts(matrix: torch.Tensor) -> Tensors:
        codes, scales = float8(matrix, tile_of(matrix))
        scales = scales.reshape(1) if strategy == "tensor" else scales
        return {"": codes, "_scale": scales.bfloat16()}

    def value(stored: Tensors) -> torch.Tensor:
        codes, scales = stored[""], stored["_scale"]
        scales = scales.reshape(1, 1) if strategy == "tensor" else scales
        return float8_value(codes, scales, tile_of(codes))

    weights = {"type": "float", "num_bits": 8, "strategy": strategy, "symmetric": True}
    return Scheme(_compressed("float-quantized", weights | {"block_structure": tile}), parts, value)


def int4(group: int = 32) -> Scheme:
    """compressed-tensors' pack-quantized of four bits."""

    def parts(matrix: torch.Tensor) -> Tensors:
        scales = (largest(matrix, (1, group)) / 7).bfloat16()
        scales = torch.where(scales == 0, torch.ones_like(scales), scales)
        divided = matrix.float() / spread(scales.float(), (1, group), matrix.shape)
        return packed(divided.round().clamp(-8, 7)) | {"_scale": scales}

    def value(stored: Tensors) -> torch.Tensor:
        codes = unpacked(stored)
        return codes * spread(stored["_scale"].float(), (1, group), codes.shape)

    weights = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": group}
    return Scheme(_compressed("pack-quantized", weights | {"symmetric": True}), parts, value)


def packed(codes: torch.Tensor) -> Tensors:
    """Integers from -8 to 7, eight to an int32: that plus 8, the first in the lowest bits."""
    rows, columns = codes.shape
    words = -(-columns // 8)
    unsigned = torch.zeros(rows, words * 8, dtype=torch.int64)
    unsigned[:, :columns] = codes.long() + 8
    shifts = 4 * torch.arange(8)
    whole = (unsigned.reshape(rows, words, 8) << shifts).sum(-1)
    # As the bits of an int32.
    signed = torch.where(whole >= 2**31, whole - 2**32, whole).int()
    return {"_packed": signed, "_shape": torch.tensor([rows, columns])}


def unpacked(stored: Tensors) -> torch.Tensor:
    rows, columns = stored["_shape"].tolist()
    words = stored["_packed"].long() & 0xFFFFFFFF
    codes = (words[..., None] >> (4 * torch.arange(8))) & 15
    return (codes.reshape(rows, -1)[:, :columns] - 8).float()


def _compressed(name: str, weights: dict[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def quantise(model: Path, scheme: Scheme, *, shards: int = 1) -> Tensors:
    """Quantise a model's folder in place.

    Returns:
        What its tensors stand for, in float32.
    """
    tensors = load_file(model / "model.safetensors")
    write(model, scheme.stored(tensors), scheme.config, shards=shards)
    return scheme.meant(tensors)


def write(model: Path, tensors: Tensors, said: dict[str, Any] | None, *, shards: int = 1) -> None:
    """Write tensors, dealt out to shards by turns, and what the config says of quantisation."""
    model.mkdir(parents=True, exist_ok=True)
    (model / "model.safetensors").unlink(missing_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map: dict[str, str] = {}
        for place in range(shards):
            file = f"model-{place + 1:05}-of-{shards:05}.safetensors"
            some = {name: tensors[name] for name in sorted(tensors)[place::shards]}
            save_file(some, model / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(some, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
    path = model / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {"dtype": "bfloat16"}
    path.write_text(json.dumps(config | ({} if said is None else {"quantization_config": said})))


def read(model: Path) -> Tensors:
    """Every stored tensor of a model's folder."""
    found: Tensors = {}
    for file in sorted(model.glob("*.safetensors")):
        found |= load_file(file)
    return found
