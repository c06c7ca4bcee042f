"""All that is known of a farm's candidates, in one SQLite file in its folder.

Only the farm's main thread writes. A change is whole or not there, also where the process is killed
or the disk is full.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sensmerge.errors import InputError
from sensmerge.farm.jobs import Outcome
from sensmerge.files import write_atomically
from sensmerge.reading import MIDDLE, mode_of, parsed

FILE = "farm.sqlite"
# Bytes that are given up where the disk is full, so that what happened can still be written down.
SPARE = "spare"
_SPARE_BYTES = 2**18

VERSION = 1
_APPLICATION = 0x736D6661
_SECONDS_TO_WAIT = 60.0

Status = Literal["waiting", "running", "done", "failed"]
STATUSES: tuple[Status, ...] = ("waiting", "running", "done", "failed")

_TABLES = """
CREATE TABLE farm (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE candidates (
    number INTEGER PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,
    recipe TEXT NOT NULL,
    chosen TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('waiting', 'running', 'done', 'failed')),
    reason TEXT,
    score REAL,
    validation REAL,
    merge_seconds REAL,
    evaluation_seconds REAL,
    bytes INTEGER,
    kept INTEGER NOT NULL DEFAULT 0,
    coefficients TEXT
);
CREATE TABLE scores (
    number INTEGER NOT NULL REFERENCES candidates,
    task TEXT NOT NULL,
    score REAL NOT NULL,
    PRIMARY KEY (number, task)
);
"""


@dataclass(frozen=True)
class Entry:
    """A candidate by its name.

    Attributes:
        number: Its number, from 1, in the order in which candidates were thought of.
        hash: Digest of all that decides its bytes.
    """

    number: int
    hash: str

    @property
    def folder(self) -> str:
        """The name of its model's folder."""
        return f"{self.number:05}-{self.hash[:12]}"


@dataclass(frozen=True)
class Candidate(Entry):
    """What is known of a candidate.

    Attributes:
        recipe: Its recipe, as keys and values.
        chosen: The values of the places that vary, by their names.
        status: ``waiting``, ``running``, ``done`` or ``failed``.
        reason: Why it failed.
        score: What it is compared by.
        validation: The score on samples that no candidate is chosen by.
        scores: The score of each task.
        merge_seconds: What its merge took.
        evaluation_seconds: What its evaluation took.
        bytes: What its folder took on the disk.
        kept: Whether its model lies in the farm's folder.
        coefficients: Its coefficients; None for a plain merge.
    """

    recipe: dict[str, Any]
    chosen: dict[str, Any]
    status: Status
    reason: str | None = None
    score: float | None = None
    validation: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    merge_seconds: float | None = None
    evaluation_seconds: float | None = None
    bytes: int | None = None
    kept: bool = False
    coefficients: dict[str, Any] | None = None


_COLUMNS = (
    "number", "hash", "recipe", "chosen", "status", "reason", "score", "validation",
    "merge_seconds", "evaluation_seconds", "bytes", "kept", "coefficients",
)  # fmt: skip


