"""The scripts behind `make stubs`, `make pins` and `make docs`, and what tries wheels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import conf
import pins
import sensmerge
import stubs
import website

GENERATED = '''
"""
A module.
"""

from typing import final

@final
class Thing:
    """
    A thing.

    More of it.
    """
    def size(self, /, of: "numpy.typing.NDArray[numpy.uint8]") -> "os.PathLike[str] | None":
        """
        Its size.
        """

def call(back: "collections.abc.Callable[[], object] | None" = None, *, name: str = "a") -> int: ...
'''

COMPLETE = '''\
"""A module."""
import collections.abc
import numpy
import numpy.typing
import os
from typing import final

@final
class Thing:
    """A thing.

    More of it.
    """

    def size(self, /, of: numpy.typing.NDArray[numpy.uint8]) -> os.PathLike[str] | None:
        """Its size."""

def call(back: collections.abc.Callable[[], object] | None=None, *, name: str='a') -> int:
    ...
'''


def test_annotations_become_expressions_with_their_imports() -> None:
    assert stubs.complete(GENERATED) == COMPLETE


def test_a_complete_stub_is_left_alone() -> None:
    assert stubs.complete(COMPLETE) == COMPLETE


def test_what_introspection_misses_is_refused() -> None:
    with pytest.raises(LookupError, match="does not see"):
        stubs.complete("def __getattr__(name: str) -> Incomplete: ...\n")


def test_requirements_keep_their_hashes_and_lose_addresses() -> None:
    compiled = (
        "--index-url https://index.invalid/simple\n"
        "# made by a program\n"
        "one==1.0 ; python_version < '3.12' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "two==2.0\n"
        "    # via one\n"
    )
    assert pins.requirements(compiled) == [
        "one==1.0 ; python_version < '3.12' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n",
        "two==2.0\n",
    ]


@pytest.mark.parametrize(
    ("pin", "torch"),
    [
        ("torch==2.15.0\n", True),
        ("nvidia-cublas==13.4.1.3 ; sys_platform == 'linux'\n", True),
        ("triton==3.9.0\n", True),
        ("cuda-toolkit==13.2.2\n", True),
        ("numpy==2.4.6\n", False),
        ("torchvision==0.30.0\n", False),
    ],
)
def test_torch_and_what_only_it_needs_stand_apart(pin: str, torch: bool) -> None:
    assert (pins.TORCH.match(pin) is not None) is torch


def test_what_tries_wheels_agrees_with_this_build() -> None:
    command = [sys.executable, str(Path(website.__file__).parent / "try_wheel.py")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"sensmerge {sensmerge.__version__} (_core.")


def test_faults_of_a_site_are_named(tmp_path: Path) -> None:
    (tmp_path / "rustdoc").mkdir()
    (tmp_path / "rustdoc" / "a.html").write_text('<a href="gone.html">not looked at</a>')
    (tmp_path / "picture.png").write_bytes(b"")
    (tmp_path / "a.html").write_text(
        '<link href="https://elsewhere.invalid/a.css"><h1 id="top">A</h1><a href="#top">up</a>'
        '<a href="b.html#there">b</a><a href="b.html#gone">b</a><a href="https://x.invalid">x</a>'
        '<img src="picture.png"><a href="c.html">c</a>'
    )
    (tmp_path / "b.html").write_text('<h1 id="there">B</h1><script src="b.js"></script>')
    assert list(website.faults(tmp_path)) == [
        "a.html: loads https://elsewhere.invalid/a.css, which needs a network",
        "a.html: b.html#gone leads to no place in b.html",
        "a.html: c.html leads to no file",
        "b.html: b.js leads to no file",
    ]


def test_the_navigation_follows_the_index() -> None:
    text = "# Index\n\n## One\n\n- [A](a.md): first\n- [B](b/c.md)\n\n## Empty\n\nwords\n"
    made = conf.contents(text)
    assert made.count("```{toctree}") == 1
    assert ":caption: One" in made
    assert "A <a>\nB <b/c>" in made
