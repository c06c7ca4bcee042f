"""A planned merge as a file: all that a process on another machine needs to do a part of it.

The plan holds the manifest with digests of the weights, the folder to write, and the files that go
beside the weights. Each weight file can be merged by itself, in any order and more than once; the
folder becomes a model when all of them are there and the merge is committed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictStr, ValidationError

from sensmerge import _core, markup
from sensmerge.document import Documented, document
from sensmerge.errors import InputError
from sensmerge.files import write_atomically
from sensmerge.merging.disk import MergeResult, carry_out
from sensmerge.merging.sidecars import Sidecars
from sensmerge.models.inspection import human_size
from sensmerge.progress import bytes_bar
from sensmerge.reading import content, object_of
from sensmerge.recipe import extension

# The version of the file's format that is written and read.
VERSION = 1

# Bytes of a plan, at most: it has a few hundred for each tensor and model.
LARGEST = 1 << 30

# Bytes of a file that is copied beside the weights, at most; tokenizers have some dozen million.
LARGEST_COPY = 1 << 30


@dataclass(frozen=True)
class ShardsResult(Documented):
    """What a process did of a planned merge.

    Attributes:
        output: The model's folder.
        merged: Names of the weight files that it merged.
        whole: Names of those that were whole already.
        bytes: Size of what it merged in bytes.
        seconds: Seconds that this took, waiting for other processes included.
    """

    output: Path
    merged: list[str]
    whole: list[str]
    bytes: int
    seconds: float

    def describe(self) -> str:
        """What was done, in a line."""
        files = "file" if len(self.merged) == 1 else "files"
        said = f"merged {len(self.merged)} weight {files} of {self.output}"
        if self.whole:
            said += f" ({len(self.whole)} had been merged before)"
        return f"{said}: {human_size(self.bytes)}, {self.seconds:.1f} s"

    def as_dict(self) -> dict[str, Any]:
        """The same as keys and values; see docs/json.md."""
        return {
            "output": self.output,
            "merged": self.merged,
            "whole": self.whole,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "notes": [],
        }

    def _repr_html_(self) -> str:
        rows = {"merged": ", ".join(self.merged), "merged before": ", ".join(self.whole)}
        size, took = human_size(self.bytes), f"{self.seconds:.1f} s"
        return markup.shown(
            f"Part of {self.output}", markup.facts(rows | {"size": size, "took": took})
        )


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Copy(_Strict):
    """A file to copy beside the weights; the hash tells whether it is still the one of the plan."""

    name: StrictStr
    path: StrictStr
    sha256: StrictStr


class _File(_Strict):
    """The file's content."""

    sensmerge_plan: int
    output: StrictStr
    max_shard_bytes: int
    overwrite: bool
    allow_nan: bool
    copies: list[_Copy]
    texts: list[tuple[StrictStr, StrictStr]]
    cards: list[tuple[StrictStr, StrictStr]]
    notes: list[StrictStr]
    manifest: dict[str, Any]


