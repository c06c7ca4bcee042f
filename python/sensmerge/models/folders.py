"""The files of a model's folder other than weights."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from sensmerge.errors import InputError

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


def mode_of(path: Path, *, follow: bool = True) -> int | None:
    """A path's ``st_mode``, or None if there is no such file.

    Unlike ``Path.exists``, this does not take a file that cannot be examined for a missing one:
    when a disk or network fails, a merged model would otherwise silently lack its tokenizer.

    Args:
        path: The path.
        follow: Whether links are followed.

    Raises:
        OSError: The operating system cannot say whether the file exists.
    """
    try:
        return path.stat(follow_symlinks=follow).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        # A name that no file can have, such as one with a null character.
        return None


def is_folder(path: Path) -> bool:
    """Whether a path is a folder.

    Raises:
        OSError: It cannot be examined.
    """
    mode = mode_of(path)
    return mode is not None and stat.S_ISDIR(mode)


def read_config(model: Path) -> dict[str, Any]:
    """Read a model's ``config.json``; empty if it has none.

    Raises:
        InputError: The file is not a regular file or not a JSON object.
        OSError: It cannot be examined or read.
    """
    path = model / "config.json"
    mode = mode_of(path) if is_folder(model) else None
    if mode is None:
        return {}
    # Checked before opening: opening a pipe would wait for its writer.
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is not a regular file")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object")
    return config


def tokenizer_files(model: Path) -> list[Path]:
    """The files of a model's folder that make up its tokenizer.

    Raises:
        InputError: One of them is a link that leads outside the folder, or not a regular file.
        OSError: One of them cannot be examined.
    """
    return [path for name in TOKENIZER_FILES if (path := own_file(model, name)) is not None]


def own_file(model: Path, name: str) -> Path | None:
    """The path of a file in a model's folder, or None if the folder has no such file.

    Links may lead elsewhere in the folder or, in the Hub's cache, to its blobs.

    Raises:
        InputError: It is a link that leads outside or to nothing, or not a regular file.
        OSError: It cannot be examined.
    """
    path = model / name
    if mode_of(path, follow=False) is None:
        return None
    mode = mode_of(path)
    if mode is None:
        raise InputError(f"{path}: is a link to nothing")
    target, home = path.resolve(strict=True), model.resolve(strict=True)
    # A Hub cache holds models--org--name/snapshots/<commit>/ beside models--org--name/blobs/.
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        raise InputError(f"{path}: is a link that leads outside the model's folder")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is not a regular file")
    return path
