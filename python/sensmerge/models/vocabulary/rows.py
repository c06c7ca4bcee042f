"""The rules by which every model of a merge gets a row for every token of the output.

A model has a row of its own for a token that its tokenizer has. One that lacks the token takes the
base's row; where the base lacks it too, that of the only model that has it, or the mean of those of
all models that do; zeros where none does. So a token that one model alone knows is that model's in
the output, whatever its weight, and a task vector is zero where its expert lacks a token.

Where the recipe names no tokenizer, a token that a model lacks may be one that it calls otherwise,
or lists nowhere: if the model has at that id no token, or one that the output lacks, the row at that
id is its own.

A row without a token is padding: a model's own where it has padding at that place, otherwise that
of the model whose vocabulary the output has; beyond that model's rows, the mean of the model's rows
of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

# A run of rows: the number of the source that they are in, the first of them, and their number.
Run = list[int]


@dataclass(frozen=True)
class Known:
    """What a model knows.

    Attributes:
        ids: The id of every token in its tokenizer.
        rows: The number of rows of its embedding. A token with a larger id has no row.
    """

    ids: Mapping[str, int]
    rows: int


@dataclass(frozen=True)
class Chosen:
    """The row that is chosen for a single token.

    Attributes:
        model: The number of the model that it is in; None for zeros.
        row: Its index in that model; None for the model's row of the token itself.
        default: Whether nothing is chosen but what any token gets.
        force: Whether models that have the token take it too.
    """

    model: int | None = None
    row: int | None = None
    default: bool = False
    force: bool = False


@dataclass(frozen=True)
class Wanted:
    """The vocabulary of the output.

    Attributes:
        ids: The id of every token.
        rows: The number of rows.
        home: The number of the model whose padding the output has.
        renamed: Whether a token may have another name in a model, under the same id.
        chosen: Rows that are chosen for single tokens.
    """

    ids: Mapping[str, int]
    rows: int
    home: int = 0
    renamed: bool = False
    chosen: Mapping[str, Chosen] = field(default_factory=dict)


# The origin of a row: the models and their rows of which it is the mean; zeros for none.
_Origin = tuple[tuple[int, int], ...]


def selections(
    wanted: Wanted, models: Sequence[Known], base: int | None
) -> list[dict[str, Any] | None]:
    """The rows of every model, as the core's request has them.

    Args:
        wanted: The vocabulary of the output.
        models: All models, in the order in which the core numbers them.
        base: The number of the base; None if there is none.

    Returns:
        For every model its selection of rows; None if they are its own, all and in their order.
    """
    if not wanted.chosen and all(_same(wanted, model) for model in models):
        return [None] * len(models)
    by_id: dict[int, str] = {}
    for token, place in wanted.ids.items():
        by_id.setdefault(place, token)
    places, tokens = sorted(by_id), [by_id[place] for place in sorted(by_id)]
    own = [_own(model, tokens) for model in models]
    if wanted.renamed:
        for model, rows in zip(models, own, strict=True):
            _find_renamed(model, wanted, places, rows)
    shared = _shared(tokens, own, wanted.chosen, base)
    found = []
    for number, rows in enumerate(own):
        padding = _Padding(wanted, models, number)
        found.append(_selection(places, rows, shared, padding))
    return found


def _same(wanted: Wanted, model: Known) -> bool:
    """Whether a model's rows are those of the output, all and in their order."""
    if model.rows != wanted.rows:
        return False
    return model.ids is wanted.ids or model.ids == wanted.ids


def _own(model: Known, tokens: Sequence[str]) -> list[int]:
    """A model's own row of every token; -1 where it has none."""
    rows = model.rows
    found = map(model.ids.get, tokens)
    return [-1 if row is None or row >= rows else row for row in found]


def _find_renamed(model: Known, wanted: Wanted, places: Sequence[int], rows: list[int]) -> None:
    """Fill in a model's own rows of tokens that it calls otherwise, or lists nowhere."""
    missing = [index for index, row in enumerate(rows) if row < 0]
    names = {place: token for token, place in model.ids.items()} if missing else {}
    for index in missing:
        place = places[index]
        if place < model.rows and names.get(place) not in wanted.ids:
            rows[index] = place


def _shared(
    tokens: Sequence[str],
    own: Sequence[list[int]],
    chosen: Mapping[str, Chosen],
    base: int | None,
) -> dict[int, tuple[_Origin, bool]]:
    """The rows of tokens that a model lacks or for which a row is chosen.

    By the token's place in the list: the row of models that lack it, and whether the others take it
    too.
    """
    asked = [place for place, rows in enumerate(zip(*own, strict=True)) if min(rows) < 0]
    found = {}
    for place in asked:
        found[place] = (_default([rows[place] for rows in own], base), False)
    for place, token in enumerate(tokens) if chosen else ():
        said = chosen.get(token)
        if said is None:
            continue
        rows = [rows[place] for rows in own]
        if said.default:
            origin = _default(rows, base)
        elif said.model is None:
            origin = ()
        else:
            origin = ((said.model, rows[said.model] if said.row is None else said.row),)
        found[place] = (origin, said.force)
    return found


