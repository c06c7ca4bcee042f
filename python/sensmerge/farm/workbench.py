"""What the candidates of one process share: opened models, calibrations, and sizes of outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge.calibration.record import MEASURED
from sensmerge.farm.identity import digest, shape_of
from sensmerge.merging.manifest import request
from sensmerge.merging.sidecars import sidecars
from sensmerge.models import Models, open_models
from sensmerge.recipe.places import place_of
from sensmerge.scaling.matching import (
    matching,
    needs_calibration,
    needs_coefficients,
    with_statistics,
)
from sensmerge.scaling.sigma import Coefficients, coefficients

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.recipe import Recipe

# What an output takes beside its tensors' data: a name, a dtype, a shape and offsets for each in
# the header and in an index, and the files that a merge writes beside the weights.
_PER_TENSOR = 512
_BESIDE = 64 * 1024


@dataclass(frozen=True)
class Ready:
    """What a candidate's merge needs.

    Attributes:
        models: Its models, with what was measured of them.
        measured: Its calibration; None for a plain merge.
        coefficients: Its coefficients; None for a plain merge.
    """

    models: Models
    measured: Calibration | None
    coefficients: Coefficients | None


class Workbench:
    """Opens models and calibrations once for all candidates; may be used from several threads."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._lock = threading.RLock()
        self._models: dict[str, Models] = {}
        self._measured: dict[str, tuple[Calibration, Models]] = {}
        self._bytes: dict[str, int] = {}
        self._weights: dict[str, str] = {}

    def models(self, recipe: Recipe) -> Models:
        """The models of a recipe.

        Raises:
            InputError: A model is missing or malformed.
        """
        with self._lock:
            shape = shape_of(recipe)
            if shape not in self._models:
                self._models[shape] = open_models(recipe, progress=False)
            return self._models[shape]

    def weights(self, recipe: Recipe) -> Callable[[str], str]:
        """Digests of the weights of a recipe's models, by their names in it.

        Raises:
            InputError: A model is missing or malformed.
        """
        models = self.models(recipe)

        def digest_of(name: str) -> str:
            place = place_of(name, recipe.places)
            with self._lock:
                if place not in self._weights:
                    self._weights[place] = models.find(name).fingerprint()
                return self._weights[place]

        return digest_of

    def ready(self, recipe: Recipe, calibration: Path | None) -> Ready:
        """What the merge of a candidate needs.

        Args:
            recipe: The candidate.
            calibration: Its calibration file; None for a plain merge.

        Raises:
            InputError: Models or calibration cannot be used as they are.
        """
        with self._lock:
            models = self.models(recipe)
            if calibration is None or not needs_calibration(recipe):
                return Ready(models, None, None)
            said = recipe.sensitivity
            options = None if said is None else said.model_dump(include=MEASURED)
            key = digest([shape_of(recipe), str(calibration), options])
            if key not in self._measured:
                measured = matching(recipe, calibration, models)
                self._measured[key] = measured, with_statistics(recipe, measured, models)
            measured, models = self._measured[key]
            found = None
            if needs_coefficients(recipe):
                found = coefficients(measured, recipe)
            return Ready(models, measured, found)

    def bytes_of(self, recipe: Recipe, calibration: Path | None = None) -> int:
        """What the output of a candidate takes on the disk, in bytes, at most.

        Args:
            recipe: The candidate.
            calibration: Its calibration file, a copy of which lies beside the weights; None
                without.

        Raises:
            InputError: Models or calibration cannot be used as they are.
        """
        with self._lock:
            shape = digest([shape_of(recipe), str(calibration)])
            if shape not in self._bytes:
                models = self.ready(recipe, calibration).models
                manifest = request(recipe, None, models, weights=False).manifest()
                beside = sidecars(recipe, models, None, None, manifest)
                files = [Path(path) for _, path in beside.copies]
                files += [] if calibration is None else [calibration]
                texts = [text for _, text in [*beside.texts, *beside.cards]]
                self._bytes[shape] = (
                    sum(tensor.nbytes + _PER_TENSOR for tensor in manifest.tensors)
                    + sum(file.stat().st_size for file in files)
                    + sum(len(text.encode()) for text in texts)
                    + _BESIDE
                )
            return self._bytes[shape]
