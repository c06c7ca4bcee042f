"""By a command that prints JSON: any program that says how good the model in a folder is."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from contextlib import suppress
from typing import IO, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from sensmerge.errors import InputError
from sensmerge.farm import test_sets
from sensmerge.farm.evaluators import Better, Context, Evaluator
from sensmerge.farm.jobs import Job, Scores
from sensmerge.reading import SMALL, parsed
from sensmerge.recipe.fields import Strict
from sensmerge.terminal import plain

MODEL = "{model}"

# Bytes of what a command said beside its result that a reason may show.
_TAIL = 2000
# Seconds between asking a command to end and ending it.
_GRACE = 5.0


def _words(value: Any) -> list[str]:
    """The words of a command, written as a list or as a shell would be given it."""
    if isinstance(value, str):
        try:
            value = shlex.split(value)
        except ValueError as error:
            raise ValueError(f"cannot be split into words: {error}") from None
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a command: words, of which one has {MODEL}")
    return [str(word) for word in value]


def _names_model(words: list[str]) -> list[str]:
    if not any(MODEL in word for word in words):
        raise ValueError(f"no word has {MODEL}, in whose place the model's folder stands")
    return words


class CommandSettings(Strict):
    """A command that prints JSON. It is run without a shell, in the folder of the farm file.

    Attributes:
        run: The words of the command; the model's folder stands in the place of ``{model}``.
        score: The number in what it prints by which candidates are compared, with dots between the
            keys; None takes the mean of ``tasks``.
        tasks: Numbers in what it prints that are shown, by the names of tasks.
        better: Which scores are better.
        time_limit: Seconds that it may take.
    """

    run: Annotated[list[str], BeforeValidator(_words), AfterValidator(_names_model)]
    score: str | None = None
    tasks: dict[str, str] = Field(default_factory=dict)
    better: Literal["lower", "higher"] = "higher"
    time_limit: float = Field(default=3600.0, gt=0, allow_inf_nan=False)

    def opened(self, context: Context) -> Evaluator:
        """The evaluator.

        Raises:
            InputError: There is no such program, or no number is named.
        """
        return Command(self, context)


class Command:
    """Runs the command once for each candidate."""

    needs_output = True

    def __init__(self, settings: CommandSettings, context: Context) -> None:
        """Look for the program.

        Raises:
            InputError: There is no such program, or no number is named.
        """
        self.better: Better = settings.better
        self._settings, self._folder = settings, context.folder
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        if settings.score is None and not settings.tasks:
            raise InputError(
                "evaluate.command: name the number that it prints: score, or tasks of which the "
                "mean counts"
            )
        program = settings.run[0]
        beside = context.folder / program if os.sep in program else None
        if MODEL not in program and shutil.which(beside or program) is None:
            raise InputError(f"evaluate.command.run: there is no program '{program}' to be run")

    def evaluate(self, job: Job) -> Scores:
        """Run the command on a candidate's folder.

        Raises:
            InputError: It failed, took too long, or did not print the numbers.
        """
        printed = self._printed([word.replace(MODEL, str(job.output)) for word in self._words()])
        found = _json(printed)
        tasks = {name: _number(found, key) for name, key in self._settings.tasks.items()}
        if self._settings.score is not None:
            return Scores(_number(found, self._settings.score), tasks)
        return Scores(math.fsum(tasks.values()) / len(tasks), tasks)

    def _words(self) -> list[str]:
        first, *others = self._settings.run
        # A program by its path is in the farm's folder, whatever the system takes paths from.
        return [str(self._folder.absolute() / first) if os.sep in first else first, *others]

    def _printed(self, words: list[str]) -> bytes:
        """What the command prints. It and all that it starts have ended afterwards."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
            with self._lock:
                if self._stopped:
                    raise InputError("the farm is being stopped")
                try:
                    process = subprocess.Popen(
                        words,
                        cwd=self._folder,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=said,
                        # A group of its own, so that all of it can be ended.
                        start_new_session=True,
                    )
                except OSError as error:
                    raise InputError(f"{words[0]}: cannot be run: {error.strerror}") from None
                self._running.add(process)
            try:
                code = process.wait(self._settings.time_limit)
            except subprocess.TimeoutExpired:
                raise InputError(
                    f"{words[0]}: took longer than {self._settings.time_limit:g} s{_tail(said)}"
                ) from None
            finally:
                _end(process)
                with self._lock:
                    self._running.discard(process)
            if code != 0:
                how = f"exit code {code}" if code > 0 else f"signal {-code}"
                raise InputError(f"{words[0]}: failed with {how}{_tail(said)}")
            if out.seek(0, os.SEEK_END) > SMALL:
                raise InputError(f"{words[0]}: printed more than {SMALL} bytes; print one result")
            out.seek(0)
            return out.read()

    def key(self) -> dict[str, Any]:
        """The settings but the time limit."""
        return {"command": self._settings.model_dump(exclude={"time_limit"})}

    def notes(self) -> list[str]:
        """A note if a word says that the score is that of a test set."""
        words = [*self._settings.run[1:], *self._settings.tasks, self._settings.score or ""]
        return test_sets.of_words(words, "evaluate.command")

    def stop(self) -> None:
        """End the commands that run."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)

    def close(self) -> None:
        """Nothing is held."""


def _json(printed: bytes) -> Any:
    """The JSON that a command printed, after whatever lines it printed before."""
    for text in (printed, (printed.strip().splitlines() or [b""])[-1]):
        try:
            return parsed(text)
        except ValueError:
            continue
    raise InputError(f"printed no JSON: '{plain(printed[-200:].decode(errors='replace'))}'")


def _number(found: Any, key: str) -> float:
    """The number under keys with dots between them; a key may have dots of its own."""
    value = _under(found, key.split("."))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"printed no number '{key}'")
    if not math.isfinite(value):
        raise InputError(f"printed {value} as '{key}', which is no score")
    return float(value)


def _under(found: Any, keys: list[str]) -> Any:
    if not keys:
        return found
    for count in range(len(keys), 0, -1) if isinstance(found, dict) else ():
        name = ".".join(keys[:count])
        if name in found and (value := _under(found[name], keys[count:])) is not None:
            return value
    return None


def _tail(said: IO[bytes]) -> str:
    """The last of what a command said beside its result, to be put behind a reason."""
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - _TAIL))
    lines = said.read().decode(errors="replace").strip().splitlines()
    return f": {plain(lines[-1])}" if lines else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command, and what it started and left."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        elif process.poll() is None:
            process.send_signal(number)
    except (ProcessLookupError, PermissionError):
        # All of it has ended.
        return