def _default(rows: Sequence[int], base: int | None) -> _Origin:
    """The row that is taken for a token by models that lack it."""
    if base is not None and rows[base] >= 0:
        return ((base, rows[base]),)
    return tuple((number, row) for number, row in enumerate(rows) if row >= 0)


class _Padding:
    """The rows of a model at places without a token."""

    def __init__(self, wanted: Wanted, models: Sequence[Known], number: int) -> None:
        self.number, self.own_rows = number, models[number].rows
        self.wanted_rows = wanted.rows
        self._home, self._home_rows = wanted.home, models[wanted.home].rows
        self._ids, self._home_ids = models[number].ids, models[wanted.home].ids

    @cached_property
    def _taken(self) -> set[int]:
        return set(self._ids.values())

    @cached_property
    def _taken_at_home(self) -> set[int]:
        return set(self._home_ids.values())

    def row(self, place: int) -> tuple[int, int] | None:
        """The model and its row; None for the mean of all rows of tokens."""
        if place >= self._home_rows or place in self._taken_at_home:
            return None
        own = place < self.own_rows and place not in self._taken
        return (self.number if own else self._home), place


def _selection(
    places: Sequence[int],
    own: Sequence[int],
    shared: Mapping[int, tuple[_Origin, bool]],
    padding: _Padding,
) -> dict[str, Any] | None:
    """The selection of one model."""
    number, count = padding.number, padding.wanted_rows
    sources = _Sources(number)
    # The source of every row, and its row there. Most rows are the model's own, of number 0.
    of, rows = [0] * count, [-1] * count
    for place, row in zip(places, own, strict=True):
        rows[place] = row
    for index, (origin, force) in shared.items():
        if own[index] < 0 or force:
            of[places[index]], rows[places[index]] = sources.place(origin)
    of_tokens = set(places) if len(places) < count else ()
    for place in range(count) if len(places) < count else ():
        if place not in of_tokens:
            spare = padding.row(place)
            of[place], rows[place] = sources.mean() if spare is None else sources.place((spare,))
    runs = _runs(of, rows)
    if padding.own_rows == count and runs == [[0, 0, count]]:
        return None
    tokens = []
    if sources.has_mean:
        tokens = _runs([of[place] for place in places], [rows[place] for place in places])
    return {"rows": {"of": sources.plain(tokens), "runs": runs}}


def _runs(of: Sequence[int], rows: Sequence[int]) -> list[Run]:
    """Rows as runs of consecutive ones."""
    runs: list[Run] = []
    source = end = -1
    count = 0
    for here, row in zip(of, rows, strict=True):
        if here == source and row == end:
            count += 1
        else:
            if count:
                runs.append([source, end - count, count])
            source, count = here, 1
        end = row + 1
    if count:
        runs.append([source, end - count, count])
    return runs


class _Sources:
    """The sources of a model's rows: its own tensor, those of others, zeros and means."""

    def __init__(self, own: int) -> None:
        self._numbers: dict[_Origin | str, int] = {((own, 0),): 0}
        # The rows of every mean: of each of its models, those whose mean is taken.
        self._means: dict[tuple[int, ...], list[list[int]]] = {}

    def place(self, origin: _Origin) -> tuple[int, int]:
        """The source of an origin and its row there."""
        if not origin:
            return self._number("zeros"), 0
        owners = tuple(model for model, _ in origin)
        source = self._number(tuple((model, 0) for model in owners))
        if len(origin) == 1:
            return source, origin[0][1]
        of_owners = self._means.setdefault(owners, [[] for _ in owners])
        for rows, (_, row) in zip(of_owners, origin, strict=True):
            rows.append(row)
        return source, len(of_owners[0]) - 1

    def mean(self) -> tuple[int, int]:
        """The source that is the mean of all rows of tokens, and its row there."""
        return self._number("mean"), 0

    @property
    def has_mean(self) -> bool:
        """Whether the mean of all rows of tokens is among them."""
        return "mean" in self._numbers

    def plain(self, tokens: list[Run]) -> list[dict[str, Any]]:
        """The sources as the core's request has them.

        Args:
            tokens: The runs of all rows of tokens; not needed without their mean.
        """
        named = [self._plain(key) for key in self._numbers]
        if self.has_mean:
            mean = {
                "mean_row": {"rows": {"of": [each or _ONE_ZERO for each in named], "runs": tokens}}
            }
            named = [mean if each is None else each for each in named]
        return [each for each in named if each is not None]

    def _number(self, key: _Origin | str) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _plain(self, key: _Origin | str) -> dict[str, Any] | None:
        """One source; None for the mean of all rows."""
        if isinstance(key, str):
            return _ONE_ZERO if key == "zeros" else None
        owners = tuple(model for model, _ in key)
        if len(owners) == 1:
            return {"model": owners[0]}
        parts = zip(owners, self._means[owners], strict=True)
        return {
            "mean": [
                {"rows": {"of": [{"model": model}], "runs": _runs([0] * len(rows), rows)}}
                for model, rows in parts
            ]
        }


_ONE_ZERO: dict[str, Any] = {"zeros": 1}
