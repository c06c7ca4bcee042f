"""A planned merge on a Ray cluster: a task for each weight file, spread over its nodes.

A task gets the manifest and the number of a weight file, and returns whether it was merged;
weights move between the shared file system and the nodes alone, never through Ray's object store.
All that has to outlast a process is in the output folder: a task that runs twice, or whose node is
lost, harms nothing, and after a lost driver the same command goes on.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sensmerge import _core
from sensmerge.errors import InputError, WaitingError, first_line
from sensmerge.progress import bar
from sensmerge.recipe import extension

if TYPE_CHECKING:
    from sensmerge.distributed.plan import PlannedMerge
    from sensmerge.merging.disk import MergeResult

# Threads of a task, and cores that Ray sets aside for it, unless another number is asked for.
THREADS = 2

# Bytes of memory that Ray sets aside for a task: what a merge takes beside mapped files.
MEMORY = 256 * 1024 * 1024

# How often a weight file is tried again whose node was lost, or whose file system failed briefly.
RETRIES = 20

# How often all weight files may wait for what others find: more often than any method asks for it.
ROUNDS = 20

# Seconds in which a cluster has to answer.
CONNECTING = 10.0

# Errors of a file system that may be gone at the next try.
_TRANSIENT = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENETUNREACH}
)

MERGED, WAITING, FAILED, REFUSED = "merged", "waiting", "failed", "refused"


def merge_on_ray(
    plan: PlannedMerge,
    address: str | None = None,
    *,
    threads: int | None = None,
    sync: bool = True,
    progress: bool = True,
    committed: Callable[[], object] | None = None,
) -> MergeResult:
    """Merge the weight files of a plan on a Ray cluster, and commit them.

    Models, output folder and sensmerge have to be there on every node, under the same paths.

    Args:
        plan: The plan.
        address: The cluster's address; by default that of ``RAY_ADDRESS``, or else a cluster that
            is started on this machine for as long as this takes.
        threads: Threads of a task, and cores that are set aside for it; 2 by default.
        sync: Flush the output to disk before returning.
        progress: Show a progress bar on a terminal and plain lines elsewhere.
        committed: Called once, on another thread, when Ctrl-C cannot cancel the merge any more.

    Raises:
        InputError: Ray is not installed or not reached, models have changed since the merge was
            planned, or the folder cannot be written to.
        OSError: A file cannot be read or written, on whatever node.
    """
    with _connected(address) as ray:
        count = len(plan.shards)
        with bar(count, "merging", "weight files", enabled=progress) as advance:
            _Driver(ray, plan, threads or THREADS, sync, advance).run(count)
    return plan.commit(threads=threads, sync=sync, progress=progress, committed=committed)


class _Driver:
    """Hands out weight files until all are merged."""

    def __init__(
        self,
        ray: Any,
        plan: PlannedMerge,
        threads: int,
        sync: bool,
        advance: Callable[[int], None],
    ) -> None:
        self._ray, self._advance = ray, advance
        self._task = ray.remote(merge_one).options(
            num_cpus=threads,
            memory=MEMORY,
            scheduling_strategy="SPREAD",
            max_retries=RETRIES,
        )
        self._manifest = ray.put(plan.manifest.to_json())
        self._how = {
            "method": plan.method,
            "output": str(plan.output),
            "max_shard_bytes": plan.max_shard_bytes,
            "threads": threads,
            "sync": sync,
            "overwrite": plan.overwrite,
            "allow_nan": plan.allow_nan,
        }
        self._tries: Counter[int] = Counter()

    def run(self, count: int) -> None:
        """Merge so many weight files; in rounds, where a method looks at the whole model."""
        waiting, idle = list(range(count)), 0
        while waiting:
            before, (waiting, reason) = len(waiting), self._round(waiting)
            idle = 0 if len(waiting) < before else idle + 1
            if idle > ROUNDS:
                raise WaitingError(reason)

    def _round(self, shards: list[int]) -> tuple[list[int], str]:
        """Try some weight files; those that wait for what others found meanwhile, and what for."""
        running = {self._start(shard): shard for shard in shards}
        waiting, reason = list[int](), ""
        while running:
            [task], _ = self._ray.wait(list(running), num_returns=1)
            shard = running.pop(task)
            state, said = self._outcome(task)
            if state == MERGED:
                self._advance(1)
            elif state == WAITING:
                waiting.append(shard)
                reason = said[0]
            elif state == REFUSED:
                raise InputError(said)
            elif self._tries[shard] < RETRIES:
                self._tries[shard] += 1
                running[self._start(shard)] = shard
            else:
                raise OSError("\n".join(said))
        return waiting, reason

    def _start(self, shard: int) -> Any:
        return self._task.remote(self._manifest, shard, self._how)

    def _outcome(self, task: Any) -> tuple[str, list[str]]:
        try:
            state, said = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            # A node or a worker was lost, more often than Ray itself tries again.
            return FAILED, [f"Ray: {error}"]
        return str(state), list(said)


def merge_one(manifest: str, shard: int, how: dict[str, Any]) -> tuple[str, list[str]]:
    """Merge one weight file; the function of a task.

    Args:
        manifest: The manifest as JSON.
        shard: Number of the weight file, from 0.
        how: The method, and the arguments of the core's ``merge_shards`` beside these.

    Returns:
        ``merged``, ``waiting`` (for what other tasks find), ``failed`` (another try may go well) or
        ``refused`` (it will not), and the lines of the error.
    """
    how = dict(how)
    try:
        extension.load(how.pop("method"))
        read = _core.Manifest.from_json(manifest)
        _core.merge_shards(read, how.pop("output"), how.pop("max_shard_bytes"), [shard], **how)
    except WaitingError as error:
        return WAITING, [str(error)]
    except InputError as error:
        return REFUSED, list(error.lines)
    except OSError as error:
        return FAILED if error.errno in _TRANSIENT else REFUSED, [str(error)]
    return MERGED, []


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster, or to one of its own."""
    # Nothing about a merge is anybody else's business.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError(
            "merging on a Ray cluster needs Ray: pip install 'sensmerge[ray]'"
        ) from None
    where = address or os.environ.get("RAY_ADDRESS")
    _check_reached(where)
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"Ray cannot be reached at {where or 'this machine'}: {first_line(error)}"
        ) from None
    if threading.current_thread() is threading.main_thread():
        # Ray puts its own handlers in the place of those that the command line answers with.
        for number, handler in kept.items():
            signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reached(address: str | None) -> None:
    """Refuse an address at which nothing answers; Ray itself would try for a quarter of an hour."""
    found = re.fullmatch(r"([^/:]+):(\d{1,5})", address or "")
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=CONNECTING).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"Ray cannot be reached at {address}: {first_line(error)}") from None
