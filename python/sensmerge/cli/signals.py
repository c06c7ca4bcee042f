"""Ctrl-C and SIGTERM: exceptions until an output is committed, nothing from then on."""

from __future__ import annotations

import signal
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_dropped = False
_raised: int | None = None


class Stopped(KeyboardInterrupt):
    """Either signal.

    A class of its own, since Python ends a process as if by Ctrl-C if a bare KeyboardInterrupt has
    ever left a text that was run by ``exec``, as in the making of a dataclass.
    """


def answer() -> None:
    """Raise :class:`Stopped` for both, unless they are ignored."""
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


def raised() -> int | None:
    """The number of the first signal that raised an exception.

    Not every library lets that exception through: what pydantic builds as it is imported fails with
    one of its own.
    """
    return _raised


def _raise(number: int, _: FrameType | None) -> None:
    global _raised
    if not _dropped:
        _raised = _raised or number
        raise Stopped
