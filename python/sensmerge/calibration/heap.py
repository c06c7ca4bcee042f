"""Memory that was freed and not given back to the system.

glibc keeps what is freed, in pieces between what is still held, and what fits into no piece takes
new memory. The pieces of one forward pass come to 0.8 GB at 6.7 B parameters.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

# Freed bytes that may wait on top of the most that was ever in use.
_WAITING = 128 * 10**6

# Bytes that are freed between two looks at the heap.
_BETWEEN_LOOKS = 256 * 10**6

_STATUS = Path("/proc/self/status")


class Heap:
    """Gives freed memory back where it would raise the process's peak, and only there.

    What was given back has to be had anew, page by page: done every 256 MB, that took longer than
    the reductions of a backward pass.
    """

    def __init__(self) -> None:
        return_freed()
        # Of the interpreter, which asks the system by itself.
        self._beside = _resident() - _in_use()
        self._most = 0
        self._freed = 0

    def freed(self, size: int) -> None:
        """Count bytes that are about to be freed, and look at the heap every now and then."""
        self._freed += size
        if self._freed >= _BETWEEN_LOOKS:
            self._freed = 0
            self.tidy()

    def tidy(self) -> None:
        """Look, and give freed memory back where too much of it waits.

        Nothing is done where glibc does not say what is in use.
        """
        used = _in_use()
        self._most = max(self._most, used)
        if used and _resident() > self._beside + self._most + _WAITING:
            return_freed()


def return_freed() -> None:
    """Give all freed memory back to the system, where it is glibc that keeps it."""
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
    """Bytes that were asked of malloc and not freed; 0 before glibc 2.33."""
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
