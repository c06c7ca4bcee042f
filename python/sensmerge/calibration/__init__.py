"""What is measured: how sensitive each expert's layers are, and how experts' logits differ.

With ``search`` and the demo, the only room that imports torch, and only when it measures:
a calibration can be read and used without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge.calibration.record import Calibration

if TYPE_CHECKING:
    from sensmerge.recipe import Recipe

__all__ = ["Calibration", "calibrate"]


def calibrate(
    recipe: Recipe | str | Path,
    *,
    progress: bool = True,
    threads: int | None = None,
    memory: str = "auto",
    device: str = "cpu",
    keep: str | Path | None = None,
) -> Calibration:
    """Measure sensitivity and alignment of a recipe's experts (Sens-Merging, Eq. 1 to 4).

    Args:
        recipe: The recipe, or its path; every expert needs a ``calibration`` file.
        progress: Show a progress bar on a terminal and plain lines elsewhere.
        threads: Threads for torch and for the reductions; all cores by default.
        memory: ``whole`` runs each model as it is; ``stream`` runs it block by block, for models
            larger than memory; ``auto`` streams where the weights exceed free memory. The numbers
            are the same.
        device: The torch device to compute on, such as ``cuda``.
        keep: A calibration file. What it holds of these weights and samples is not measured again,
            and what a run that was stopped had finished is kept beside it, as ``FILE.partial``.

    Returns:
        What was measured, experts in the recipe's order. It is not saved.

    Raises:
        InputError: A model or its samples cannot be used as they are, or torch is not installed.
    """
    from sensmerge.calibration.run import run
    from sensmerge.recipe import Recipe

    return run(
        Recipe.of(recipe),
        progress=progress,
        threads=threads,
        memory=memory,
        device=device,
        keep=None if keep is None else Path(keep),
    )


def forget(path: Path) -> None:
    """Remove what stopped runs kept beside a calibration file that is now written."""
    path.with_name(f"{path.name}.partial").unlink(missing_ok=True)
