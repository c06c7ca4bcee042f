"""Models that are stored as pickles, as ``torch.save`` writes them: ``pytorch_model.bin``.

A pickle can run code. None is read unless the caller asks for it, and then by another process
(:mod:`sensmerge.unpickling`), which writes the tensors to a temporary folder as safetensors.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.models.side_files import side_files
from sensmerge.progress import bytes_bar
from sensmerge.reading import is_folder, own_file

_ENDINGS = (".bin", ".pt", ".pth")


@dataclass
class Unpickled:
    """Models that were read as pickles.

    Attributes:
        beside: A path beside which the temporary folder is made.
        progress: Whether to show progress.
        folder: The temporary folder; None until there is a model.
        copies: What stands for every path that was asked for: a copy, or the path itself.
        notes: Notes for the user.
    """

    beside: Path
    progress: bool
    folder: Path | None = None
    copies: dict[Path, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


_current: ContextVar[Unpickled | None] = ContextVar("unpickled", default=None)


@contextmanager
def unpickling(beside: str | Path, *, enabled: bool, progress: bool = True) -> Iterator[Unpickled]:
    """Within this context, models that are stored as pickles can be read.

    Args:
        beside: The temporary folder is made in the folder that holds this path, or would hold it.
        enabled: Whether this context changes anything.
        progress: Show progress.

    Yields:
        What was read so far.
    """
    found = Unpickled(Path(beside), progress)
    if not enabled:
        yield found
        return
    token = _current.set(found)
    try:
        yield found
    finally:
        _current.reset(token)
        if found.folder is not None:
            shutil.rmtree(found.folder, ignore_errors=True)


def unpickled() -> Unpickled:
    """What was read as pickles so far in this context."""
    return _current.get() or Unpickled(Path(), progress=False)


def enabled() -> bool:
    """Whether pickles are read."""
    return _current.get() is not None


def readable(path: Path) -> Path:
    """The path itself, or that of a copy in safetensors if it is a model stored as pickles.

    Args:
        path: A model's folder or file.

    Raises:
        InputError: The pickles hold more than tensors, or torch is not installed.
        OSError: A file cannot be read, or the copy cannot be written.
    """
    current = _current.get()
    if current is None:
        return path
    if path not in current.copies:
        if is_folder(path):
            folder, files = path, _core.pickle_files(path, {each.name for each in path.iterdir()})
            for file in files:
                # Refused here if it is a link that leads outside; one that is missing is later.
                own_file(path, file)
        else:
            folder, files = path.parent, [path.name] if path.name.endswith(_ENDINGS) else []
        current.copies[path] = path if not files else _copy(current, folder, files)
    return current.copies[path]


def copied(folder: Path, file: str) -> Path:
    """The folder of a copy in safetensors of one file of an adapter.

    Only within a context in which pickles are read.

    Args:
        folder: The adapter's folder.
        file: The name of the pickle in it.

    Raises:
        InputError: The pickle holds more than tensors, or torch is not installed.
        OSError: The file cannot be read, or the copy cannot be written.
    """
    current, path = unpickled(), own_file(folder, file) or folder / file
    if path not in current.copies:
        current.copies[path] = _copy(current, folder, [file])
    return current.copies[path]


def _copy(current: Unpickled, folder: Path, files: list[str]) -> Path:
    """Write a copy of a model in safetensors, with the files beside its weights."""
    if current.folder is None:
        home = next(place for place in current.beside.absolute().parents if place.is_dir())
        current.folder = Path(tempfile.mkdtemp(prefix=".sensmerge-unpickled-", dir=home))
    # The last three names of a folder in the Hub's cache say what it is.
    target = current.folder.joinpath(str(len(current.copies)), *folder.absolute().parts[-3:])
    target.mkdir(parents=True)
    _run(current, folder, target, files)
    for path in side_files(folder):
        shutil.copyfile(path, target / path.name)
    return target


def _run(current: Unpickled, folder: Path, target: Path, files: list[str]) -> None:
    # -P: no module is taken from the working folder.
    command = [sys.executable, "-P", "-m", "sensmerge.unpickling", str(folder), str(target), *files]
    error = None
    with (
        bytes_bar(f"reading the pickles of {folder.name}", enabled=current.progress) as show,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as child,
    ):
        try:
            assert child.stdout is not None
            for line in child.stdout:
                said = json.loads(line)
                if "done" in said:
                    show(said["done"], said["total"])
                if "note" in said:
                    current.notes.append(said["note"])
                error = said.get("error", error)
        except BaseException:
            child.kill()
            raise
    if error is not None:
        raise InputError(error)
    if child.returncode != 0:
        raise InputError(
            f"{folder}: the process that read its pickles ended with status {child.returncode}"
        )
