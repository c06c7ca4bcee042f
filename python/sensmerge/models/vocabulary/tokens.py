"""The tokens of a model, read from its tokenizer's files, and none of its code.

Tokens are known by how the files write them: ``Ġthe`` and ``▁the`` are two.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sensmerge.models.vocabulary.sentencepiece import pieces
from sensmerge.reading import LARGE, content, is_folder, own_file, parsed

# Files that hold a vocabulary by itself, in the order in which transformers looks for them.
TOKENIZER = "tokenizer.json"
_PIECES = ("tokenizer.model", "spiece.model")
_LISTS = ("vocab.json", "vocab.txt")

# Files that add tokens to a vocabulary.
ADDED = "added_tokens.json"
CONFIG = "tokenizer_config.json"
DECODER = "added_tokens_decoder"

# Digits of an id.
_DIGITS = 10

# What a file says of an added token besides its text.
FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")


@dataclass(frozen=True)
class Tokens:
    """The tokens of a tokenizer.

    Attributes:
        ids: The id of every token.
        added: The flags of every token that was added to the vocabulary, as ``tokenizer.json`` has
            them.
    """

    ids: dict[str, int] = field(default_factory=dict)
    added: dict[str, dict[str, bool]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of rows that its ids need: the largest id and one."""
        return max(self.ids.values(), default=-1) + 1


class Vocabularies:
    """The tokens of model folders. Every file is read once, and files of the same content once."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._by_folder: dict[Path, Tokens | None] = {}
        self._by_content: dict[bytes, Tokens] = {}

    def of(self, folder: Path) -> Tokens | None:
        """The tokens of a folder; None if it has no files that tell them.

        Folders with the same files have the same object.

        Raises:
            InputError: One of the files is a link that leads outside the folder, or not a regular
                file.
            OSError: One of them cannot be examined.
        """
        if folder not in self._by_folder:
            self._by_folder[folder] = self._read(folder)
        return self._by_folder[folder]

    def _read(self, folder: Path) -> Tokens | None:
        if not is_folder(folder):
            return None
        names = (TOKENIZER, *_PIECES, *_LISTS, ADDED, CONFIG)
        files = {name: found for name in names if (found := _content(folder, name))}
        home = next((name for name in names[:-2] if name in files), None)
        if home is None:
            return None
        decoder = _mapping(files.get(CONFIG)).get(DECODER)
        added = [files.get(ADDED, b""), json.dumps(decoder, sort_keys=True).encode()]
        digest = hashlib.blake2b()
        for part in (home.encode(), files[home], *added):
            digest.update(len(part).to_bytes(8, "little") + part)
        key = digest.digest()
        if key not in self._by_content:
            ids, flags = _vocabulary(home, files[home])
            _add(ids, flags, _mapping(files.get(ADDED)), decoder)
            self._by_content[key] = Tokens(ids, flags)
        tokens = self._by_content[key]
        return tokens if tokens.ids else None


def _content(folder: Path, name: str) -> bytes:
    """A file's content; empty if it is missing."""
    path = own_file(folder, name)
    return b"" if path is None else content(path, LARGE)


def _vocabulary(name: str, written: bytes) -> tuple[dict[str, int], dict[str, dict[str, bool]]]:
    """The ids in a file that holds a vocabulary, and the flags of added tokens."""
    if name in _PIECES:
        return {piece: place for place, piece in enumerate(pieces(written))}, {}
    if name == "vocab.txt":
        # Not splitlines: a token may hold another line separator.
        lines = written.decode("utf-8", "replace").removesuffix("\n").split("\n")
        return {line.removesuffix("\r"): place for place, line in enumerate(lines)}, {}
    data = _mapping(written)
    if name == "vocab.json":
        return _whole_numbers(data), {}
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[str, int] = {}
    if isinstance(vocabulary, dict):
        ids = _whole_numbers(vocabulary)
    elif isinstance(vocabulary, list):
        # Unigram: a list of tokens and scores, by id.
        pairs = enumerate(vocabulary)
        ids = {str(pair[0]): place for place, pair in pairs if isinstance(pair, list) and pair}
    flags = {}
    listed = data.get("added_tokens")
    for token in listed if isinstance(listed, list) else []:
        place = token.get("id") if isinstance(token, dict) else None
        if type(place) is int and isinstance(token.get("content"), str):
            ids[token["content"]] = place
            flags[token["content"]] = _flags(token)
    return ids, flags


def _add(
    ids: dict[str, int], flags: dict[str, dict[str, bool]], added: dict[str, Any], decoder: Any
) -> None:
    """Add the tokens that other files name, where the vocabulary does not have them itself."""
    for token, place in _whole_numbers(added).items():
        if ids.setdefault(token, place) == place:
            flags.setdefault(token, _flags({}))
    for place, token in (decoder if isinstance(decoder, dict) else {}).items():
        text = token.get("content") if isinstance(token, dict) else None
        if not isinstance(text, str) or not (place.isdecimal() and len(place) <= _DIGITS):
            continue
        if ids.setdefault(text, int(place)) == int(place):
            flags.setdefault(text, _flags(token))


def _flags(token: dict[str, Any]) -> dict[str, bool]:
    return {flag: bool(token.get(flag, False)) for flag in FLAGS}


def _whole_numbers(data: dict[str, Any]) -> dict[str, int]:
    return {token: place for token, place in data.items() if type(place) is int and place >= 0}


def _mapping(written: bytes | None) -> dict[str, Any]:
    """The content as a JSON object; empty if it is none: such files are copied all the same."""
    try:
        data = parsed(written, LARGE) if written else None
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
