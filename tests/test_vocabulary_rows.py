"""The rows that models get for the tokens of the output, against rows picked token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sensmerge.models.vocabulary.rows import Chosen, Known, Wanted, selections

Rows = NDArray[np.float64]

TOKENS = [f"t{place}" for place in range(12)]


def matrix(model: int, rows: int) -> Rows:
    """Rows that tell models and places apart."""
    return 100.0 * (model + 1) + np.arange(rows, dtype=np.float64)[:, None]


def evaluated(selection: dict[str, Any], matrices: Sequence[Rows]) -> Rows:
    """The rows of a selection, as the core picks them."""
    [(kind, said)] = selection.items()
    if kind == "model":
        return matrices[int(said)]
    if kind == "zeros":
        return np.zeros((int(said), 1))
    if kind == "mean":
        return np.asarray(np.mean([evaluated(each, matrices) for each in said], axis=0))
    if kind == "mean_row":
        return np.asarray(evaluated(said, matrices).mean(axis=0, keepdims=True))
    of = [evaluated(each, matrices) for each in said["of"]]
    parts = []
    for source, first, count in said["runs"]:
        assert first + count <= len(of[source])
        parts.append(of[source][first : first + count])
    return np.concatenate(parts)


def oracle(wanted: Wanted, models: Sequence[Known], base: int | None, number: int) -> Rows:
    """The rows of one model, token by token."""
    matrices = [matrix(place, model.rows) for place, model in enumerate(models)]

    def own(model: int, token: str) -> Rows | None:
        ids = models[model].ids
        place = ids.get(token)
        if wanted.renamed and (place is None or place >= models[model].rows):
            place = wanted.ids[token]
            there = [other for other, at in ids.items() if at == place]
            if there and there[0] in wanted.ids:
                return None
        return None if place is None or place >= models[model].rows else matrices[model][place]

    def default(token: str) -> Rows:
        if base is not None and (row := own(base, token)) is not None:
            return row
        rows = [row for model in range(len(models)) if (row := own(model, token)) is not None]
        return np.asarray(np.mean(rows, axis=0)) if rows else np.zeros(1)

    result = np.full((wanted.rows, 1), np.nan)
    for token, place in wanted.ids.items():
        row = own(number, token)
        said = wanted.chosen.get(token)
        other = default(token)
        if said is not None and not said.default:
            other = np.zeros(1)
            if said.model is not None:
                found = (
                    own(said.model, token) if said.row is None else matrices[said.model][said.row]
                )
                assert found is not None
                other = found
        result[place] = other if row is None or (said is not None and said.force) else row
    mean = result[sorted(wanted.ids.values())].mean(axis=0) if wanted.ids else None
    home = models[wanted.home]
    for place in sorted(set(range(wanted.rows)) - set(wanted.ids.values())):
        if place < home.rows and place not in home.ids.values():
            free = place < models[number].rows and place not in models[number].ids.values()
            result[place] = matrices[number if free else wanted.home][place]
        else:
            result[place] = mean
    return result


@st.composite
def known(draw: st.DrawFn) -> Known:
    """A model with some of the tokens, in any order, perhaps with gaps and padding."""
    tokens = draw(st.permutations(TOKENS))[: draw(st.integers(1, len(TOKENS)))]
    places = draw(st.permutations(range(len(tokens) + draw(st.integers(0, 2)))))
    rows = draw(st.integers(1, len(TOKENS) + 4))
    return Known(dict(zip(tokens, places, strict=False)), rows)


@st.composite
def merges(draw: st.DrawFn) -> tuple[Wanted, list[Known], int | None]:
    """Models, with a base or without, and a vocabulary of the output, perhaps one of theirs."""
    models = draw(st.lists(known(), min_size=1, max_size=4))
    home = draw(st.integers(0, len(models) - 1))
    ids = draw(st.sampled_from([models[home].ids, draw(known()).ids]))
    size = max(ids.values()) + 1
    rows = draw(st.sampled_from([max(size, models[home].rows), size, size + 5]))
    chosen = {}
    for token in draw(st.lists(st.sampled_from(sorted(ids)), max_size=3)):
        model = draw(st.integers(0, len(models) - 1))
        row = draw(st.integers(0, models[model].rows - 1))
        force = draw(st.booleans())
        chosen[token] = draw(
            st.sampled_from(
                [
                    Chosen(force=force),
                    Chosen(model=model, row=row, force=force),
                    Chosen(default=True, force=force),
                ]
            )
        )
    base = draw(st.sampled_from([0, None]))
    return Wanted(ids, rows, home, draw(st.booleans()), chosen), models, base


@settings(deadline=None)
@given(merges())
def test_every_token_gets_the_row_that_the_rules_give_it(
    merge: tuple[Wanted, list[Known], int | None],
) -> None:
    wanted, models, base = merge
    matrices = [matrix(place, model.rows) for place, model in enumerate(models)]
    for number, selection in enumerate(selections(wanted, models, base)):
        found = matrices[number] if selection is None else evaluated(selection, matrices)
        np.testing.assert_allclose(found, oracle(wanted, models, base, number))


@settings(deadline=None)
@given(st.permutations(range(len(TOKENS))))
def test_the_order_of_ids_does_not_matter(places: list[int]) -> None:
    ids = {token: place for place, token in enumerate(TOKENS)}
    models = [Known(ids, len(TOKENS)), Known(dict(zip(TOKENS, places, strict=True)), len(TOKENS))]
    own, other = selections(Wanted(ids, len(TOKENS)), models, 0)
    assert own is None
    matrices = [matrix(place, len(TOKENS)) for place in range(2)]
    found = matrices[1] if other is None else evaluated(other, matrices)
    np.testing.assert_array_equal(found, matrices[1][places])


def test_models_with_the_same_tokens_keep_their_rows() -> None:
    ids = {token: place for place, token in enumerate(TOKENS)}
    # Whatever padding they have, and whether or not their tokens are told.
    for each in (ids, {}):
        models = [Known(each, 16), Known(dict(each), 16)]
        assert selections(Wanted(each, 16), models, 0) == [None, None]


def test_a_token_of_another_name_is_the_same_where_no_tokenizer_is_named() -> None:
    base, other = {"a": 0, "b": 1, "c": 2}, {"a": 0, "x": 1}
    models = [Known(base, 3), Known(other, 3)]
    assert selections(Wanted(base, 3, renamed=True), models, 0) == [None, None]
    named = selections(Wanted(base, 3), models, 0)
    runs = [[0, 0, 1], [1, 1, 2]]
    assert named == [None, {"rows": {"of": [{"model": 1}, {"model": 0}], "runs": runs}}]
    # A token that has an id elsewhere is no other's name.
    swapped = [Known(base, 3), Known({"a": 0, "c": 1, "x": 2}, 3)]
    own, found = selections(Wanted(base, 3, renamed=True), swapped, 0)
    runs = [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert (own, found) == (None, {"rows": {"of": [{"model": 1}, {"model": 0}], "runs": runs}})


def test_rows_without_tokens_are_cut_or_filled() -> None:
    models = [Known({}, 3), Known({}, 4), Known({}, 2)]
    own, more, fewer = selections(Wanted({}, 3), models, 0)
    assert own is None
    assert more == {"rows": {"of": [{"model": 1}], "runs": [[0, 0, 3]]}}
    assert fewer == {"rows": {"of": [{"model": 2}, {"model": 0}], "runs": [[0, 0, 2], [1, 2, 1]]}}


@pytest.mark.parametrize("base", [0, None])
def test_a_token_of_one_model_is_that_models_in_all(base: int | None) -> None:
    models = [Known({"a": 0}, 1), Known({"b": 0}, 1), Known({"a": 0}, 1)]
    wanted = Wanted({"a": 0, "b": 1}, 2)
    matrices = [matrix(place, 1) for place in range(3)]
    for number, selection in enumerate(selections(wanted, models, base)):
        assert selection is not None
        found = evaluated(selection, matrices)[:, 0]
        first = [100.0, 100.0 if base == 0 else 200.0, 300.0][number]
        np.testing.assert_array_equal(found, [first, 200.0])
