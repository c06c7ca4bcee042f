"""How the hostile files of the corpus are described and written."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = Any
Build = Callable[[Path], object]

NAME = "model.safetensors"
INDEX = "model.safetensors.index.json"

# What a name can do to a terminal: forge a line, set the title, write backwards.
EVIL = "a\nerror: forged\r\x1b]0;title\x07\x1b[31m\u202egnp\u200b\x9b2J<img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        kind: Its kind, which says what is run on it.
        name: What is hostile about it.
        build: Writes it into a folder that holds sound models.
        file: The name that the message has to have.
        said: A word of the reason; None where the input is accepted.
    """

    kind: str
    name: str
    build: Build
    file: str
    said: str | None


def entry(shape: Json = (1,), offsets: Json = (0, 4), dtype: Json = "F32", **more: Json) -> Json:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


def framed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def held(header: Json, data: int = 4) -> bytes:
    return framed(json.dumps(header).encode(), bytes(data))


def put(path: str, content: bytes | str) -> Build:
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content

    def build(folder: Path) -> None:
        place = folder / path
        if place.is_symlink() or place.exists():
            place.unlink()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    return build


def sparse(path: str, size: int, start: bytes = b"") -> Build:
    """A file that claims a size and takes none."""

    def build(folder: Path) -> None:
        put(path, start)(folder)
        os.truncate(folder / path, size)

    return build


def special(path: str, what: str) -> Build:
    """Something other than a regular file: a pipe, a socket, a folder, or a link to a target."""

    def build(folder: Path) -> None:
        place = folder / path
        if place.is_symlink() or place.exists():
            place.unlink()
        if what == "pipe":
            os.mkfifo(place)
        elif what == "folder":
            place.mkdir()
        elif what == "socket":
            # The path of a socket is short: it is bound from its own folder.
            here = Path.cwd()
            os.chdir(place.parent)
            try:
                with socket.socket(socket.AF_UNIX) as made:
                    made.bind(place.name)
            finally:
                os.chdir(here)
        else:
            place.symlink_to(what)

    return build


def both(*builds: Build) -> Build:
    def build(folder: Path) -> None:
        for each in builds:
            each(folder)

    return build
