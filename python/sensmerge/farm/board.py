"""What a farm has found so far, as a table, as keys and values, and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge.document import Documented
from sensmerge.farm import lock
from sensmerge.farm.database import STATUSES, Candidate, Database
from sensmerge.farm.fronts import front_of
from sensmerge.farm.jobs import tree_bytes
from sensmerge.farm.space import MODELS
from sensmerge.models.inspection import human_size
from sensmerge.terminal import plain

if TYPE_CHECKING:
    from sensmerge.farm.evaluators import Better

# Candidates in a table for the terminal, and on a page before the others are folded.
SHOWN = 20
# Values longer than this are cut in a table.
_LONGEST = 24


@dataclass(frozen=True)
class Board(Documented):
    """What a farm has found so far.

    Attributes:
        folder: The farm's folder.
        evaluator: What scores its candidates.
        better: Which scores are better: ``lower`` or ``higher``.
        running: Whether it runs just now.
        counts: How many candidates have each status.
        tasks: The names of the tasks that have scores of their own.
        parameters: The names of the places that vary.
        candidates: All candidates: those with a score first, the best first.
        front: The numbers of the candidates that no other beats on all tasks, the best first.
        bytes: What the folder takes, in bytes.
        disk: What it may take; None is no bound.
        notes: Notes for the user.
    """

    folder: Path
    evaluator: str
    better: Better
    running: bool
    counts: dict[str, int]
    tasks: list[str]
    parameters: list[str]
    candidates: list[Candidate]
    front: list[int]
    bytes: int
    disk: int | None
    notes: list[str]

    @classmethod
    def read(cls, folder: str | Path) -> Board:
        """The board of a farm's folder; the farm may be running.

        Raises:
            InputError: It is no folder of a farm, or its database cannot be read.
        """
        folder = Path(folder)
        with closing(Database(folder, write=False)) as database:
            found = database.candidates()
            better: Better = "lower" if database.setting("better") == "lower" else "higher"
            notes = [*database.setting("notes", []), *database.setting("events", [])]
            evaluator, disk = str(database.setting("evaluator", "")), database.setting("disk")
        sign = 1 if better == "lower" else -1
        done = [each for each in found if each.status == "done"]
        done.sort(key=lambda each: (sign * (each.score or 0.0), each.number))
        order = {status: place for place, status in enumerate(("running", "waiting", "failed"))}
        others = [each for each in found if each.status != "done"]
        others.sort(key=lambda each: (order.get(each.status, 0), each.number))
        tasks = _names(each.scores for each in done)
        whole = [each for each in done if set(each.scores) == set(tasks)]
        front = front_of([each.scores for each in whole], better) if len(tasks) > 1 else []
        counts: dict[str, int] = {
            status: sum(each.status == status for each in found) for status in STATUSES
        }
        failed = counts["failed"]
        if failed:
            notes.append(f"{failed} of {len(found)} candidates failed; the board says why")
        return cls(
            folder=folder,
            evaluator=evaluator,
            better=better,
            running=lock.is_held(folder),
            counts=counts,
            tasks=tasks,
            parameters=_names(each.chosen for each in found),
            candidates=[*done, *others],
            front=[whole[place].number for place in front],
            bytes=tree_bytes(folder),
            disk=disk,
            notes=list(dict.fromkeys(map(str, notes))),
        )

    @property
    def done(self) -> list[Candidate]:
        """The candidates that have a score, the best first."""
        return [each for each in self.candidates if each.status == "done"]

    @property
    def best(self) -> Candidate | None:
        """The best candidate; None as long as none has a score."""
        return next(iter(self.done), None)

    @property
    def validated(self) -> bool:
        """Whether candidates have scores on samples that none is chosen by."""
        return any(each.validation is not None for each in self.candidates)

    @property
    def failures(self) -> dict[str, list[int]]:
        """The numbers of the candidates that failed, by the reason."""
        found: dict[str, list[int]] = {}
        for each in self.candidates:
            if each.status == "failed":
                found.setdefault(each.reason or "", []).append(each.number)
        return found

    def model(self, candidate: Candidate) -> Path | None:
        """The folder of a candidate's model; None if it was not kept."""
        return self.folder / MODELS / candidate.folder if candidate.kept else None

    def as_dict(self) -> dict[str, Any]:
        """The board as keys and values; see docs/json.md."""
        best = self.best
        return {
            "folder": self.folder,
            "evaluator": self.evaluator,
            "better": self.better,
            "running": self.running,
            "counts": self.counts,
            "tasks": self.tasks,
            "parameters": self.parameters,
            "candidates": [self._plain(each) for each in self.candidates],
            "front": self.front,
            "best": None if best is None else best.number,
            "coefficients": None if best is None else best.coefficients,
            "bytes": self.bytes,
            "disk": self.disk,
            "notes": self.notes,
        }

    def _plain(self, candidate: Candidate) -> dict[str, Any]:
        found = asdict(candidate)
        del found["coefficients"], found["kept"]
        return found | {"model": self.model(candidate)}

    def head(self) -> list[str]:
        """Names of the columns of :meth:`rows`."""
        names = [plain(name) for name in [*self.tasks, *self.parameters]]
        held = ["validation"] if self.validated else []
        return ["no.", "score", *held, *names, "merge", "evaluation", "status"]

    def rows(self, most: int | None = None) -> list[list[str]]:
        """Candidates as text, a row each.

        Args:
            most: How many at most; None for all.
        """
        return [self._row(each) for each in self.candidates[:most]]

    def _row(self, candidate: Candidate) -> list[str]:
        held = [_number(candidate.validation)] if self.validated else []
        status: str = "kept" if candidate.kept else candidate.status
        return [
            str(candidate.number),
            _number(candidate.score),
            *held,
            *(_number(candidate.scores.get(task)) for task in self.tasks),
            *(_value(candidate.chosen.get(name, "")) for name in self.parameters),
            _seconds(candidate.merge_seconds),
            _seconds(candidate.evaluation_seconds),
            status,
        ]

    def sentence(self) -> str:
        """How far the farm is, in one line."""
        said = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count)
        of = "" if self.disk is None else f" of {human_size(self.disk)}"
        state = "running" if self.running else "not running"
        size = f"{human_size(self.bytes)}{of} on the disk"
        return f"{plain(self.folder)}: {said or 'no candidates'}; {size}; {state}"

    def table(self, most: int | None = SHOWN) -> str:
        """The board as text.

        Args:
            most: How many candidates at most; None for all.
        """
        lines = [self.sentence(), ""]
        head, rows = self.head(), self.rows(most)
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines += ["  ".join(map(str.rjust, row, widths)).rstrip() for row in [head, *rows]]
        if most is not None and len(self.candidates) > most:
            lines.append(f"and more: {len(self.candidates)} candidates in all")
        for reason, numbers in self.failures.items():
            lines.append(f"failed: {_listed(numbers)}: {plain(reason)}")
        best = self.best
        if best is not None and best.kept:
            lines.append(f"best model: {plain(self.model(best))}")
        return "\n".join(lines)


def _names(found: Iterator[dict[str, Any]] | Any) -> list[str]:
    """The keys of several mappings, each once, in their order."""
    return list(dict.fromkeys(str(name) for each in found for name in each))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def _value(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else plain(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _listed(numbers: Sequence[int]) -> str:
    """Numbers of candidates; many are not all named."""
    said = ", ".join(map(str, numbers[:SHOWN]))
    return said if len(numbers) <= SHOWN else f"{said} and more, {len(numbers)} in all"
