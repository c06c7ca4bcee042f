"""Calibrations of a farm, kept in its folder: one for each set of experts and way to measure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge.farm.identity import calibration_key, content_digest, digest
from sensmerge.reading import LARGE, content, mode_of
from sensmerge.scaling.matching import needs_calibration

if TYPE_CHECKING:
    from sensmerge.farm.workbench import Workbench
    from sensmerge.recipe import Recipe

FOLDER = "calibrations"


class Calibrations:
    """Finds the calibration that a candidate needs, and measures it where it is not there."""

    def __init__(
        self,
        folder: Path,
        bench: Workbench,
        *,
        given: Path | None,
        device: str,
        threads: int | None,
        progress: bool,
        note: Callable[[str], None],
    ) -> None:
        """Look where they lie.

        Args:
            folder: The farm's folder.
            bench: Opens models.
            given: A calibration that was measured before, for all candidates; None measures.
            device: The torch device that experts run on.
            threads: Threads to use; all cores by default.
            progress: Show progress.
            note: Called with each note of a calibration that is measured.
        """
        self._folder, self._bench, self._given = folder / FOLDER, bench, given
        self._device, self._threads, self._progress = device, threads, progress
        self._note = note
        self._contents: dict[Path, str | None] = {}
        self._key = None if given is None else digest(content(given, LARGE).hex())

    def key(self, recipe: Recipe) -> str | None:
        """The key of a candidate's calibration; None if it needs none.

        Raises:
            InputError: Models or samples cannot be read.
        """
        if not needs_calibration(recipe):
            return None
        return self._key or calibration_key(recipe, self._bench.weights(recipe), self._content)

    def _content(self, path: Path) -> str | None:
        if path not in self._contents:
            self._contents[path] = content_digest(path)
        return self._contents[path]

    def of(self, recipe: Recipe) -> Path | None:
        """The calibration file of a candidate, measured if it is not there; None if it needs none.

        Raises:
            InputError: It cannot be measured, or torch is missing.
        """
        key = self.key(recipe)
        if key is None or self._given is not None:
            return None if key is None else self._given
        path = self._folder / f"{key[:16]}.json"
        if mode_of(path) is None:
            # Imported here, since measuring needs torch.
            from sensmerge.calibration import calibrate, forget

            measured = calibrate(
                recipe,
                progress=self._progress,
                threads=self._threads,
                device=self._device,
                keep=path,
            )
            measured.save(path)
            forget(path)
            for said in measured.notes:
                self._note(said)
        return path
