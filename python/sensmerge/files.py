"""Atomic writing of files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sensmerge.errors import InputError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, whole or not at all; see :func:`replacing`.

    Args:
        path: The file.
        content: Bytes, or text that is written as UTF-8.

    Raises:
        InputError: The file cannot be written there.
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name beside it, flush it to the disk, and rename it.

    A reader sees the old content or the new one, even after a crash. The file's folder is created
    if it does not exist. A link is followed, so that it stays a link. Permissions are those that
    ``open`` would leave: the old file's or, for a new file, those that the umask allows.

    Args:
        path: The file.

    Raises:
        InputError: The file cannot be written there.
    """
    target = path.resolve()
    temporary = target.parent / f".sensmerge-{secrets.token_hex(8)}.partial"
    try:
        if target.exists() and not target.is_file():
            raise InputError(f"{path}: is not a regular file")
        if target.parent.exists() and not target.parent.is_dir():
            raise InputError(f"{path}: cannot be written: {target.parent} is not a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            # Some file systems have no permissions to set.
            with suppress(OSError):
                os.chmod(temporary, target.stat().st_mode & 0o777)
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
