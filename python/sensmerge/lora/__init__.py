"""LoRA adapters that are written: of a task vector, and of other adapters that are merged.

:mod:`sensmerge.lora.extraction` makes an adapter of the difference of two models,
:mod:`sensmerge.lora.merging` one of several. Adapters that are read as parts of models are in
:mod:`sensmerge.models.adapters`.
"""

from __future__ import annotations
