"""What mergekit knows and this package does not: methods by name, parameters, and its leniency."""

from __future__ import annotations

from pydantic import BaseModel

from sensmerge.recipe import methods
from sensmerge.recipe.methods import Method
from sensmerge.refusals import Location, meant

# The methods of mergekit 0.1.5 with the parameters that are theirs alone.
_METHODS = {
    "arcee_fusion": (),
    "breadcrumbs": ("gamma",),
    "breadcrumbs_ties": ("gamma",),
    "della": ("epsilon",),
    "della_linear": ("epsilon",),
    "karcher": ("max_iter", "tol"),
    "multislerp": ("normalize_weights", "eps"),
    "nearswap": ("t",),
    "ram": ("epsilon",),
    "ramplus_tl": ("epsilon", "r", "alpha"),
    "sce": ("select_topk",),
}

# Parameters that are taken for any method and used by none; int8_mask saves mergekit memory.
OTHER_PARAMETERS = frozenset({"int8_mask"}.union(*_METHODS.values()))

# Keys that mean something to mergekit and cannot be left out of account.
UNSUPPORTED = {
    "slices": "merging slices is not supported; list whole models under 'models'",
    "modules": "merging modules is not supported; list whole models under 'models'",
    "tokenizer": "building a tokenizer is not supported; use tokenizer_source: base",
    "chat_template": "replacing it is not supported; the tokenizer's files are copied as they are",
}

# Sections that mergekit does not have; it cannot be said to ignore what is in them.
_OURS = ("sensitivity", "calibration")


def has(method: str) -> bool:
    """Whether a method is mergekit's and not available here."""
    return method in _METHODS and method not in methods.names()


def ignores(location: Location, root: type[BaseModel], method: Method | None) -> bool:
    """Whether an unknown key may be left alone, with a note.

    mergekit leaves every unknown key alone. Here one that resembles a known key is a slip, and
    refused.
    """
    lenient = method is None or method.semantics == "mergekit"
    ours = any(part in _OURS for part in location)
    return lenient and not ours and meant(location, root) is None
