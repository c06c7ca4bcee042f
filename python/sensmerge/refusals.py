"""What is wrong with a file that pydantic read, said by its key, with what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

Location = tuple[int | str, ...]


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """The first thing that is wrong, by its key.

    Args:
        error: What pydantic found.
        root: The model that the file was read into.
    """
    first = error.errors()[0]
    location = first["loc"]
    key = _key(location)
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key{_meant(location, root)}"
    if first["type"] == "missing":
        return f"{key}: is missing"
    if first["type"] == "literal_error":
        expected = first["ctx"]["expected"].replace(" or ", ", ").split(",")
        known = [part.strip(" '") for part in expected]
        hint = f"; did you mean '{_nearest(str(first['input']), known)}'?"
        return f"{key}: unknown value '{first['input']}'{hint}; known: {', '.join(known)}"
    if first["type"] in ("model_type", "dict_type"):
        return f"{key}: expected a mapping of keys to values, not '{first['input']}'"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message[:1].lower()}{message[1:]}"


def _key(location: Location) -> str:
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    return key.removeprefix(".") or "recipe"


def _meant(location: Location, root: type[BaseModel]) -> str:
    """The same key where it belongs or, where it belongs nowhere, the nearest key."""
    name = str(location[-1])
    place = _model_at(location[:-1], root)
    for start, prefix in ((place, _key(location[:-1]) if len(location) > 1 else ""), (root, "")):
        for section, model in _sections(start):
            if name in _keys(model):
                where = ".".join(part for part in (prefix, section, name) if part)
                return f"; did you mean '{where}'?"
    return f"; did you mean '{_nearest(name, _keys(place))}'?"


def _sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """A model itself, and those under its keys; not the models of a list."""
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
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _nearest(name: str, known: list[str]) -> str:
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
