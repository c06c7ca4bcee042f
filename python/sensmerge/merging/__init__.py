"""Merging: from a recipe and coefficients to a manifest, and from that to a merged model.

The model is written to disk (:mod:`sensmerge.merging.disk`) or into memory
(:mod:`sensmerge.merging.memory`). The compiled core does the computation.
"""

from __future__ import annotations
