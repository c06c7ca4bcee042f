"""Giving freed memory back to the system.

glibc keeps freed memory to hand it out again. Much of it lies in pieces between memory in use, and
what fits into none of them takes new memory from the system: the process holds more than it uses.
At 6.7 B parameters, the pieces that one forward pass leaves come to 0.8 GB. At 1.1 B, 32 MB on top
of what was in use cost no more processor time than 128 MB.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

# Bytes that the process may hold on top of the most that was ever in use.
_WAITING = 32 * 10**6

# Bytes for which a call of malloc_trim pays.
_WORTH = 16 * 10**6

# Bytes that are freed between two calls of `Heap.tidy`.
_BETWEEN_LOOKS = 256 * 10**6

_STATUS = Path("/proc/self/status")


class Heap:
    """Gives freed memory back where it would raise the peak of the process, and only there.

    The system hands out memory page by page: to give it back and take it again after every 256 MB
    took longer than the reductions of a backward pass.
    """

    def __init__(self) -> None:
        return_freed()
        # Memory that the interpreter took from the system without malloc.
        self._beside = _resident() - _in_use()
        self._most = 0
        self._freed = 0

    def freed(self, size: int) -> None:
        """Count bytes that are about to be freed, and call :meth:`tidy` after every 256 MB."""
        self._freed += size
        if self._freed >= _BETWEEN_LOOKS:
            self._freed = 0
            self.tidy()

    def make_room(self) -> None:
        """Give freed memory back, before much is taken of it that may not fit into the pieces.

        Does nothing where glibc does not tell how much is in use.
        """
        used = _in_use()
        if used and _resident() > self._beside + used + _WORTH:
            return_freed()

    def tidy(self) -> None:
        """Give freed memory back if the process holds too much of it.

        Does nothing where glibc does not tell how much is in use.
        """
        used = _in_use()
        self._most = max(self._most, used)
        if used and _resident() > self._beside + self._most + _WAITING:
            return_freed()


def return_freed() -> None:
    """Give all memory that glibc keeps back to the system."""
    trim = getattr(_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None


def _in_use() -> int:
    """Bytes that malloc handed out and that were not freed; 0 before glibc 2.33."""
    function = getattr(_LIBRARY, "mallinfo2", None)
    if function is None:
        return 0
    function.restype = _Mallinfo2
    found = function()
    return int(found.uordblks + found.hblkhd)


def _resident() -> int:
    """Bytes of anonymous memory that the process holds; 0 where the system does not tell."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(found[0]) * 1024 if found else 0
