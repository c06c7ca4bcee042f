"""mergekit's parameters that this package lacks."""

from __future__ import annotations

# Parameters that are accepted for any method and ignored; int8_mask saves memory in mergekit.
OTHER_PARAMETERS = frozenset({"int8_mask"})
