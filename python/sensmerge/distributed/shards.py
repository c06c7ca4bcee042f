"""Which weight files a process merges: as it is told, or by its place in a job array."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sensmerge.errors import InputError


@dataclass(frozen=True)
class _Scheduler:
    """The variables in which a scheduler tells a task its place in an array.

    Attributes:
        name: The scheduler.
        index: The variable with the task's index.
        first: The variable with the first index, or that index.
        count: The variable with the number of tasks, if there is one.
        last: The variable with the last index, if there is one instead.
    """

    name: str
    index: str
    first: str | int
    count: str | None = None
    last: str | None = None


# In Slurm and Grid Engine an array may begin anywhere; elsewhere it begins at 0, but for LSF.
_SCHEDULERS = (
    _Scheduler("Slurm", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"),
    _Scheduler("Kubernetes", "JOB_COMPLETION_INDEX", 0, "JOB_COMPLETIONS"),
    _Scheduler("AWS Batch", "AWS_BATCH_JOB_ARRAY_INDEX", 0, "AWS_BATCH_JOB_ARRAY_SIZE"),
    _Scheduler("Google Cloud", "CLOUD_RUN_TASK_INDEX", 0, "CLOUD_RUN_TASK_COUNT"),
    _Scheduler("Google Batch", "BATCH_TASK_INDEX", 0, "BATCH_TASK_COUNT"),
    _Scheduler("PBS", "PBS_ARRAY_INDEX", 0),
    _Scheduler("LSF", "LSB_JOBINDEX", 1, last="LSB_JOBINDEX_END"),
    _Scheduler("Grid Engine", "SGE_TASK_ID", "SGE_TASK_FIRST", last="SGE_TASK_LAST"),
)


def numbers(text: str) -> list[int]:
    """The numbers of ``3-7,9``, each once, in order.

    Raises:
        InputError: It is not written like that.
    """
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        ends = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if ends is None:
            raise InputError(f"shards: '{text}' is not a list of weight files; write it like 3-7,9")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if first > last:
            raise InputError(f"shards: '{part}' ends before it begins")
        found.update(range(first, last + 1))
    return sorted(found)


def from_environment(shards: int, environment: Mapping[str, str] = os.environ) -> list[int]:
    """The weight files of this task of a job array, of so many ``shards``.

    Where the scheduler says how many tasks there are, all weight files are dealt out among them;
    otherwise each task has one. A task beyond the last weight file has none.

    Raises:
        InputError: No known scheduler has set its variables, or one is not a number.
    """
    for scheduler in _SCHEDULERS:
        if environment.get(scheduler.index, "undefined") == "undefined":
            continue
        index, first = _number(environment, scheduler.index), scheduler.first
        begin = first if isinstance(first, int) else _number(environment, first)
        place = index - begin
        if place < 0:
            raise InputError(f"{scheduler.index}={index}: is below the first task's index, {begin}")
        if scheduler.last is not None and scheduler.last in environment:
            count = _number(environment, scheduler.last) - begin + 1
        elif scheduler.count is not None and scheduler.count in environment:
            count = _number(environment, scheduler.count)
        else:
            return [place + 1] if place < shards else []
        if place >= count:
            raise InputError(f"{scheduler.index}={index}: is beyond the array's {count} tasks")
        return list(range(place + 1, shards + 1, count))
    known = ", ".join(f"{scheduler.index} ({scheduler.name})" for scheduler in _SCHEDULERS)
    raise InputError(
        f"--shard-from-env: none of these variables is set: {known}; name weight files by --shards"
    )


def _number(environment: Mapping[str, str], variable: str) -> int:
    said = environment.get(variable, "")
    if re.fullmatch(r"\d{1,9}", said) is None:
        raise InputError(f"{variable}: is '{said}', where the place of a task in its array belongs")
    return int(said)