class Database:
    """The candidates of a farm."""

    def __init__(self, folder: Path, *, write: bool) -> None:
        """Open a farm's database.

        Args:
            folder: The farm's folder.
            write: Whether it is written, and made if it is not there.

        Raises:
            InputError: It is not there, is none, or was written by a later version.
        """
        self.path = folder / FILE
        self._spare = folder / SPARE if write else None
        if not write and mode_of(self.path) is None:
            raise InputError(f"{folder}: has no {FILE}; name the folder of a `sensmerge farm`")
        # To read, too: what a killed process left in the middle of a change has to be taken back.
        uri = f"{self.path.absolute().as_uri()}?mode={'rwc' if write else 'rw'}"
        with self._said():
            # Transactions are begun and ended below, and by nobody else.
            self._connection = sqlite3.connect(
                uri, uri=True, timeout=_SECONDS_TO_WAIT, isolation_level=None
            )
        try:
            with self._said():
                self._check(write)
        except BaseException:
            self.close()
            raise
        if self._spare is not None and mode_of(self._spare) is None:
            # Where the disk is full already, there is nothing to give up.
            with suppress(InputError):
                write_atomically(self._spare, b"\0" * _SPARE_BYTES)

    def _check(self, write: bool) -> None:
        (application,) = self._one("PRAGMA application_id")
        (version,) = self._one("PRAGMA user_version")
        (tables,) = self._one("SELECT count(*) FROM sqlite_master")
        if write and not tables:
            with self._transaction():
                for statement in filter(str.strip, _TABLES.split(";")):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._connection.execute(f"PRAGMA user_version = {VERSION}")
            return
        if application != _APPLICATION:
            raise InputError(f"{self.path}: is no database of a farm; name another folder")
        if version != VERSION:
            raise InputError(
                f"{self.path}: was written in format {version}, and this version reads format "
                f"{VERSION}; use the version that wrote it, or name another folder"
            )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def setting(self, key: str, default: Any = None) -> Any:
        """What was written down of the farm as a whole."""
        with self._said():
            found = self._one("SELECT value FROM farm WHERE key = ?", key)
            return default if found is None else parsed(found[0], MIDDLE)

    def set(self, **settings: Any) -> None:
        """Write down something of the farm as a whole."""
        said = [(key, json.dumps(value)) for key, value in settings.items()]
        self._change(("INSERT OR REPLACE INTO farm VALUES (?, ?)", said))

    def add(
        self, found: Sequence[tuple[str, dict[str, Any], dict[str, Any]]]
    ) -> list[tuple[int, bool]]:
        """Add candidates that are not there yet, as waiting.

        Args:
            found: The hash, the recipe and the values of each.

        Returns:
            The number of each, and whether it is new.
        """
        before = {identity for identity, _, _ in found if self._number(identity) is not None}
        rows = [
            (identity, json.dumps(recipe), json.dumps(chosen)) for identity, recipe, chosen in found
        ]
        self._change(
            (
                "INSERT INTO candidates (hash, recipe, chosen, status) VALUES (?, ?, ?, 'waiting') "
                "ON CONFLICT (hash) DO NOTHING",
                rows,
            )
        )
        return [(self._number(identity) or 0, identity not in before) for identity, _, _ in found]

    def _number(self, identity: str) -> int | None:
        with self._said():
            found = self._one("SELECT number FROM candidates WHERE hash = ?", identity)
        return None if found is None else int(found[0])

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove candidates of which nothing is known yet."""
        self._change(
            (
                "DELETE FROM candidates WHERE number = ? AND status = 'waiting'",
                [(number,) for number in numbers],
            )
        )

    def begin(self, number: int) -> None:
        """Write down that a candidate is being merged or scored."""
        self._change(
            (
                "UPDATE candidates SET status = 'running', reason = NULL WHERE number = ?",
                [(number,)],
            )
        )

    def wait_again(self, status: Status) -> None:
        """Let all candidates of a status wait: those that ran when a process ended, or failed."""
        self._change(
            (
                "UPDATE candidates SET status = 'waiting', reason = NULL WHERE status = ?",
                [(status,)],
            )
        )

    def end(self, outcome: Outcome, *, kept: bool) -> None:
        """Write down what came of a candidate.

        Args:
            outcome: What came of it.
            kept: Whether its model lies in the farm's folder.
        """
        scores, merged = outcome.scores, outcome.merged
        found = None if merged.coefficients is None else json.dumps(merged.coefficients)
        values = (
            "failed" if scores is None else "done",
            outcome.reason,
            None if scores is None else scores.score,
            None if scores is None else scores.validation,
            merged.seconds,
            None if scores is None else scores.seconds,
            merged.bytes,
            kept,
            found,
            outcome.number,
        )
        tasks = {} if scores is None else scores.tasks
        self._change(
            (
                "UPDATE candidates SET status = ?, reason = ?, score = ?, validation = ?, "
                "merge_seconds = ?, evaluation_seconds = ?, bytes = ?, kept = ?, coefficients = ? "
                "WHERE number = ?",
                [values],
            ),
            ("DELETE FROM scores WHERE number = ?", [(outcome.number,)]),
            (
                "INSERT INTO scores VALUES (?, ?, ?)",
                [(outcome.number, task, score) for task, score in tasks.items()],
            ),
        )

    def keep(self, number: int, kept: bool, size: int | None = None) -> None:
        """Write down whether a candidate's model lies in the farm's folder, and what it takes."""
        self._change(
            (
                "UPDATE candidates SET kept = ?, bytes = coalesce(?, bytes) WHERE number = ?",
                [(kept, size, number)],
            )
        )

    def best(self, better: str, *, kept: bool = False, limit: int = -1) -> list[Entry]:
        """The candidates that have a score, the best first; of equal ones the earlier.

        Args:
            better: Which scores are better, ``lower`` or ``higher``.
            kept: Only those whose models lie in the farm's folder.
            limit: How many at most.
        """
        order = "ASC" if better == "lower" else "DESC"
        only = " AND kept" if kept else ""
        with self._said():
            rows = self._connection.execute(
                f"SELECT number, hash FROM candidates WHERE status = 'done'{only} "
                f"ORDER BY score {order}, number LIMIT ?",
                (limit,),
            ).fetchall()
        return [Entry(*row) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many candidates have each status."""
        with self._said():
            rows = self._connection.execute(
                "SELECT status, count(*) FROM candidates GROUP BY status"
            ).fetchall()
        counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
        return counts | dict(rows)

    def candidate(self, number: int) -> Candidate:
        """The candidate of a number."""
        return self._candidates("WHERE number = ?", number)[0]

    def candidates(self, status: Status | None = None) -> list[Candidate]:
        """The candidates in the order of their numbers; all, or those of a status.

        Raises:
            InputError: The file is damaged.
        """
        if status is None:
            return self._candidates("")
        return self._candidates("WHERE status = ?", status)

    def _candidates(self, where: str, *given: Any) -> list[Candidate]:
        with self._said(), self._transaction():
            rows = self._connection.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM candidates {where} ORDER BY number", given
            ).fetchall()
            of_tasks = self._connection.execute(
                "SELECT number, task, score FROM scores ORDER BY rowid"
            ).fetchall()
        scores: dict[int, dict[str, float]] = {}
        for number, task, score in of_tasks:
            scores.setdefault(number, {})[str(task)] = float(score)
        return [_candidate(dict(zip(_COLUMNS, row, strict=True)), scores) for row in rows]

    def _one(self, statement: str, *given: Any) -> Any:
        return self._connection.execute(statement, given).fetchone()

    @contextmanager
    def _transaction(self, kind: str = "DEFERRED") -> Iterator[None]:
        self._connection.execute(f"BEGIN {kind}")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # SQLite may have taken it back itself.
            if self._connection.in_transaction:
                self._connection.rollback()
            raise

    def _change(self, *statements: tuple[str, Sequence[tuple[Any, ...]]]) -> None:
        """Make a change, which is whole or not there: each statement with all its values."""
        with self._said():
            try:
                self._carry_out(statements)
            except sqlite3.OperationalError as error:
                if not _is_full(error) or self._spare is None:
                    raise
                self._spare.unlink(missing_ok=True)
                self._carry_out(statements)

    def _carry_out(self, statements: Sequence[tuple[str, Sequence[tuple[Any, ...]]]]) -> None:
        with self._transaction("IMMEDIATE"):
            for statement, values in statements:
                self._connection.executemany(statement, values)

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            hint = "; free space, and run the same command again" if _is_full(error) else ""
            raise InputError(f"{self.path}: {error}{hint}") from None
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path}: is damaged: {error}") from None


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"


def _candidate(row: Mapping[str, Any], scores: Mapping[int, dict[str, float]]) -> Candidate:
    read = {
        key: None if row[key] is None else parsed(row[key], MIDDLE)
        for key in ("recipe", "chosen", "coefficients")
    }
    found = {**row, **read, "kept": bool(row["kept"]), "scores": scores.get(row["number"], {})}
    return Candidate(**found)