@dataclass(frozen=True)
class PlannedMerge(Documented):
    """A merge that is planned to the last number, which several processes can carry out.

    Attributes:
        manifest: Every output tensor with its inputs and numbers, and digests of the weights.
        output: The folder to write.
        max_shard_bytes: Largest size of a weight file's data, in bytes.
        overwrite: Whether the output of an earlier merge in the folder is replaced.
        allow_nan: Whether NaN and infinite values are written instead of refused.
        beside: The files beside the weights.
        notes: Notes for the user.
    """

    manifest: _core.Manifest
    output: Path
    max_shard_bytes: int
    overwrite: bool
    allow_nan: bool
    beside: Sidecars
    notes: list[str]

    @classmethod
    def load(cls, path: str | Path) -> PlannedMerge:
        """Read a plan's file.

        Raises:
            InputError: It is not a plan, of another version, or a file that is to be copied beside
                the weights is no longer what it was.
            OSError: A file cannot be read.
        """
        path = Path(path)
        try:
            read = _File.model_validate(object_of(path, LARGEST))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InputError(
                f"{path}: is not a plan that `sensmerge plan RECIPE OUT` wrote: {place}: "
                f"{first['msg']}"
            ) from None
        if read.sensmerge_plan != VERSION:
            raise InputError(
                f"{path}: is a plan of version {read.sensmerge_plan}; this program reads version "
                f"{VERSION}: plan the merge anew"
            )
        for copy in read.copies:
            if _digest(copy.path) != copy.sha256:
                raise InputError(
                    f"{copy.path}: has changed since the merge was planned; plan the merge anew"
                )
        method = read.manifest.get("method")
        if isinstance(method, dict):
            # It may be that of an installed package.
            extension.load(str(method.get("name")))
        beside = Sidecars([(copy.name, copy.path) for copy in read.copies], read.texts, read.cards)
        return cls(
            manifest=_core.Manifest.from_json(json.dumps(read.manifest)),
            output=Path(read.output),
            max_shard_bytes=read.max_shard_bytes,
            overwrite=read.overwrite,
            allow_nan=read.allow_nan,
            beside=beside,
            notes=read.notes,
        )

    def save(self, path: str | Path) -> None:
        """Write the plan's file.

        Raises:
            OSError: The file cannot be written.
        """
        copies = [
            {"name": name, "path": str(Path(place).absolute()), "sha256": _digest(place)}
            for name, place in self.beside.copies
        ]
        written = {
            "sensmerge_plan": VERSION,
            "output": self.output,
            "max_shard_bytes": self.max_shard_bytes,
            "overwrite": self.overwrite,
            "allow_nan": self.allow_nan,
            "copies": copies,
            "texts": self.beside.texts,
            "cards": self.beside.cards,
            "notes": self.notes,
            "manifest": json.loads(self.manifest.to_json()),
        }
        write_atomically(Path(path), document(written))

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(json.loads(self.manifest.to_json())["method"]["name"])

    @property
    def shards(self) -> list[str]:
        """Names of the weight files, in their order."""
        return [name for name, _ in self.manifest.files(self.max_shard_bytes)]

    def describe(self) -> str:
        """The plan in a line."""
        size = human_size(sum(tensor.nbytes for tensor in self.manifest.tensors))
        count = len(self.shards)
        files = "weight file" if count == 1 else "weight files"
        return f"{self.output}: {size} in {count} {files}, each of which can be merged by itself"

    def as_dict(self) -> dict[str, Any]:
        """What is planned, as keys and values; see docs/json.md."""
        return {
            "output": self.output,
            "shards": self.shards,
            "bytes": sum(tensor.nbytes for tensor in self.manifest.tensors),
            "notes": self.notes,
        }

    def merge(
        self,
        shards: Iterable[int] | None = None,
        *,
        wait: float = 0.0,
        threads: int | None = None,
        sync: bool = True,
        progress: bool = True,
    ) -> ShardsResult:
        """Merge some weight files; those that are whole already are left as they are.

        Args:
            shards: Numbers of the weight files, from 1 as in their names; all by default.
            wait: Seconds to wait for other processes, where the method has to know something of the
                whole model.
            threads: Threads to use; all cores by default.
            sync: Flush files to disk before they count as whole.
            progress: Show a progress bar on a terminal and plain lines elsewhere.

        Raises:
            WaitingError: Other processes have not done their part in time; call again.
            InputError: There is no such weight file, models have changed since the merge was
                planned, or the folder cannot be written to.
            OSError: A file cannot be read or written.
        """
        asked = range(1, len(self.shards) + 1) if shards is None else list(shards)
        for number in asked:
            if not 1 <= number <= len(self.shards):
                raise InputError(
                    f"shards: there is no weight file {number}; they are 1 to {len(self.shards)}"
                )
        with bytes_bar("merging", enabled=progress) as report:
            done = json.loads(
                _core.merge_shards(
                    self.manifest,
                    str(self.output),
                    self.max_shard_bytes,
                    [number - 1 for number in asked],
                    wait=wait,
                    threads=threads,
                    sync=sync,
                    overwrite=self.overwrite,
                    allow_nan=self.allow_nan,
                    progress=report,
                )
            )
        return ShardsResult(
            Path(done["output"]), done["merged"], done["whole"], done["bytes"], done["seconds"]
        )

    def commit(
        self,
        *,
        only: bool = True,
        threads: int | None = None,
        sync: bool = True,
        progress: bool = True,
        committed: Callable[[], object] | None = None,
    ) -> MergeResult:
        """Put the weight files in place, and the files beside them: the folder is a model then.

        Nothing is lost if this fails; an output that is complete already is left as it is.

        Args:
            only: Whether missing weight files are an error; otherwise they are merged here.
            threads: Threads to use; all cores by default.
            sync: Flush the output to disk before returning.
            progress: Show progress.
            committed: Called once, on another thread, when Ctrl-C cannot cancel any more.

        Raises:
            WaitingError: Weight files are missing.
            InputError: Models have changed since the merge was planned, or the folder cannot be
                written to.
            OSError: A file cannot be read or written.
        """
        return carry_out(
            self.manifest,
            None,
            self.output,
            self.max_shard_bytes,
            self.beside,
            self.notes,
            action="committing" if only else "merging",
            threads=threads,
            progress=progress,
            sync=sync,
            overwrite=self.overwrite,
            allow_nan=self.allow_nan,
            keep=True,
            only_commit=only,
            committed=committed,
        )


def _digest(path: str | Path) -> str:
    return hashlib.sha256(content(Path(path), LARGEST_COPY)).hexdigest()
