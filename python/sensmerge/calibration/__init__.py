"""What is measured: how sensitive each expert's layers are, and how experts' logits differ.

With ``search`` and the demo, the only room that imports torch, and only when it measures:
a calibration can be read and used without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sensmerge.calibration.record import Calibration

if TYPE_CHECKING:
    from pathlib import Path

    from sensmerge.recipe import Recipe

__all__ = ["Calibration", "calibrate"]


def calibrate(
    recipe: Recipe | str | Path, *, progress: bool = True, threads: int | None = None
) -> Calibration:
    """Measure sensitivity and alignment of a recipe's experts (Sens-Merging, Eq. 1 to 4).

    Args:
        recipe: The recipe, or its path; every expert needs a ``calibration`` file.
        progress: Show a progress bar on a terminal and plain lines elsewhere.
        threads: Threads for torch and for the reductions; all cores by default.

    Returns:
        What was measured, experts in the recipe's order.

    Raises:
        InputError: A model or its samples cannot be used as they are, or torch is not installed.
    """
    from sensmerge.calibration.run import run
    from sensmerge.recipe import Recipe

    loaded = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    return run(loaded, progress=progress, threads=threads)
