"""mergekit's methods and parameters that this package lacks, and its leniency with keys."""

from __future__ import annotations

from pydantic import BaseModel

from sensmerge.recipe import methods
from sensmerge.recipe.methods import Method
from sensmerge.refusals import Location, meant

# Methods of mergekit 0.1.5 that are not available here, with the parameters of each.
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

# Parameters that are accepted for any method and ignored; int8_mask saves memory in mergekit.
OTHER_PARAMETERS = frozenset({"int8_mask"}.union(*_METHODS.values()))

# Sections that mergekit does not have: its leniency does not apply to their keys.
_OURS = ("sensitivity", "calibration")


def has(method: str) -> bool:
    """Whether a method is mergekit's and not available here."""
    return method in _METHODS and method not in methods.names()


def ignores(location: Location, root: type[BaseModel], method: Method | None) -> bool:
    """Whether an unknown key is ignored with a note rather than refused.

    mergekit ignores every unknown key. Here, a key that resembles a known one is taken for a slip
    and refused.
    """
    lenient = method is None or method.semantics == "mergekit"
    ours = any(part in _OURS for part in location)
    return lenient and not ours and meant(location, root) is None
