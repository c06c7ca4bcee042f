"""Rows of the files that people keep samples in: JSON Lines, JSON, gzip of either, Parquet.

A file's ending tells its format. Paths and addresses in a row are not followed, code is not run.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from sensmerge.errors import InputError
from sensmerge.reading import SMALL, opened, parsed

_KNOWN = ".jsonl, .json, either with .gz, or .parquet"

# The largest file of samples, and the longest line in one, in bytes.
_LARGEST = 512 * 10**6
_LONGEST_LINE = 16 * 10**6
_BLOCK = 2**20
# What a gzip file unpacks to at most: as much, or so many times its size. Text is packed four to
# ten times as small.
_UNPACKED = 32 * 10**6
_RATIO = 20

# Older ones run code that a Parquet file names (CVE-2023-47248).
_OLDEST_PYARROW = 15


@dataclass(frozen=True)
class Row:
    """One row of a file, and its place in words, for messages."""

    place: str
    data: dict[str, Any]


def rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Every row's place, in words, and its value, which need not be an object.

    Raises:
        InputError: The file cannot be read, or a part of it is not what its name says.
    """
    name = path.name.lower()
    if path.is_dir():
        raise InputError(f"{path}: Is a directory; name a file in it, or a list of them")
    if name.endswith(".parquet"):
        return _parquet(path)
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _lines(path, _blocks(path))
    if name.endswith((".json", ".json.gz")):
        data = b"".join(_blocks(path))
        # On the Hub, many .json files hold JSON Lines.
        return _array(path, data) if data.lstrip().startswith(b"[") else _lines(path, [data])
    raise InputError(f"{path}: is no kind of file that samples are read from; known: {_KNOWN}")


def _blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked, in blocks."""
    done = 0
    try:
        with opened(path, _LARGEST) as (file, size):
            packed = path.name.lower().endswith(".gz")
            most = max(_UNPACKED, _RATIO * size) if packed else size
            source: Any = gzip.GzipFile(fileobj=file) if packed else file
            while block := source.read(_BLOCK):
                # Some editors begin a file with a byte order mark.
                yield block if done else block.removeprefix(codecs.BOM_UTF8)
                done += len(block)
                if done > most:
                    raise InputError(
                        f"{path}: holds more than {most} bytes, {_RATIO} times as many as it has "
                        "itself: no samples are packed so well"
                    )
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is not a whole gzip file: {error}; fetch it again") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def _lines(path: Path, blocks: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """One JSON value a line; blank lines are passed over."""
    rest, number = b"", 0
    for block in chain(blocks, (b"\n",)):
        whole, end, rest = (rest + block).rpartition(b"\n")
        if not end and len(rest) > _LONGEST_LINE:
            raise InputError(f"{path}: a line of it has over {_LONGEST_LINE} bytes")
        if not whole.strip():
            number += whole.count(b"\n") + len(end)
            continue
        for line in whole.split(b"\n"):
            number += 1
            if line.strip():
                yield _value(f"{path}, line {number}", path, line)


def _value(place: str, path: Path, line: bytes) -> tuple[str, Any]:
    try:
        return place, parsed(_decoded(path, line), _LARGEST)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"{place}: not JSON: {error}; expected one object on each line, or in a file named "
            ".json a list of them"
        ) from None


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: {error.reason}; save it as UTF-8") from None


def _array(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    text = _decoded(path, data)
    try:
        values = parsed(text, max(len(data), SMALL))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}: not JSON: {error.msg}; expected a list of objects"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}; expected a list of objects") from None
    for number, value in enumerate(values, start=1):
        yield f"{path}, row {number}", value


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            f"{path}: reading Parquet needs pyarrow ({error}); pip install 'sensmerge[parquet]', "
            "or write the samples as .jsonl"
        ) from None
    if int(pyarrow.__version__.partition(".")[0]) < _OLDEST_PYARROW:
        raise InputError(
            f"{path}: pyarrow {pyarrow.__version__} reads Parquet unsafely; "
            "pip install --upgrade 'sensmerge[parquet]'"
        )
    number = 0
    try:
        with (
            opened(path, _LARGEST) as (opened_file, _),
            pyarrow.parquet.ParquetFile(opened_file) as file,
        ):
            # A dictionary would keep only the last of two columns of one name.
            if len(set(file.schema_arrow.names)) < len(file.schema_arrow.names):
                raise InputError(f"{path}: two of its columns have one name; rename one")
            for batch in file.iter_batches():
                for data in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", data
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (pyarrow.ArrowException, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: cannot be read as Parquet behind row {number}: {error}; fetch it again"
        ) from None
