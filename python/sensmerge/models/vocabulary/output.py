"""The vocabulary of the output: its tokens, their ids, and the number of rows.

The output has the tokenizer that the recipe names, the base's by default. A union has the base's
tokens under their ids, then the others' in the order of the models: first what is a part of their
vocabularies, then what was added to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge.errors import InputError
from sensmerge.models.references import resolve
from sensmerge.models.vocabulary.tokens import Tokens
from sensmerge.recipe.tokenizer import BASE, UNION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sensmerge.models.opened import Model, Models
    from sensmerge.recipe import Recipe

# What a token that is found in text has by default, as in the tokenizers library.
_PLAIN = {
    "lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": False,
}  # fmt: skip


@dataclass(frozen=True)
class OutputVocabulary:
    """The vocabulary of the output.

    Attributes:
        ids: The id of every token; None if no file tells them.
        rows: The number of rows; None if no tensor has a known name of an embedding.
        folder: The folder that the tokenizer's files are taken from.
        home: The model of that folder, or the one that stands in where it is not in the merge.
        added: The flags of tokens that are added to those files, or are ordinary tokens there.
        ordinary: How many of these are ordinary tokens of other models.
        united: Whether the tokens of all models are among them.
        named: Whether the recipe names a tokenizer, if only the base's.
    """

    ids: dict[str, int] | None
    rows: int | None
    folder: Path
    home: Model
    added: dict[str, dict[str, bool]] = field(default_factory=dict)
    ordinary: int = 0
    united: bool = False
    named: bool = False


def output_vocabulary(recipe: Recipe, models: Models) -> OutputVocabulary:
    """The vocabulary that a recipe asks for.

    Raises:
        InputError: The tokenizer is nowhere, or its files do not tell its tokens where that is
            needed.
        OSError: A file cannot be examined.
    """
    wanted = recipe.wanted_tokenizer
    home, folder = _home(recipe, models)
    own = folder == home.path
    known = models.tokens(home) if own else models.vocabularies.of(folder)
    if known is None:
        chosen = wanted.source != BASE and folder != models.template.path
        if chosen or wanted.source == UNION or wanted.tokens or wanted.pad_to_multiple_of:
            raise InputError(
                f"tokenizer: {folder} has no tokenizer files that tell its tokens (tokenizer.json, "
                "tokenizer.model, vocab.json or vocab.txt)"
            )
        return OutputVocabulary(None, models.template.token_rows, folder, home)
    ids, ordinary = dict(known.ids), 0
    added: dict[str, dict[str, bool]] = {}
    if wanted.source == UNION:
        ordinary = _unite(ids, added, known, list(models.places.values()), models)
    free = count(Tokens(ids).size)
    for token in wanted.tokens:
        if token not in ids:
            ids[token], added[token] = next(free), dict(_PLAIN)
    if len(ids) == len(known.ids):
        # The same object: models with the same files need no comparison.
        ids = known.ids
    named = recipe.tokenizer is not None or recipe.tokenizer_source is not None
    rows = _rows(recipe, models, home, named, Tokens(ids))
    united = wanted.source == UNION
    return OutputVocabulary(ids, rows, folder, home, added, ordinary, united, named)


def _home(recipe: Recipe, models: Models) -> tuple[Model, Path]:
    """The model whose tokenizer the output has, and the folder of the tokenizer."""
    source = recipe.wanted_tokenizer.source
    if source in (BASE, UNION):
        return models.template, models.template.path
    found = models.named(source)
    if found is not None:
        return found, found.path
    return models.template, resolve(source, recipe.places)


def _rows(recipe: Recipe, models: Models, home: Model, named: bool, tokens: Tokens) -> int | None:
    """The number of rows.

    Where the recipe names no tokenizer, the model's, with its padding; otherwise the tokens',
    rounded as the recipe says.
    """
    own = home.token_rows
    if models.template.token_rows is None or own is None:
        return None
    multiple = recipe.wanted_tokenizer.pad_to_multiple_of
    if multiple is not None:
        return -(-tokens.size // multiple) * multiple
    return tokens.size if named else max(own, tokens.size)


def _unite(
    ids: dict[str, int],
    added: dict[str, dict[str, bool]],
    base: Tokens,
    models: Sequence[Model],
    opened: Models,
) -> int:
    """Add the tokens of all models to those of the base.

    Returns:
        The number of those that are ordinary tokens of their models.
    """
    flags = dict(base.added)
    ordinary = []
    for model in models:
        known, rows = opened.tokens(model), model.token_rows
        if known is None:
            continue
        for token, place in sorted(known.ids.items(), key=lambda each: each[1]):
            if rows is not None and place >= rows:
                continue
            if token in known.added:
                flags.setdefault(token, known.added[token])
            elif token not in ids:
                ordinary.append(token)
    # What one model has as an added token is one in the union.
    ordinary = [token for token in dict.fromkeys(ordinary) if token not in flags]
    free = count(base.size)
    for token in ordinary:
        ids[token], added[token] = next(free), dict(_PLAIN)
    for token, said in flags.items():
        if token not in base.added:
            added[token] = said
            if token not in ids:
                ids[token] = next(free)
    return len(ordinary)
