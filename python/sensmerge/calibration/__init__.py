"""Calibration: how sensitive each expert's layers are, and how far experts' logits are apart.

Only measuring imports torch: a calibration that was saved can be read and used without it.
"""

from __future__ import annotations

import tempfile
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
    unpickle: bool = False,
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
        keep: A calibration file, which need not exist yet. Its measurements of the same weights
            and samples are used again. Those of this run are written to ``FILE.partial`` beside it
            one by one, so that a run that was stopped can go on.
        unpickle: Read models that are stored as pickles (``pytorch_model.bin``) in a process of
            their own, through a temporary copy beside ``keep`` or, without that, in the system's
            folder of temporary files.

    Returns:
        The calibration, experts in the recipe's order. It is not saved.

    Raises:
        InputError: A model or its samples cannot be used as they are, or torch is not installed.
    """
    from sensmerge.calibration.run import run
    from sensmerge.models.pickles import unpickling
    from sensmerge.recipe import Recipe

    beside = Path(tempfile.gettempdir(), "model") if keep is None else Path(keep)
    with unpickling(beside, enabled=unpickle, progress=progress):
        return run(
            Recipe.of(recipe),
            progress=progress,
            threads=threads,
            memory=memory,
            device=device,
            keep=None if keep is None else Path(keep),
        )


def forget(path: Path) -> None:
    """Remove ``FILE.partial`` beside a calibration file that is complete."""
    path.with_name(f"{path.name}.partial").unlink(missing_ok=True)
