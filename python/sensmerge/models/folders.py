"""The files of a model's folder other than weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sensmerge.reading import is_folder, object_of, own_file

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


def read_config(model: Path) -> dict[str, Any]:
    """Read a model's ``config.json``; empty if it has none.

    Raises:
        InputError: The file is a link that leads outside the folder, not a regular file, too
            large, or not a JSON object.
        OSError: It cannot be examined or read.
    """
    path = own_file(model, "config.json") if is_folder(model) else None
    return {} if path is None else object_of(path)


def tokenizer_files(model: Path) -> list[Path]:
    """The files of a model's folder that make up its tokenizer.

    Raises:
        InputError: One of them is a link that leads outside the folder, or not a regular file.
        OSError: One of them cannot be examined.
    """
    return [path for name in TOKENIZER_FILES if (path := own_file(model, name)) is not None]
