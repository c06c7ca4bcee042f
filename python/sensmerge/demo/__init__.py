"""The demo: a small family of models, trained on the spot, merged in every way and compared.

It needs torch and transformers but no download: its text is what every Python carries. Loaded
lazily; importing this package costs nothing.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from sensmerge import InputError

__all__ = ["run"]

# Looked for before minutes of training, not after.
_NEEDED = ("torch", "transformers", "matplotlib", "jinja2")


def run(
    folder: str | Path, *, seed: int = 0, threads: int | None = None, quick: bool = False
) -> None:
    """Train a base and three experts, calibrate, merge in every way, and print one table.

    Args:
        folder: Where models, recipes, calibration samples and the report go. It must be empty, not
            exist, or hold an earlier demo, which is then replaced.
        seed: Of text, training and merging. With the same seed, threads and machine the models
            are the same.
        threads: Threads to use; all cores by default.
        quick: Train far too little, for a trial of the machinery in seconds.

    Raises:
        InputError: The folder holds something else, a package of the extra ``calibrate`` is
            missing, or this Python has no source of its standard library.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(
            f"the demo needs {' and '.join(missing)}; pip install 'sensmerge[calibrate]'"
        )
    # Threads that spin while they wait starve, on a busy machine, those they wait for: training
    # then takes ten times as long. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from sensmerge.demo.comparison import compare

    compare(Path(folder), seed=seed, threads=threads, quick=quick)
