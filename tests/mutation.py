"""Sound JSON made unsound: values somewhere in it are replaced, taken out, doubled or moved."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from hostile_files import EVIL

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 10**6, 2**31, 2**64, -(2**70), 10**39, 0.5, -0.0, 1e300,
    float("inf"), float("nan"), "", "a", "0", "1e9", "*", "..", "~nobody/x", "a+b+c", "auto", EVIL,
    "a" * 5000, [], [[]], [1, "a", None], {}, {"a": 1}, {"value": 1}, {"": None}, [0.5] * 40,
]  # fmt: skip
KEYS = ["", "a", "value", "filter", "model", "weight", "path", "0", "__class__", EVIL]

Path = tuple[str | int, ...]


def mutated(sound: Any) -> st.SearchStrategy[Any]:
    """A copy of a value with one to four changes."""

    @st.composite
    def changed(draw: st.DrawFn) -> Any:
        value = copy.deepcopy(sound)
        for _ in range(draw(st.integers(1, 4))):
            paths = list(_paths(value))
            value = _changed(value, draw(st.sampled_from(paths)), draw)
        return value

    return changed()


def _paths(value: Any, at: Path = ()) -> Iterator[Path]:
    yield at
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, each in items:
        yield from _paths(each, (*at, key))


def _changed(value: Any, path: Path, draw: st.DrawFn) -> Any:
    if path:
        value[path[0]] = _changed(value[path[0]], path[1:], draw)
        return value
    action = draw(st.sampled_from(["replace", "add", "remove", "double"]))
    odd = copy.deepcopy(draw(st.sampled_from(ODD)))
    if isinstance(value, dict) and action != "replace":
        if action == "remove" and value:
            value.pop(draw(st.sampled_from(sorted(value))))
        else:
            value[draw(st.sampled_from(KEYS))] = odd
        return value
    if isinstance(value, list) and action != "replace":
        return {"add": [*value, odd], "remove": value[1:], "double": value * 2}[action]
    return odd
