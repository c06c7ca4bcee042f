"""Models whose weights are stored in fewer bits, in ways that are not read."""

from __future__ import annotations

from pathlib import Path

from sensmerge import _core


def refusal(path: Path, checkpoint: _core.Checkpoint) -> str | None:
    """Why a model is refused that is quantised in a way that is not read; None for others.

    Args:
        path: Its folder.
        checkpoint: Its tensors.
    """
    found = checkpoint.quantised
    if found is None or found.advice is None:
        return None
    return (
        f"{path}: is quantised ({found.words}, as its config.json says), which is not read: "
        f"{found.advice}"
    )
