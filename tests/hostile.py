"""Hostile files and folders, and what has to come of each: the corpus of `test_hostile.py`.

A case is refused by a message that names its file and has a word of the reason, or it is accepted
because it is sound, however odd.
"""

from __future__ import annotations

from hostile_files import Case
from hostile_models import adapters, configs, tokenizers
from hostile_others import calibrations, outputs, recipes, samples
from hostile_weights import headers, indices, places


def cases() -> list[Case]:
    """The corpus."""
    return [
        case
        for kind in (
            headers, places, indices, configs, adapters, recipes, tokenizers, calibrations,
            samples, outputs,
        )
        for case in kind()
    ]  # fmt: skip
