"""Experts with different vocabularies on the same text: ids and logits are matched by token.

Two experts agree if no id that both know stands for two tokens and no token has two ids. Then their
ids are the same, and logits are compared on the common prefix, padding included. Otherwise a sample
of one is given to the other with that one's ids, and logits are compared for the tokens that both
have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sensmerge.errors import InputError

if TYPE_CHECKING:
    from sensmerge.calibration.samples import Sample

# Columns of two matrices of logits: the first in each, and how many.
Columns = tuple[int, int, int]


@dataclass(frozen=True)
class Vocabulary:
    """What a model knows.

    Attributes:
        name: The model's name, for messages.
        ids: The id of every token of its tokenizer.
        size: The number of ids that it has embeddings for.
    """

    name: str
    ids: Mapping[str, int]
    size: int

    def agrees(self, other: Vocabulary) -> bool:
        """Whether ids of the two mean the same."""
        if self.ids is other.ids:
            return True
        tokens = {place: token for token, place in other.ids.items()}
        return all(
            other.ids.get(token, place) == place and tokens.get(place, token) == token
            for token, place in self.ids.items()
        )


def translated(sample: Sample, owner: Vocabulary, reader: Vocabulary) -> Sample:
    """A sample with the ids of another model.

    Args:
        sample: A sample of the owner.
        owner: The model whose tokenizer made it.
        reader: The model that is to read it.

    Raises:
        InputError: The sample has a token that the reader does not know.
    """
    tokens = {} if owner.agrees(reader) else {place: token for token, place in owner.ids.items()}
    ids = [reader.ids.get(tokens[place], -1) if place in tokens else place for place in sample.ids]
    for place, ours in zip(sample.ids, ids, strict=True):
        if not 0 <= ours < reader.size:
            token = next((token for token, at in owner.ids.items() if at == place), "?")
            raise InputError(
                f"{sample.place}: holds token {place} ({token!r}), which '{reader.name}' does not "
                "know; leave the sample out, or give the experts one vocabulary"
            )
    return sample if ids == sample.ids else replace(sample, ids=ids)


def common_columns(
    one: Vocabulary, other: Vocabulary, sizes: tuple[int, int]
) -> list[Columns] | None:
    """The logits that two models have for the same tokens, as runs of columns.

    None where they agree on their ids, so that their common first columns are compared.

    Args:
        one: The first model.
        other: The second.
        sizes: The number of logits that each gives.
    """
    if one.agrees(other):
        return None
    pairs = sorted(
        (place, theirs)
        for token, place in one.ids.items()
        if (theirs := other.ids.get(token, sizes[1])) < sizes[1] and place < sizes[0]
    )
    return _runs(pairs)


def _runs(pairs: Sequence[tuple[int, int]]) -> list[Columns]:
    runs: list[list[int]] = []
    for first, second in pairs:
        last = runs[-1] if runs else None
        if last is not None and (last[0] + last[2], last[1] + last[2]) == (first, second):
            last[2] += 1
        else:
            runs.append([first, second, 1])
    return [(first, second, count) for first, second, count in runs]
