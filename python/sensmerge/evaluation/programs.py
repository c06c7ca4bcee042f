"""Programs that models write, run to see whether they pass their tests: each in its own process.

The harness's tasks ask the library ``evaluate`` for its metric ``code_eval``, which would fetch a
script and run programs in forks of this process, with its memory and its environment. They get
:class:`CodeEval` instead, which computes the same and runs :mod:`sensmerge.evaluation.confined`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensmerge.errors import InputError

_CHILD = Path(__file__).with_name("confined.py")

# Seconds that the process may take beside the program: a busy machine starts Python slowly.
_PATIENCE = 30.0

# Bytes of an answer that are read.
_ANSWER = 4096

PASSED = "passed"


@dataclass(frozen=True)
class Limits:
    """What one program may take.

    Attributes:
        seconds: On the clock; as many and two more of the processor.
        memory: Bytes of address space.
        file_bytes: Bytes of the largest file that it writes.
    """

    seconds: float = 3.0
    memory: int = 4 * 2**30
    file_bytes: int = 2**20


def check_confinement() -> None:
    """Refuse to run programs where a process cannot be limited.

    Raises:
        InputError: This system has no limits of processes.
    """
    if os.name != "posix":
        raise InputError(
            "code: programs that models write are run with limits that this system does not have; "
            "run such tasks on Linux"
        )


def run(program: str, limits: Limits | None = None) -> str:
    """Run one program in a process of its own.

    The process has an empty temporary folder as its working folder, nothing of this process's
    environment, and limits. It is ended, with all that it started, when it is done or out of time.

    Args:
        program: The program, with its tests.
        limits: What it may take.

    Returns:
        ``passed``, ``timed out``, or ``failed: `` and why.
    """
    limits = limits or Limits()
    mark = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="sensmerge-program-") as name:
        folder = str(Path(name).resolve())
        asked = {
            "program": program,
            "home": folder,
            "seconds": limits.seconds,
            "memory": limits.memory,
            "bytes": limits.file_bytes,
            "mark": mark,
        }
        child = subprocess.Popen(
            # -P and -s: no module is taken from the working folder or from the user's own.
            [sys.executable, "-P", "-s", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
        )
        # The answer is read as it comes, and no more of it than there should be.
        alarm = threading.Timer(limits.seconds + _PATIENCE, _end, [child])
        alarm.daemon = True
        alarm.start()
        try:
            said = _ask(child, json.dumps(asked).encode())
        finally:
            alarm.cancel()
            _end(child)
            child.wait()
    first, _, outcome = said.decode("utf-8", "replace").partition(" ")
    if first == mark:
        return outcome
    return "failed: its process was ended before it was done"


def _ask(child: subprocess.Popen[bytes], asked: bytes) -> bytes:
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdin, child.stdout:
        try:
            child.stdin.write(asked)
            child.stdin.close()
        except BrokenPipeError:
            return b""
        return child.stdout.read(_ANSWER)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started, unless it was waited for already."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()


def _environment(folder: str) -> dict[str, str]:
    """All variables that a program sees: none of this process's but the way to its libraries."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return kept | {
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PATH": os.defpath,
        # The order of sets, and so whether a program passes, is the same in every run.
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


# Numbers of tries for which a share is estimated, where a task names none.
TRIES = (1, 10, 100)


class CodeEval:
    """In the place of the metric ``code_eval`` of the library ``evaluate``."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()

    def compute(
        self,
        *,
        predictions: Sequence[Sequence[str]],
        references: Sequence[str],
        k: Sequence[int] = TRIES,
        num_workers: int = 4,
        timeout: float | None = None,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """Run every candidate of every problem with the problem's tests.

        Args:
            predictions: For each problem, its candidates.
            references: For each problem, its tests.
            k: Numbers of tries.
            num_workers: Programs that run at a time.
            timeout: Seconds that a program may take.

        Returns:
            ``pass@k`` for every k of which no problem has fewer candidates, the mean over the
            problems of the unbiased estimate; and what came of every candidate.
        """
        limits = Limits(timeout or self._limits.seconds, self._limits.memory)
        asked = [
            (problem, place, f"{candidate}\n{test}")
            for problem, (candidates, test) in enumerate(zip(predictions, references, strict=True))
            for place, candidate in enumerate(candidates)
        ]
        with ThreadPoolExecutor(max_workers=min(num_workers, os.cpu_count() or 1)) as pool:
            said = list(pool.map(lambda each: run(each[2], limits), asked))
        found: dict[int, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        for (problem, place, _), outcome in zip(asked, said, strict=True):
            passed = outcome == PASSED
            found[problem].append(
                (
                    place,
                    {
                        "task_id": problem,
                        "passed": passed,
                        "result": outcome,
                        "completion_id": place,
                    },
                )
            )
        counts = [
            (len(tries), sum(each["passed"] for _, each in tries)) for tries in found.values()
        ]
        rates = {
            f"pass@{tries}": _mean([estimate(n, correct, tries) for n, correct in counts])
            for tries in k
            if counts and all(n >= tries for n, _ in counts)
        }
        return rates, dict(found)


def estimate(candidates: int, correct: int, tries: int) -> float:
    """The chance that of so many tries, drawn without repetition, one is right.

    Args:
        candidates: Candidates of a problem.
        correct: Those that pass.
        tries: Candidates that are drawn; no more than there are.
    """
    return 1.0 - math.comb(candidates - correct, tries) / math.comb(candidates, tries)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
