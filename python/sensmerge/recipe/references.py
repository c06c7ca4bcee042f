"""The places in a recipe at which models are named, whatever the form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sensmerge.refusals import Location

# Keys whose text names a model; in a mapping under them, that of `path` does.
_NAMING = ("base_model", "model", "tokenizer_source", "source")
# Sections in which the same keys mean something else.
_OTHERWISE = ("calibration", "parameters", "sensitivity")
# Where a tokenizer is chosen, these mean no model of such a name.
_WORDS = ("base", "union")


def references(data: dict[str, Any]) -> Iterator[tuple[Location, str]]:
    """Every name of a model in a recipe, with its location.

    Revisions and adapters are left out: of ``name@revision+adapter`` this is ``name``.
    """
    for location, text in _texts(data, (), naming=False):
        chooses = location[0] in ("tokenizer", "tokenizer_source")
        if not (chooses and text in _WORDS):
            name = text.removeprefix("model:") if chooses else text
            yield location, name.partition("+")[0].partition("@")[0]


def overrides(part: Any, at: Location = ()) -> Iterator[Location]:
    """Where a recipe says after which architecture mergekit looks for a model's tensors."""
    if isinstance(part, list):
        for place, each in enumerate(part):
            yield from overrides(each, (*at, place))
    elif isinstance(part, dict):
        if "model" in part and part.get("override_architecture") is not None:
            yield (*at, "override_architecture")
        for key, each in part.items():
            yield from overrides(each, (*at, key))


def _texts(part: Any, at: Location, *, naming: bool) -> Iterator[tuple[Location, str]]:
    if isinstance(part, str) and naming:
        yield at, part
    elif isinstance(part, list):
        for place, each in enumerate(part):
            yield from _texts(each, (*at, place), naming=False)
    elif isinstance(part, dict):
        for key, each in part.items():
            if key not in _OTHERWISE:
                named = key in _NAMING or (naming and key == "path")
                yield from _texts(each, (*at, key), naming=named)
