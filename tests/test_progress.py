"""A bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import io
import itertools
import sys
from typing import Any

import pytest

from sensmerge import progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def use(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    monkeypatch.setattr(sys, "stderr", stream)


def work() -> None:
    with progress.bar(4, "sensitivity", "samples", enabled=True) as advance:
        for _ in range(4):
            advance(1)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    use(monkeypatch, stream)
    # The bar is not redrawn where less than a tenth of a second went by.
    clock = itertools.count()
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(clock)))
    work()
    said = stream.getvalue()
    assert "sensitivity" in said
    assert "\r" in said
    assert "3/4" in said


def test_elsewhere_there_are_few_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    use(monkeypatch, stream)
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr("sensmerge.progress.time.monotonic", lambda: next(clock))
    work()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "sensitivity ..."
    assert "sensitivity: 50 % (2 of 4 samples)" in lines
    assert len(lines) < 4
    assert "\r" not in stream.getvalue()


def test_bytes_are_told_in_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    use(monkeypatch, stream)
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr("sensmerge.progress.time.monotonic", lambda: next(clock))
    with progress.bytes_bar("merging", enabled=True) as report:
        report(0, 0)
        report(1_500_000_000, 3_000_000_000)
        # With more sweeps than expected, the progress stays at 100 %.
        report(3_100_000_000, 3_000_000_000)
    assert stream.getvalue().splitlines() == [
        "merging ...",
        "merging: 50 % (1.5 GB)",
        "merging: 100 % (3.1 GB)",
    ]


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream: Any = Terminal()
    use(monkeypatch, stream)
    with progress.bar(1, "work", "steps", enabled=False) as advance:
        advance(1)
    with progress.bytes_bar("work", enabled=False) as report:
        report(1, 1)
    assert stream.getvalue() == ""
