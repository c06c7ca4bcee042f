"""Checks of vocabularies: token ids against rows of the embedding, and models against each other.

Only tokenizer files and the headers of checkpoints are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sensmerge import _core

# Names of decoders' input embeddings in the Hugging Face layout.
INPUT_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
)


@dataclass(frozen=True)
class _Tokens:
    """The tokens in a tokenizer's files.

    Attributes:
        largest: The largest id of a token; None if the files hold no ids.
        added: Tokens that were added to the vocabulary, by id.
    """

    largest: int | None = None
    added: dict[int, str] = field(default_factory=dict)


def check(
    template: Path, tokenizer: Path, models: Sequence[tuple[str, Path]]
) -> tuple[str | None, list[str]]:
    """Check the output's vocabulary before the output is written.

    Args:
        template: The folder of the model whose tensors the output has.
        tokenizer: The folder that the output's tokenizer is copied from.
        models: Name and folder of the base, if there is one, and of every expert.

    Returns:
        The reason to refuse the merge, or None; and notes for the user.
    """
    read: dict[bytes, _Tokens] = {}
    refusal, notes = _fits(template, tokenizer, read)
    return refusal, notes + _disagreements(models, read)


def _fits(
    template: Path, tokenizer: Path, read: dict[bytes, _Tokens]
) -> tuple[str | None, list[str]]:
    """Compare ids with rows: a model fails on an id that has no row in its input embedding."""
    rows, largest = _rows(template), _tokens(tokenizer, read).largest
    if rows is None or largest is None or largest < rows:
        return None, []
    if tokenizer.resolve() == template.resolve():
        return None, [
            f"{template}: its tokenizer has ids up to {largest} and its input embedding {rows} "
            "rows; the merged model will fail on the tokens beyond them, as this one does"
        ]
    return (
        f"tokenizer_source: the tokenizer of {tokenizer} has ids up to {largest}, and the input "
        f"embedding of the merged model, which is {template}'s, {rows} rows: it would fail on the "
        "tokens beyond them; use tokenizer_source: base"
    ), []


def _rows(model: Path) -> int | None:
    """Number of rows of a model's input embedding; None if no tensor has a known name of one."""
    shapes = [
        tensor.shape
        for tensor in _core.Checkpoint(str(model)).tensors
        if ".".join(tensor.name.split(".")[-2:]) in INPUT_EMBEDDINGS
    ]
    return max((shape[0] for shape in shapes if len(shape) > 1), default=None)


def _disagreements(models: Sequence[tuple[str, Path]], read: dict[bytes, _Tokens]) -> list[str]:
    """A note for every two models that use the same ids for different added tokens."""
    notes: list[str] = []
    first: dict[int, tuple[str, str]] = {}
    for name, folder in models:
        differing: dict[str, list[tuple[int, str, str]]] = {}
        for place, token in sorted(_tokens(folder, read).added.items()):
            owner, theirs = first.setdefault(place, (name, token))
            if theirs != token:
                differing.setdefault(owner, []).append((place, theirs, token))
        for owner, found in differing.items():
            place, theirs, token = found[0]
            more = "" if len(found) == 1 else f", and so on for {len(found) - 1} more"
            notes.append(
                f"{owner} and {name}: token {place} is '{theirs}' in the first and '{token}' in "
                f"the second{more}; their rows are merged as if they were one token's"
            )
    return notes


def _tokens(model: Path, read: dict[bytes, _Tokens]) -> _Tokens:
    """The tokens in a model's files; a ``tokenizer.json`` that is in ``read`` is not parsed."""
    if not model.is_dir():
        return _Tokens()
    content = _content(model / "tokenizer.json")
    digest = hashlib.blake2b(content).digest()
    if digest not in read:
        read[digest] = _of_tokenizer(_parsed(content))
    said = read[digest]
    added = dict(said.added)
    for token, place in _mapping(model / "added_tokens.json").items():
        if isinstance(place, int):
            added[place] = token
    decoder = _mapping(model / "tokenizer_config.json").get("added_tokens_decoder")
    for place, token in (decoder if isinstance(decoder, dict) else {}).items():
        if place.isdecimal() and isinstance(token, dict) and "content" in token:
            added[int(place)] = str(token["content"])
    ids = list(added)
    if said.largest is not None:
        ids.append(said.largest)
    elif not content:
        vocabulary = _mapping(model / "vocab.json").values()
        ids += [place for place in vocabulary if isinstance(place, int)]
    return _Tokens(max(ids, default=None), added)


def _of_tokenizer(data: Any) -> _Tokens:
    """The tokens of a ``tokenizer.json``; its vocabulary maps tokens to ids or lists them by id."""
    data = data if isinstance(data, dict) else {}
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: list[int] = []
    if isinstance(vocabulary, dict):
        ids = [place for place in vocabulary.values() if isinstance(place, int)]
    elif isinstance(vocabulary, list):
        ids = [len(vocabulary) - 1]
    listed = data.get("added_tokens")
    added = {
        token["id"]: str(token["content"])
        for token in (listed if isinstance(listed, list) else [])
        if isinstance(token, dict) and isinstance(token.get("id"), int) and "content" in token
    }
    return _Tokens(max([*ids, *added], default=None), added)


def _mapping(path: Path) -> dict[str, Any]:
    data = _parsed(_content(path))
    return data if isinstance(data, dict) else {}


def _content(path: Path) -> bytes:
    """A file's content; empty if it is missing or cannot be read."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError:
        return b""


def _parsed(content: bytes) -> Any:
    """The content as JSON; None if it is not JSON, since such files are copied all the same."""
    try:
        return json.loads(content) if content else None
    except (ValueError, RecursionError):
        return None
