"""The command's entry: signals are answered from the first moment on, imports included."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line; see :func:`sensmerge.cli.main`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A signal that is ignored, as in a shell's background, stays so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    from sensmerge import cli
    from sensmerge.cli import signals

    signals.answer()
    cli.main()


def _leave(number: int, _: FrameType | None) -> None:
    """End at once: nothing has been done yet, and modules are only half imported."""
    said = b"interrupted" if number == signal.SIGINT else b"terminated"
    os.write(2, b"error: " + said + b"\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
