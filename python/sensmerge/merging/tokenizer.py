"""The tokenizer of the merged model.

Its files are those of the tokenizer that the recipe names, edited where tokens are added or the
chat template is replaced.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge.errors import InputError
from sensmerge.merging.templates import (
    OLD_TEMPLATE_FILE,
    TEMPLATE_FILE,
    TEMPLATE_KEY,
    chosen_template,
    template_notes,
)
from sensmerge.models.folders import tokenizer_files
from sensmerge.models.vocabulary.output import OutputVocabulary, output_vocabulary
from sensmerge.models.vocabulary.tokens import ADDED, CONFIG, DECODER, TOKENIZER
from sensmerge.reading import LARGE, is_folder, object_of

if TYPE_CHECKING:
    from sensmerge.models import Models
    from sensmerge.recipe import Recipe


@dataclass(frozen=True)
class TokenizerFiles:
    """The files of the merged model's tokenizer.

    Attributes:
        copies: Files to copy byte for byte.
        texts: Files to write: name and content.
        notes: Notes for the user.
    """

    copies: list[Path] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def merged_tokenizer(recipe: Recipe, models: Models) -> TokenizerFiles:
    """The tokenizer's files.

    Raises:
        InputError: There is no such tokenizer or chat template; or one of its files cannot be
            edited, is a link that leads outside its folder, or is not a regular file.
        OSError: A file cannot be examined or read.
    """
    output = output_vocabulary(recipe, models)
    folder = output.folder
    files = {path.name: path for path in tokenizer_files(folder)} if is_folder(folder) else {}
    if not files:
        said = [f"{folder}: has no tokenizer files, so the merged model has none"]
        return TokenizerFiles(notes=said)
    template = chosen_template(recipe, models, folder)
    texts = _with_tokens(files, output)
    notes = []
    if template is not None:
        _with_template(files, texts, template)
        notes = template_notes(template, output.ids)
    copies = [path for name, path in files.items() if name not in texts]
    return TokenizerFiles(copies, list(texts.items()), notes)


def _with_tokens(files: dict[str, Path], output: OutputVocabulary) -> dict[str, str]:
    """The files that change where tokens are added."""
    if not output.added:
        return {}
    ids = output.ids or {}
    listed = {
        token: {"id": ids[token], "content": token, **flags}
        for token, flags in output.added.items()
    }
    texts = {}
    whole = TOKENIZER in files
    if whole:
        data = _read(files[TOKENIZER])
        kept = [
            each for each in data.get("added_tokens") or [] if each.get("content") not in listed
        ]
        data["added_tokens"] = sorted([*kept, *listed.values()], key=lambda each: each["id"])
        texts[TOKENIZER] = _written(data)
    config = _read(files[CONFIG]) if CONFIG in files else {}
    if DECODER in config or not whole:
        decoder = dict(config.get(DECODER) or {})
        for token, flags in output.added.items():
            decoder[str(ids[token])] = {"content": token, **flags}
        config[DECODER] = decoder
        texts[CONFIG] = _written(config)
    if ADDED in files or not whole:
        added = _read(files[ADDED]) if ADDED in files else {}
        texts[ADDED] = _written(added | {token: ids[token] for token in output.added})
    return texts


def _with_template(files: dict[str, Path], texts: dict[str, str], template: str) -> None:
    """Put a chat template in the place of every other, where transformers looks first."""
    texts[TEMPLATE_FILE] = template
    files.pop(OLD_TEMPLATE_FILE, None)
    if CONFIG in texts or CONFIG in files:
        config = json.loads(texts[CONFIG]) if CONFIG in texts else _read(files[CONFIG])
        if config.pop(TEMPLATE_KEY, None) is not None:
            texts[CONFIG] = _written(config)


def _read(path: Path) -> dict[str, Any]:
    try:
        return object_of(path, LARGE)
    except InputError as error:
        raise InputError(f"{error}; the file is to be changed") from None


def _written(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
