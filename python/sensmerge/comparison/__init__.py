"""Two models of one architecture: how they differ, and their difference as an adapter.

:mod:`sensmerge.comparison.differences` measures; :mod:`sensmerge.comparison.extraction` writes a
task vector as a LoRA adapter.
"""

from __future__ import annotations
