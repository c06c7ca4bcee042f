"""Models whose weights are stored in fewer bits, by what their config says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sensmerge import _core

# Dtypes of quantised weights, some of them of several in one entry.
_PACKED = frozenset({
    "U8", "I8", "I32", "U32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4",
})  # fmt: skip


def refusal(path: Path, config: dict[str, Any], checkpoint: _core.Checkpoint) -> str | None:
    """Why a model is refused that is quantised, and how it is; None where it is not.

    A model that was converted back may still say so in its config: its tensors count too.

    Args:
        path: Its folder.
        config: Its ``config.json``.
        checkpoint: Its tensors.
    """
    said = config.get("quantization_config", config.get("compression_config"))
    # The config first: describing every tensor takes long, and few models are quantised.
    if not isinstance(said, dict):
        return None
    if not any(tensor.dtype in _PACKED for tensor in checkpoint.tensors):
        return None
    bits = 4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else said.get("bits")
    how = [str(said.get("quant_method", "by an unnamed method"))]
    how += [f"{bits} bit"] if isinstance(bits, int) else []
    return (
        f"{path}: is quantised ({', '.join(how)}, as its config.json says), and quantised weights "
        "are neither measured nor merged: convert it to bfloat16 first, or name the model that it "
        "was made from"
    )
