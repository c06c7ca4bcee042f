"""The models between the stages of a recipe: their folders, and sketches of them for plans."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge import markup
from sensmerge.document import document
from sensmerge.errors import InputError
from sensmerge.merging.sidecars import OUTPUT_FILE, RECIPE_FILE, UNFINISHED_MARKER, Sidecars
from sensmerge.models.dtypes import STORED
from sensmerge.reading import content, mode_of
from sensmerge.terminal import plain

if TYPE_CHECKING:
    from sensmerge.merging.plan import MergePlan
    from sensmerge.recipe import Recipe, Stage

# A header's length, and a size in a shape that is stored, are integers of this many bytes.
_HEADER_BYTES = 8

# The place of a quantised tensor's shape among its parts.
_SHAPE_PART = 2


@contextmanager
def stage_folders(out: Path, kept: Path | None) -> Iterator[Path]:
    """A folder for the models of stages.

    Args:
        out: The folder of the result. Without ``kept``, a folder beside it is made, on the same
            file system, and removed at the end, whatever happens meanwhile.
        kept: A folder in which they stay; it is made if it does not exist.

    Raises:
        InputError: The folder cannot be made.
    """
    try:
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
            yield kept
            return
        beside = next(place for place in out.absolute().parents if place.exists())
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.stages-", dir=beside))
    except OSError as error:
        place = kept or out.parent
        raise InputError(
            f"{place}: a folder for the stages cannot be made there: {error.strerror or error}"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def folder_of(stage: Stage, folder: Path) -> Path:
    """The folder of one stage's model; a name that is no plain file name is changed to one."""
    name = str(stage.name)
    safe = re.sub(r"[^\w.-]", "_", name).lstrip(".")
    return folder / (name if safe == name else f"{stage.document}-{safe}")


def is_merged(recipe: Recipe, folder: Path) -> bool:
    """Whether a folder holds the complete model of a stage, merged by the same recipe."""
    written = folder / RECIPE_FILE
    # A merge that was killed may have put these in place, and leaves a marker.
    complete = mode_of(folder / UNFINISHED_MARKER) is None
    if not (complete and mode_of(written) and mode_of(folder / OUTPUT_FILE)):
        return False
    return content(written) == recipe.to_yaml().encode()


def sketch(plan: MergePlan, beside: Sidecars, folder: Path) -> None:
    """Write what a plan says of a model: its files without weights.

    The weight file has the header that the model will have, and no data to speak of: blocks that
    were never written take no space on the disk.

    Args:
        plan: The plan of the model.
        beside: The files beside its weights.
        folder: The folder to write; it does not exist.
    """
    folder.mkdir()
    for name, path in beside.copies:
        shutil.copyfile(path, folder / name)
    for name, text in beside.texts:
        (folder / name).write_text(text, encoding="utf-8")
    header, end = dict[str, Any](), 0
    starts: dict[int, bytes] = {}
    for tensor in plan.manifest.tensors:
        # An entry that is not zero, so that the model is not taken for an empty one; a quantised
        # tensor's shape, which is written as a tensor too.
        sizes = b"".join(size.to_bytes(_HEADER_BYTES, "little") for size in tensor.shape)
        for place, (name, dtype, shape) in enumerate(tensor.parts):
            size = math.prod(shape) * STORED[dtype].size
            if size:
                starts[end] = sizes if place == _SHAPE_PART else b"\x01"
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
    written = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(written).to_bytes(_HEADER_BYTES, "little") + written)
        data = file.tell()
        for start, content in starts.items():
            file.seek(data + start)
            file.write(content)
        file.truncate(data + end)


@dataclass(frozen=True)
class StagedPlan:
    """The plan of a merge in stages.

    Attributes:
        stages: The plan of each stage with its name, in the order of merging; None for a result
            without a name.
        places: Where the sketches lay by which later stages were planned, by the stages' names.
        whole: Notes for the user on the stages as a whole.
    """

    stages: list[tuple[str | None, MergePlan]]
    places: Mapping[str, Path]
    whole: list[str]

    def describe(self) -> str:
        """The plans as text, one after the other."""
        parts = []
        for name, plan in self.stages:
            text = with_names(
                plan.describe(), {plain(stage): place for stage, place in self.places.items()}
            )
            used = self._used(plan)
            if used:
                text += (
                    f"\nnote: planned by what is known of {plain(' and '.join(used))} before it is "
                    "merged"
                )
            parts.append(f"# {'result' if name is None else f'stage {plain(name)}'}\n{text}")
        return "\n\n".join([*parts, *(f"note: {plain(note)}" for note in self.whole)])

    def to_json(self) -> str:
        """The manifests as JSON; of a stage's model, of which no file is known, just the name."""
        stages = []
        for name, plan in self.stages:
            used = {str(self.places[stage]): stage for stage in self._used(plan)}
            stages.append({"name": name, "manifest": _manifest(plan, used)})
        return document({"stages": stages})

    def __repr__(self) -> str:
        return f"StagedPlan(stages={[name for name, _ in self.stages]})"

    def _repr_html_(self) -> str:
        parts = [
            markup.paragraphs(["the result" if name is None else f"stage {name}"])
            + with_names(plan._repr_html_(), self.places)
            for name, plan in self.stages
        ]
        return markup.shown("Plan in stages", *parts, markup.notes(self.whole))

    def as_dict(self) -> dict[str, Any]:
        """What :meth:`describe` says, as keys and values; see docs/json.md."""
        stages = [
            {"name": name, "planned_by": self._used(plan), **_named(plan.as_dict(), self.places)}
            for name, plan in self.stages
        ]
        return {"stages": stages, "notes": self.notes}

    @property
    def notes(self) -> list[str]:
        """Notes for the user on the whole and on every stage."""
        found = list(self.whole)
        for name, plan in self.stages:
            label = "result" if name is None else f"stage '{name}'"
            found += [f"{label}: {with_names(note, self.places)}" for note in plan.notes]
        return found

    def _used(self, plan: MergePlan) -> list[str]:
        return [
            name
            for name, place in self.places.items()
            if any(model.path == place for model in plan.models)
        ]


def with_names(text: str, places: Mapping[str, Path]) -> str:
    """A text with the names of stages in place of the paths of their folders."""
    for name, place in places.items():
        text = text.replace(str(place), name)
    return text


def _named(part: Any, places: Mapping[str, Path]) -> Any:
    """Plain data with the names of stages in place of the paths of their folders."""
    if isinstance(part, str):
        return with_names(part, places)
    if isinstance(part, dict):
        return {key: _named(each, places) for key, each in part.items()}
    return [_named(each, places) for each in part] if isinstance(part, list) else part


def _manifest(plan: MergePlan, used: Mapping[str, str]) -> Any:
    """A manifest as plain data, with names in place of the paths of stages."""
    if not used:
        return json.loads(plan.to_json())
    data = json.loads(plan.manifest.to_json())
    stages = {place for place, model in enumerate(data["models"]) if model.get("path") in used}
    data["models"] = [
        {"stage": used[model["path"]]} if place in stages else model
        for place, model in enumerate(data["models"])
    ]
    return _without_files(data, stages)


def _without_files(part: Any, stages: set[int]) -> Any:
    """Plain data of a manifest without file and range of what stages will store."""
    if isinstance(part, list):
        return [_without_files(each, stages) for each in part]
    if not isinstance(part, dict):
        return part
    unknown = ("file", "bytes") if "kind" in part and part.get("model") in stages else ()
    return {key: _without_files(each, stages) for key, each in part.items() if key not in unknown}
