"""Merging: a recipe and coefficients become numbers for every tensor, and a model.

On disk (:mod:`sensmerge.merging.disk`) or in memory (:mod:`sensmerge.merging.memory`); what
computes is the compiled core.
"""

from __future__ import annotations
