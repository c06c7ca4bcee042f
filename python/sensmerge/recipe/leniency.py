"""Unknown keys of a recipe: which are refused, and which are noted and ignored.

mergekit ignores every unknown key. Here, by default, a key that resembles a known one is taken for
a slip and refused; a key that nothing resembles, or that has effect at another place, is noted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, get_args

from sensmerge.refusals import Location, known_elsewhere, meant, unknown_key

if TYPE_CHECKING:
    from pydantic import BaseModel

    from sensmerge.recipe.findings import Findings
    from sensmerge.recipe.methods import Method

# `strict`: every unknown key is refused. `mergekit`: only probable slips are. `lenient`: none is.
Leniency = Literal["strict", "mergekit", "lenient"]
DEFAULT_LENIENCY: Leniency = "mergekit"
LENIENCIES: tuple[Leniency, ...] = get_args(Leniency)

# Keys that mergekit does not have: it cannot have ignored them.
_OURS = ("sensitivity", "calibration", "semantics", "align", "aim")

# Parts of a model's reference, which people also write beside it.
_OF_A_REFERENCE = {
    "revision": "model: NAME@REVISION",
    "lora": "model: NAME+ADAPTER",
}

# A shorter part of a key says too little about the key that is meant.
_TELLING = 4


def stray(
    location: Location, root: type[BaseModel], method: Method | None, found: Findings
) -> None:
    """Refuse or note an unknown key.

    Args:
        location: The key's location.
        root: The pydantic model of recipes.
        method: The recipe's method; None if that is unknown.
        found: Collects faults and notes, and says how lenient the reader is.
    """
    home = _home(location, root)
    ours = any(part in _OURS for part in location) or str(home).startswith(_OURS)
    theirs = method is None or method.semantics == "mergekit"
    slip = meant(location, root) is not None and (home is None or ours)
    default = found.leniency == "mergekit"
    if found.leniency == "strict" or (default and (ours or slip or not theirs)):
        found.refuse(location, unknown_key(location, root))
    else:
        found.unused(location, method, _note(location, root, home))


def _home(location: Location, root: type[BaseModel]) -> str | None:
    """The place at which a key of this name has effect; None if there is none."""
    name = str(location[-1])
    if name in _OF_A_REFERENCE and len(location) > 1:
        return _OF_A_REFERENCE[name]
    home = known_elsewhere(location, root)
    return None if home is None else re.sub(r"\[\d+\]", "[]", home)


def _note(location: Location, root: type[BaseModel], home: str | None) -> str:
    if home is not None:
        return f"not used here; it counts as '{home}'"
    near = meant(location, root) or _part(str(location[-1]), root)
    hint = "" if near is None else f"; the nearest known key is '{near}'"
    return f"unknown key, not used{hint}"


def _part(name: str, root: type[BaseModel]) -> str | None:
    """A known key that is a part of an unknown one, such as ``seed`` of ``random_seed``."""
    for part in reversed(re.split(r"[^A-Za-z0-9]+", name)):
        known = known_elsewhere((part,), root) if len(part) >= _TELLING else None
        if known is not None:
            return known
    return None
