"""A process of its own that reads a model's pickles and writes their tensors as safetensors.

Started by :mod:`sensmerge.models.pickles` where the caller asks for it. torch reads the pickles
with ``weights_only``, which constructs tensors and plain containers and refuses everything else.

Each line of its output is a JSON object: ``done`` and ``total`` bytes, a ``note`` for the user, or
an ``error`` at the end.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge.errors import InputError, first_line
from sensmerge.models.dtypes import TORCH, dtype_name
from sensmerge.reading import LARGE, object_of

if TYPE_CHECKING:
    import torch

_INDEX_END = ".bin.index.json"
# Bytes written at a time.
_PIECE = 16 << 20


def main(folder: Path, target: Path, files: list[str]) -> None:
    """Convert the pickles of a model.

    Args:
        folder: The model's folder.
        target: The folder to write to, which exists.
        files: Names of the pickles: of the index first, where there is one.

    Raises:
        InputError: A file is not a pickle of tensors, or lacks one that the index places in it.
        OSError: A file cannot be read or written.
    """
    index = object_of(folder / files[0], LARGE) if files[0].endswith(_INDEX_END) else None
    shards = files if index is None else files[1:]
    tied = _tied(folder)
    done, total = 0, sum((folder / shard).stat().st_size for shard in shards)
    places: dict[str, str] = {}
    for shard in shards:
        tensors = _load(folder / shard)
        if index is not None:
            _check(folder / files[0], index["weight_map"], shard, tensors)
        for name in _twins(tensors) if tied else []:
            del tensors[name]
            _say(note=f"{folder}: '{name}' is left out: it is tied to another tensor")
        written = _renamed(shard, alone=index is None)
        for size in _write(target / written, folder / shard, tensors):
            _say(done=min(done + size, total), total=total)
        done += (folder / shard).stat().st_size
        places |= dict.fromkeys(tensors, written)
    if index is not None:
        text = json.dumps({"metadata": {}, "weight_map": places}, indent=2)
        (target / "model.safetensors.index.json").write_text(text)


def _load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickle, mapped where its format allows that."""
    import torch

    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors, which could run code, and is not read: "
            f"{first_line(error)}"
        ) from None
    except OSError:
        raise
    except Exception as error:
        # Of another format, or damaged: torch raises whatever its parts stumble over.
        raise InputError(f"{path}: is not a file of torch.save: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    for name, tensor in content.items():
        if not isinstance(tensor, torch.Tensor) or not isinstance(name, str):
            raise InputError(
                f"{path}: holds a {type(tensor).__name__} under '{name}', where a model has a "
                "tensor; it is not a model's weights alone"
            )
        if tensor.layout != torch.strided or dtype_name(tensor) not in TORCH:
            raise InputError(
                f"{path}: tensor '{name}': is {tensor.layout}, {tensor.dtype}, which safetensors "
                "files cannot hold"
            )
    return {name: tensor.detach() for name, tensor in content.items()}


def _check(
    index: Path, places: dict[str, str], shard: str, tensors: dict[str, torch.Tensor]
) -> None:
    """Refuse a shard that does not hold exactly what the index places in it."""
    named = {name for name, place in places.items() if place == shard}
    for name in sorted(named.symmetric_difference(tensors)):
        what = "does not hold it" if name in named else "holds it too"
        raise InputError(
            f"{index}: tensor '{name}': the index places it in "
            f"'{places.get(name, 'no file')}', and '{shard}' {what}"
        )


def _tied(folder: Path) -> bool:
    """Whether the config says that the output head is the input embedding."""
    try:
        config = object_of(folder / "config.json")
    except (OSError, InputError):
        return False
    return config.get("tie_word_embeddings") is True


def _twins(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are the same view of the same memory as an earlier one."""
    seen: set[tuple[Any, ...]] = set()
    twins = []
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() > 0 and place in seen:
            twins.append(name)
        seen.add(place)
    return twins


def _renamed(shard: str, *, alone: bool) -> str:
    """The name of the safetensors file that takes a pickle's place."""
    if alone:
        adapter = Path(shard).stem == "adapter_model"
        return f"{'adapter_model' if adapter else 'model'}.safetensors"
    return re.sub(r"^pytorch_model", "model", Path(shard).stem) + ".safetensors"


def _write(path: Path, source: Path, tensors: dict[str, torch.Tensor]) -> Iterator[int]:
    """Write a safetensors file, and yield the number of bytes written so far, again and again.

    No more than one tensor is ever in memory, and that only if its entries are not contiguous.
    """
    import torch

    if not tensors:
        raise InputError(f"{source}: holds no tensors")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # The largest entries first, so that all are aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": TORCH[dtype_name(tensor)].stored,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    done = 0
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            bytes_ = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()
            for start in range(0, len(bytes_), _PIECE):
                piece = bytes_[start : start + _PIECE]
                file.write(piece.data)
                done += len(piece)
                yield done


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except ImportError:
        _say(error="reading pickles needs torch; pip install 'sensmerge[calibrate]'")
        sys.exit(2)
    except (InputError, OSError) as error:
        _say(error=str(error))
        sys.exit(2)
    # Without torch's clean-up, which takes longer than a small model's conversion.
    sys.stdout.flush()
    os._exit(0)
