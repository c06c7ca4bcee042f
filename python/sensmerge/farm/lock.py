"""One farm at a time in a folder.

The lock is one of SQLite's on a file of its own: there is one on every system, and it ends with the
process that holds it, however that ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sensmerge.errors import InputError
from sensmerge.reading import mode_of

FILE = "lock"

# Whoever asks whether a farm runs holds the lock for a moment.
_SECONDS = 2.0


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder.

    Raises:
        InputError: Another farm holds it, or there can be none.
    """
    with closing(_opened(folder, _SECONDS)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise InputError(f"{folder}: another farm runs in it; wait for it") from None
            raise InputError(f"{folder / FILE}: {error}") from None
        yield


def is_held(folder: Path) -> bool:
    """Whether a farm runs in a folder."""
    if mode_of(folder / FILE) is None:
        return False
    with closing(_opened(folder, 0.0)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
            connection.rollback()
        except sqlite3.OperationalError as error:
            return "locked" in str(error)
    return False


def _opened(folder: Path, seconds: float) -> sqlite3.Connection:
    try:
        return sqlite3.connect(folder / FILE, timeout=seconds, isolation_level=None)
    except sqlite3.Error as error:
        raise InputError(f"{folder / FILE}: {error}") from None
