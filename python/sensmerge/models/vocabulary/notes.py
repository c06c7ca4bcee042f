"""What the user is told of vocabularies: tokens that move, go or come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sensmerge.models.opened import Model, Models
    from sensmerge.models.vocabulary.output import OutputVocabulary


def notes(models: Models, output: OutputVocabulary, aligned: Iterable[Model]) -> list[str]:
    """Notes on the output's vocabulary.

    Args:
        models: The recipe's models.
        output: The output's vocabulary.
        aligned: The models of which other rows are taken than their own in their order.
    """
    found = _of_output(models, output)
    said = {model.path: model for model in aligned}
    for model in models.places.values():
        renamed = _renamed(model, models, output)
        found += _of_renamed(model.name, renamed)
        if model.path in said:
            found += _of_model(model, models, output, renamed)
    if any("not in the output's tokenizer" in note for note in found):
        found.append("tokenizer_source: union would keep the tokens that are left out")
    return found


def _of_output(models: Models, output: OutputVocabulary) -> list[str]:
    found = []
    if output.ordinary:
        found.append(
            f"{output.ordinary} of other models' ordinary tokens are added to the tokenizer of "
            f"{output.home.name}: they are found in text as they stand, before it is split; the "
            "other models' own rules for splitting text (a BPE's merges) are lost"
        )
    rows = models.template.token_rows
    if output.rows is None or output.rows == rows:
        return found
    found.append(
        f"the output has {output.rows} rows for tokens where {models.template.name} has {rows}; "
        "vocab_size of its config says so"
    )
    return found


def without_rows(models: Models, output: OutputVocabulary) -> list[str]:
    """A note on tokens of the output that no model has a row for."""
    if output.ids is None or output.rows is None:
        return []
    known = [
        (found.ids, model.token_rows or 0)
        for model in models.places.values()
        if (found := models.tokens(model)) is not None
    ]
    if any(ids is output.ids and max(ids.values(), default=-1) < rows for ids, rows in known):
        return []
    homeless = [
        token for token in output.ids if not any(ids.get(token, rows) < rows for ids, rows in known)
    ]
    if not homeless:
        return []
    return [
        f"{_count(homeless, 'token')} of the output's tokenizer have no row in any model: theirs "
        "are zeros"
    ]


def _renamed(model: Model, models: Models, output: OutputVocabulary) -> dict[str, str]:
    """The tokens that a model has at ids of others that it lacks, each with the output's token."""
    known = models.tokens(model)
    if output.named or output.ids is None or known is None or known.ids is output.ids:
        return {}
    ours: Mapping[str, int] = output.ids
    tokens = {place: token for token, place in ours.items()}
    found = {}
    for token, place in known.ids.items():
        other = tokens.get(place)
        if token not in ours and other is not None and other not in known.ids:
            found[token] = other
    return found


def _of_renamed(name: str, renamed: Mapping[str, str]) -> list[str]:
    if not renamed:
        return []
    token, ours = next(iter(renamed.items()))
    return [
        f"{name}: {len(renamed)} tokens stand at ids where the output's tokenizer has others "
        f"('{token}' for '{ours}'): their rows are merged as those of one token; with a "
        "tokenizer_source, rows are matched by token alone"
    ]


def _of_model(
    model: Model, models: Models, output: OutputVocabulary, renamed: Mapping[str, str]
) -> list[str]:
    known, rows = models.tokens(model), model.token_rows or 0
    if output.ids is None or known is None:
        return _by_index(model.name, rows, output.rows or 0)
    theirs = {token: row for token, row in known.ids.items() if row < rows}
    ours: Mapping[str, int] = output.ids
    moved = [token for token, row in theirs.items() if ours.get(token, row) != row]
    lost = [token for token in theirs if token not in ours and token not in renamed]
    names = {place: token for token, place in theirs.items()}
    lacking = [
        token
        for token, place in ours.items()
        if token not in theirs and (output.named or place >= rows or names.get(place) in ours)
    ]
    found = []
    if moved:
        one = moved[0]
        found.append(
            f"{model.name}: {_count(moved, 'token')} have other ids than in the output's tokenizer "
            f"({theirs[one]} and {ours[one]} for '{one}'): rows are matched by token, not by id"
        )
    if lost:
        found.append(
            f"{model.name}: {_count(lost, 'token')} are not in the output's tokenizer: their rows "
            "are left out"
        )
    if lacking and not output.united:
        found.append(
            f"{model.name}: {_count(lacking, 'token')} of the output's tokenizer are not in its "
            "own: their rows are taken from models that have them"
        )
    return found or _by_index(model.name, rows, output.rows or 0)


def _by_index(name: str, rows: int, wanted: int) -> list[str]:
    if rows > wanted:
        return [
            f"{name}: has {rows} rows for tokens and the output {wanted}: the others are left out"
        ]
    if rows < wanted:
        return [
            f"{name}: has {rows} rows for tokens and the output {wanted}: the others are the "
            "base's or, beyond those, the mean of its own"
        ]
    return []


def _count(tokens: Sequence[str], noun: str) -> str:
    """How many tokens, and the first of them."""
    shown = ", ".join(f"'{token}'" for token in tokens[:3])
    return f"{len(tokens)} {noun}s ({shown}{', ...' if len(tokens) > 3 else ''})"
