"""Ctrl-C and SIGTERM: exceptions until an output is committed, nothing from then on."""

from __future__ import annotations

import signal
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_dropped = False


class Terminated(KeyboardInterrupt):
    """SIGTERM: all that is done at Ctrl-C is done for it too."""


def answer() -> None:
    """Raise exceptions for both, unless they are ignored."""
    for number in _NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


def drop() -> None:
    """Drop both from here on: the output will be complete. May be called from any thread."""
    global _dropped
    _dropped = True


def ignore() -> None:
    """Let the system ignore both, since Python forgets handlers of its own as it ends."""
    for number in _NUMBERS:
        if signal.getsignal(number) is _raise:
            signal.signal(number, signal.SIG_IGN)


def _raise(number: int, _: FrameType | None) -> None:
    if not _dropped:
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated
