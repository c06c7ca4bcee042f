"""Messages about wrong keys and values of a file: key, fault, and probable intention."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Location = tuple[int | str, ...]

# A name of fewer letters than the first is never taken for a misspelling; up to the second number
# of letters one slip is allowed, in longer names two.
_TINY, _SHORT = 3, 7


@dataclass(frozen=True)
class Refusal:
    """One fault.

    Attributes:
        location: Its location: the keys and list indices that lead to it.
        reason: The fault, and what would be right.
    """

    location: Location
    reason: str

    def __str__(self) -> str:
        return f"{key_of(self.location)}: {self.reason}"


def key_of(location: Location) -> str:
    """A location as text, such as ``models[0].parameters.weight``."""
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    return key.removeprefix(".") or "recipe"


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """The first fault, with its key.

    Args:
        error: pydantic's error.
        root: The pydantic model that the file was read into.
    """
    return str(refusal(error.errors()[0], root))


def refusal(found: ErrorDetails, root: type[BaseModel]) -> Refusal:
    """One of pydantic's findings, in plain words.

    Args:
        found: An element of ``ValidationError.errors()``.
        root: The pydantic model that the file was read into.
    """
    return Refusal(found["loc"], _reason(found, root))


def _reason(found: ErrorDetails, root: type[BaseModel]) -> str:
    given = found.get("input")
    if found["type"] == "extra_forbidden":
        return unknown_key(found["loc"], root)
    if found["type"] == "missing":
        return "is missing"
    if found["type"] == "literal_error":
        expected = found["ctx"]["expected"].replace(" or ", ", ").split(",")
        return unknown_value(given, [part.strip(" '") for part in expected])
    if found["type"] in ("model_type", "dict_type"):
        return f"expected a mapping of keys to values, not '{given}'"
    message = found["msg"].removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}"


def unknown_value(given: Any, known: list[str]) -> str:
    """The reason for refusing an unknown value: the nearest known one, and all of them."""
    near = nearest(str(given), known)
    hint = "" if near is None else f"; did you mean '{near}'?"
    return f"unknown value '{given}'{hint}; known: {', '.join(known)}"


def unknown_key(location: Location, root: type[BaseModel]) -> str:
    """The reason for refusing an unknown key: the key that was probably meant."""
    key = meant(location, root)
    return "unknown key" + ("" if key is None else f"; did you mean '{key}'?")


def meant(location: Location, root: type[BaseModel]) -> str | None:
    """The key that was probably meant by an unknown one; None if none is similar.

    In this order: a key of the same name in another section; one of a similar name in the same
    section; one of a similar name elsewhere.
    """
    name, known = str(location[-1]), _known(location, root)
    if name in known:
        return known[name]
    near = nearest(name, _keys(_model_at(location[:-1], root)))
    if near is not None:
        return near
    elsewhere = nearest(name, known)
    return None if elsewhere is None else known[elsewhere]


def known_elsewhere(location: Location, root: type[BaseModel]) -> str | None:
    """The place at which a key of just this name is known; None if there is none."""
    return _known(location, root).get(str(location[-1]))


def _known(location: Location, root: type[BaseModel]) -> dict[str, str]:
    """The keys of all sections, and of those around a location, each with its place."""
    place = _model_at(location[:-1], root)
    beside = key_of(location[:-1]) if len(location) > 1 else ""
    return {
        key: ".".join(part for part in (prefix, section, key) if part)
        for start, prefix in ((root, ""), (place, beside))
        for section, model in reversed(list(_sections(start)))
        for key in _keys(model)
    }


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` is probably a misspelling of; None if none is similar."""
    most = 0 if len(name) < _TINY else 1 if len(name) <= _SHORT else 2
    # A slip changes the length by one, and the letters that only one of the two has by two.
    letters = set(name.lower())
    near = (
        other
        for other in known
        if abs(len(other) - len(name)) <= most and len(letters ^ set(other.lower())) <= 2 * most
    )
    distances = [(slips(name.lower(), other.lower()), other) for other in near]
    distance, other = min(distances, key=lambda each: each[0], default=(most + 1, ""))
    return other if distance <= most else None


def slips(one: str, other: str) -> int:
    """Number of letters that are wrong, missing, superfluous or swapped with the next one.

    The optimal string alignment distance, by dynamic programming: ``row[column]`` is the distance
    of the first ``place`` letters of ``one`` from the first ``column`` letters of ``other``.
    """
    before: list[int] = []
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, start=1):
        earlier, before, row = before, row, [place]
        for column, match in enumerate(other, start=1):
            least = min(
                before[column] + 1, row[column - 1] + 1, before[column - 1] + (letter != match)
            )
            if min(place, column) > 1 and one[place - 2 : place] == match + other[column - 2]:
                least = min(least, earlier[column - 2] + 1)
            row.append(least)
    return row[-1]


def _sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """A pydantic model itself, and those under its keys; not those in a list."""
    yield "", model
    for name, field in model.model_fields.items():
        if not str(field.annotation).startswith("list"):
            for inner in _models(field.annotation):
                yield field.alias or name, inner


def _model_at(location: Location, root: type[BaseModel]) -> type[BaseModel]:
    model = root
    for part in location:
        for name, field in model.model_fields.items():
            if part in (name, field.alias):
                model = next(_models(field.annotation), model)
                break
    return model


def _keys(model: type[BaseModel]) -> list[str]:
    known = getattr(model, "known_keys", None)
    if known is not None:
        return list(known())
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
