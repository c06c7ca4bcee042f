"""One candidate as plain data: what is to be merged and scored goes in, what came of it comes out.

Whatever runs candidates, in this process or on other machines, needs these functions alone: a job
and an outcome hold text, numbers, lists and mappings, which any of them can send.
"""

from __future__ import annotations

import errno
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge.errors import InputError
from sensmerge.merging import disk
from sensmerge.merging.stages import is_merged
from sensmerge.reading import mode_of
from sensmerge.recipe import Recipe

if TYPE_CHECKING:
    from sensmerge.farm.evaluators import Evaluator
    from sensmerge.farm.workbench import Workbench

# What the core says of a disk that is full; its errors have no number.
_FULL = f"(os error {errno.ENOSPC})"


@dataclass(frozen=True)
class Job:
    """A candidate that is to be merged and scored.

    Attributes:
        number: Its number in the farm.
        recipe: Its recipe, as keys and values.
        folder: The folder that the recipe's paths start from.
        output: The folder that its model is written to; None where it is merged in memory.
        calibration: Its calibration file; None for a plain merge.
        threads: Threads to merge with; all cores by default.
    """

    number: int
    recipe: dict[str, Any]
    folder: str
    output: str | None = None
    calibration: str | None = None
    threads: int | None = None

    def read(self) -> Recipe:
        """Its recipe, checked.

        Raises:
            InputError: It is not one.
        """
        return Recipe.from_dict(self.recipe, folder=self.folder, leniency="lenient")

    @property
    def measured(self) -> Path | None:
        """Its calibration file as a path."""
        return None if self.calibration is None else Path(self.calibration)


@dataclass(frozen=True)
class Merged:
    """A candidate that is merged.

    Attributes:
        seconds: What the merge took; 0 where an earlier run had written it.
        bytes: What its folder takes on the disk; 0 where it is merged in memory.
        coefficients: Its coefficients as keys and values; None for a plain merge.
    """

    seconds: float = 0.0
    bytes: int = 0
    coefficients: dict[str, Any] | None = None


@dataclass(frozen=True)
class Scores:
    """What an evaluator found.

    Attributes:
        score: The number that candidates are compared by.
        tasks: The score of each task, by its name; empty where there is just the one number.
        validation: The score on samples that no candidate is chosen by; None without.
        seconds: What the evaluation took.
        merged: The merge, where the evaluator did it itself.
    """

    score: float
    tasks: dict[str, float] = field(default_factory=dict)
    validation: float | None = None
    seconds: float = 0.0
    merged: Merged | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a job: scores, or the reason why there are none.

    Attributes:
        number: The candidate's number.
        merged: The merge.
        scores: Its scores; None if it failed.
        reason: Why it failed.
    """

    number: int
    merged: Merged = Merged()
    scores: Scores | None = None
    reason: str | None = None


def run(job: Job, bench: Workbench, evaluator: Evaluator) -> Outcome:
    """Merge a candidate and score it; a candidate that fails is an outcome too."""
    merged = Merged()
    try:
        if evaluator.needs_output:
            merged = merge(job, bench)
        scores = evaluate(job, evaluator)
    except Exception as error:
        return Outcome(job.number, merged, reason=reason_of(error))
    return Outcome(job.number, scores.merged or merged, scores)


def merge(job: Job, bench: Workbench) -> Merged:
    """Write the model of a candidate into its folder.

    A folder that holds it whole is used as it is; what a merge that was killed left there is gone
    on with, or removed where that cannot be.

    Raises:
        InputError: Recipe, models or calibration cannot be used as they are.
        OSError: A file cannot be read or written.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    assert job.output is not None, "a job that is merged to the disk has a folder"
    recipe, out = job.read(), Path(job.output)
    ready = bench.ready(recipe, job.measured)
    found = None if ready.coefficients is None else ready.coefficients.as_dict()
    if is_merged(recipe, out):
        return Merged(0.0, tree_bytes(out), found)
    began = time.monotonic()

    def write() -> None:
        disk.write(
            recipe,
            ready.models,
            out,
            ready.measured,
            ready.coefficients,
            threads=job.threads,
            progress=False,
            # Most are deleted soon; those that stay are flushed at the end.
            sync=False,
        )

    left = mode_of(out) is not None
    try:
        write()
    except InputError:
        if not left:
            raise
        shutil.rmtree(out)
        write()
    return Merged(time.monotonic() - began, tree_bytes(out), found)


def evaluate(job: Job, evaluator: Evaluator) -> Scores:
    """Score a candidate.

    Raises:
        InputError: It has no score; the message says why.
    """
    began = time.monotonic()
    scores = evaluator.evaluate(job)
    merging = 0.0 if scores.merged is None else scores.merged.seconds
    return replace(scores, seconds=time.monotonic() - began - merging)


def reason_of(error: BaseException) -> str:
    """Why a candidate failed, in one line."""
    if isinstance(error, InputError):
        return "; ".join(error.lines)
    said = str(error).strip() or "no message"
    return said if isinstance(error, OSError) else f"{type(error).__name__}: {said}"


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full."""
    return isinstance(error, OSError) and (error.errno == errno.ENOSPC or _FULL in str(error))


def tree_bytes(folder: Path) -> int:
    """The size of all files in a folder, in bytes; of what vanishes meanwhile, nothing."""
    total = 0
    for file in folder.rglob("*"):
        try:
            found = file.lstat()
        except OSError:
            continue
        total += found.st_size if file.is_file() else 0
    return total
