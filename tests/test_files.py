"""Files are written completely or not at all, with the permissions of any other file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sensmerge import InputError
from sensmerge.files import write_atomically


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def permissions(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("content", "expected"), [("λ\n", "λ\n".encode()), (b"\x00\r\n", b"\x00\r\n")]
)
def test_the_content_is_what_was_given(
    tmp_path: Path, content: str | bytes, expected: bytes
) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, content)
    assert path.read_bytes() == expected
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("first", "second"):
        write_atomically(path, content)
        assert path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="has other permissions")
def test_permissions_are_those_that_open_gives(tmp_path: Path) -> None:
    ours, plain = tmp_path / "ours", tmp_path / "plain"
    write_atomically(ours, "new")
    plain.write_text("new")
    assert permissions(ours) == permissions(plain) == 0o666 & ~umask()
    ours.chmod(0o600)
    write_atomically(ours, "newer")
    assert permissions(ours) == 0o600


def test_a_link_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    for content in ("first", "second"):
        write_atomically(link, content)
        assert link.is_symlink()
        assert target.read_text() == content


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_stops_half_way_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, stop: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_: Any) -> None:
        raise stop

    monkeypatch.setattr(os, step, fail)
    expected = InputError if isinstance(stop, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as stopped:
        write_atomically(path, "new")
    if isinstance(stop, OSError):
        assert str(stopped.value) == f"{path}: cannot be written: No space left on device"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path(os.devnull)):
        with pytest.raises(InputError, match="is not a regular file"):
            write_atomically(path, "")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written: .*file is not a folder"):
        write_atomically(tmp_path / "file" / "inner", "")
    with pytest.raises(InputError, match=r"cannot be written: "):
        write_atomically(tmp_path / "file" / "inner" / "deeper", "")
