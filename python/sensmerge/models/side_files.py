"""The files of a model's folder that are neither weights nor pickles."""

from __future__ import annotations

from pathlib import Path

from sensmerge.reading import own_file

# Endings of weights in any format, of their indices, and of what trainers leave beside them.
_LEFT_OUT = (
    ".bin",
    ".bin.index.json",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".npz",
    ".onnx",
    ".ot",
    ".pkl",
    ".pt",
    ".pth",
    ".safetensors",
    ".safetensors.index.json",
    ".tflite",
)


def side_files(folder: Path) -> list[Path]:
    """A model's files besides its weights, by name; hidden files and folders are left out.

    Raises:
        InputError: One of them is a link that leads outside the folder, or not a regular file.
        OSError: One of them cannot be examined.
    """
    names = sorted(
        path.name
        for path in folder.iterdir()
        if not path.name.startswith(".") and not path.name.endswith(_LEFT_OUT) and not path.is_dir()
    )
    return [path for name in names if (path := own_file(folder, name)) is not None]
