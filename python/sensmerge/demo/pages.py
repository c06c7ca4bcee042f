"""What the pages of the examples share: text in Markdown, and what something was measured on."""

from __future__ import annotations

import os
import platform
import textwrap
from pathlib import Path

import torch

import sensmerge

_WIDTH = 100


def filled(text: str) -> str:
    """A paragraph in lines of 100 characters; words are not broken."""
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def item(text: str) -> str:
    """An item of a list, in lines of 100 characters; words are not broken."""
    return textwrap.fill(
        text, _WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def machine() -> str:
    """The processor and its number of cores."""
    return f"{_processor()}, {os.cpu_count()} cores"


def versions() -> str:
    """Versions of this package, torch and Python."""
    return (
        f"sensmerge {sensmerge.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
