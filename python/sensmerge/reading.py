"""Reading of files that others made: regular ones alone, of a bounded size, nested a bounded depth.

Every file that the package reads in Python is opened by :func:`opened`; the core has its own, in
``checkpoint/mapping.rs``.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from sensmerge.errors import InputError

# The largest sizes in bytes. What people keep is far smaller: a config takes a few kilobytes, a
# calibration of 100 experts and 100 layers 1 MB, the largest tokenizers 35 MB.
SMALL = 4 * 10**6
MIDDLE = 16 * 10**6
LARGE = 128 * 10**6

# Bytes of a file for each list or object in it; an empty one takes two, and 64 in memory.
_BYTES_PER_LIST = 20

# Depth of lists and objects within each other; tools in chats, the deepest seen, have about 15.
DEEPEST = 100

# Digits of a whole number; 20 are those of the largest seed.
_DIGITS = 40


def mode_of(path: Path, *, follow: bool = True) -> int | None:
    """A path's ``st_mode``, or None if there is no such file.

    Unlike ``Path.exists``, this does not take a file that cannot be examined for a missing one:
    when a disk or network fails, a merged model would otherwise silently lack its tokenizer.

    Args:
        path: The path.
        follow: Whether links are followed.

    Raises:
        OSError: The operating system cannot say whether the file exists.
    """
    try:
        return path.stat(follow_symlinks=follow).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        # A name that no file can have, such as one with a null character.
        return None
    except OSError as error:
        if is_no_name(error):
            return None
        raise


def is_no_name(error: OSError) -> bool:
    """Whether an error says that no file can have such a name: it is too long."""
    return error.errno == errno.ENAMETOOLONG


def is_folder(path: Path) -> bool:
    """Whether a path is a folder.

    Raises:
        OSError: It cannot be examined.
    """
    mode = mode_of(path)
    return mode is not None and stat.S_ISDIR(mode)


def own_file(folder: Path, name: str) -> Path | None:
    """The path of a file in a model's folder, or None if the folder has no such file.

    Links may lead elsewhere in the folder or, in the Hub's cache, to its blobs.

    Raises:
        InputError: It is a link that leads outside or to nothing, or not a regular file.
        OSError: It cannot be examined.
    """
    path = folder / name
    if mode_of(path, follow=False) is None:
        return None
    mode = mode_of(path)
    if mode is None:
        raise InputError(f"{path}: is a link to nothing")
    target, home = path.resolve(strict=True), folder.resolve(strict=True)
    if not any(target.is_relative_to(place) for place in (home, *_blobs(home))):
        raise InputError(
            f"{path}: is a link that leads outside the model's folder; put the file itself there, "
            "or name the folder that it lies in"
        )
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is not a regular file")
    return path


def _blobs(home: Path) -> list[Path]:
    """Where the files of a folder in a Hub cache lie: models--org--name/blobs beside snapshots."""
    snapshots = home.parent
    cached = snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--")
    return [snapshots.parent / "blobs"] if cached else []


@contextmanager
def opened(path: Path, most: int = SMALL) -> Iterator[tuple[BufferedReader, int]]:
    """Open a regular file.

    Args:
        path: The file; links are followed.
        most: The largest size, in bytes.

    Yields:
        The file, and its size in bytes.

    Raises:
        InputError: It is not a regular file, or larger.
        OSError: It cannot be read.
    """
    # Checked before opening: opening a device may do something. And after it, without waiting for
    # the writer of a pipe that has taken the file's place.
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
        raise InputError(f"{path}: is not a regular file")
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:  # noqa: PTH123
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path}: is not a regular file")
        if found.st_size > most:
            raise InputError(
                f"{path}: has {found.st_size} bytes, and at most {most} are read of such a file"
            )
        yield file, found.st_size


def content(path: Path, most: int = SMALL) -> bytes:
    """The bytes of a regular file.

    Args:
        path: The file; links are followed.
        most: The largest size, in bytes.

    Raises:
        InputError: It is not a regular file, or larger.
        OSError: It cannot be read.
    """
    with opened(path, most) as (file, size):
        # No more than it says it has: files of the system, such as those in /proc, say 0.
        return file.read(size)


def text(path: Path, most: int = SMALL) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        InputError: As :func:`content`; or it is not UTF-8.
        OSError: It cannot be read.
    """
    try:
        return content(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: {error.reason}; save it as UTF-8") from None


def parsed(written: str | bytes, most: int = SMALL) -> Any:
    """What a text in JSON holds.

    Args:
        written: The text.
        most: The largest size of the file that it is read from, in bytes.

    Raises:
        ValueError: It is not JSON, nested too deeply, or holds too many lists and objects or a
            number of too many digits.
    """
    if isinstance(written, str):
        lists = written.count("[") + written.count("{")
    else:
        lists = written.count(b"[") + written.count(b"{")
    if lists > most // _BYTES_PER_LIST:
        raise ValueError(f"it holds more than {most // _BYTES_PER_LIST} lists and objects")
    try:
        found = json.loads(written, parse_int=_whole)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST}") from None
    _check_depth(found)
    return found


def json_of(path: Path, most: int = SMALL) -> Any:
    """What a regular file in JSON holds.

    Args:
        path: The file.
        most: The largest size, in bytes.

    Raises:
        InputError: As :func:`content`; or it is not JSON, nested too deeply, or holds a number of
            too many digits.
        OSError: It cannot be read.
    """
    try:
        return parsed(content(path, most), most)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None


def object_of(path: Path, most: int = SMALL) -> dict[str, Any]:
    """What a regular file that holds a JSON object says.

    Raises:
        InputError: As :func:`json_of`; or it is no object.
        OSError: It cannot be read.
    """
    found = json_of(path, most)
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object")
    return found


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _check_depth(found: Any) -> None:
    """Refuse what is nested too deeply for those who walk through it by calling themselves."""
    level = [found]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for each in level:
            values = each.values() if type(each) is dict else each if type(each) is list else ()
            inner += [value for value in values if type(value) in (dict, list)]
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested deeper than {DEEPEST}")
