"""Running a command as a user would, with its time and memory."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDS = Path(__file__).resolve().parent / "records"

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Taken:
    """The cost of one command.

    Attributes:
        seconds: From its start to its end, as seen from outside.
        anonymous: Its peak anonymous memory in bytes; 0 if the system does not report it.
        user: Seconds that its threads together ran in user mode.
    """

    seconds: float
    anonymous: int
    user: float


def run(command: Sequence[str | Path], *, cold: Sequence[Path] = ()) -> Taken:
    """Run a command whose output does not matter; ``cold``: these files leave the page cache first.

    Raises:
        subprocess.CalledProcessError: It failed; its messages were printed.
    """
    # What earlier runs wrote goes to the disk before, not during this one.
    os.sync()
    drop(cold)
    # Interpreters may keep their bytecode, as they do where a package was installed.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    peak, ended = 0, threading.Event()
    before = _user_seconds()
    start = time.perf_counter()
    child = subprocess.Popen(
        [str(part) for part in command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            peak = max(peak, anonymous(child.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, messages = child.communicate()
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    if child.returncode:
        sys.stderr.write(messages)
        raise subprocess.CalledProcessError(child.returncode, child.args)
    return Taken(seconds, peak, _user_seconds() - before)


def _user_seconds() -> float:
    """Seconds in user mode of all processes that were started and have ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """Anonymous memory of this process in bytes: ``before``, and its ``peak`` within."""
    held = {"before": anonymous(), "peak": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            held["peak"] = max(held["peak"], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield held
    finally:
        done.set()
        watcher.join()
        held["peak"] = max(held["peak"], anonymous())


def anonymous(process: int | str = "self") -> int:
    """Bytes of a process's anonymous memory; 0 if the system does not report it."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(found[0]) * 1024 if found else 0


def drop(paths: Sequence[Path]) -> None:
    """Drop the page cache: all of it if that is allowed, otherwise the pages of these files."""
    if paths and os.access(_DROP_CACHES, os.W_OK):
        _DROP_CACHES.write_text("1")
        return
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def machine() -> str:
    """The machine, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}"
    )


def part(
    script: str,
    name: str,
    options: argparse.Namespace,
    passed: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run one part of a benchmark in a process of its own; it prints its result as JSON.

    Args:
        script: The benchmark's file.
        name: The part.
        options: The benchmark's options.
        passed: The names of those that the part gets.
        environment: Variables beside the process's own, which come first.
    """
    command = [sys.executable, script, "--part", name]
    for option in passed:
        command += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
    env = {**(environment or {}), **os.environ}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def record(name: str, table: str) -> None:
    """Keep a table in benches/records, under a name with today's date."""
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / f"{name}-{time.strftime('%Y-%m-%d')}.md").write_text(table)


def commit() -> str:
    """The commit that is measured, marked where the tree differs from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "no commit"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return found[0] if found else platform.machine()
