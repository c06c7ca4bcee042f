"""How much of the disk a farm takes, and the folders of its models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from sensmerge.errors import InputError
from sensmerge.farm.jobs import tree_bytes
from sensmerge.models.inspection import human_size

MODELS = "models"


class Space:
    """A farm's folder, and what it may take.

    Attributes:
        budget: The bytes that it may take; None is no bound.
    """

    def __init__(self, folder: Path, budget: int | None) -> None:
        """Look at a folder, which need not exist.

        Args:
            folder: The farm's folder.
            budget: The bytes that it may take; None is no bound.
        """
        self.budget = budget
        self._folder, self._models = folder, folder / MODELS

    def place(self, name: str) -> Path:
        """The folder of a model."""
        return self._models / name

    def check(self, size: int) -> None:
        """Refuse a budget that no output of this size fits into.

        Raises:
            InputError: It does not.
        """
        if self.budget is not None and size > self.budget:
            raise InputError(
                f"disk: an output takes up to {human_size(size)}, and the farm may take "
                f"{human_size(self.budget)}; allow more"
            )

    def fits(self, size: int, name: str) -> bool:
        """Whether an output of this size fits beside all that is there.

        Args:
            size: Its size, in bytes.
            name: The name of its folder, which may hold a part of it.
        """
        if self.budget is None:
            return True
        return tree_bytes(self._folder) - tree_bytes(self.place(name)) + size <= self.budget

    def lacks(self, size: int) -> bool:
        """Whether the disk itself has too little left for an output of this size."""
        return shutil.disk_usage(self._folder).free < size

    def remove(self, name: str) -> None:
        """Remove a model's folder, if it is there."""
        place = self.place(name)
        if place.exists():
            shutil.rmtree(place)

    def clean(self, wanted: Iterable[str]) -> None:
        """Remove what earlier runs left of models other than these."""
        kept = set(wanted)
        for place in sorted(self._models.iterdir()) if self._models.is_dir() else ():
            if place.name not in kept and place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)

    def flush(self, name: str) -> None:
        """Flush the files of a model to the disk."""
        for file in self.place(name).iterdir():
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
