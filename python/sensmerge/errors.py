"""The error for input that the caller can correct, and the messages of other libraries' errors."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """Files or settings cannot be used as they are; the message says which, why, and what to do.

    Attributes:
        lines: The message's lines, one a fault. A name in one may hold a line break of its own,
            which begins no other.
        option: The keyword that would have avoided the error, such as ``overwrite``; None if there
            is none.
    """

    def __init__(self, message: str | Sequence[str], option: str | None = None) -> None:
        self.lines = (message,) if isinstance(message, str) else tuple(message)
        super().__init__("\n".join(self.lines))
        self.option = option


class MethodError(InputError):
    """The function of an installed package's method failed, or returned what cannot be used.

    The message names the method and the tensor; ``__cause__`` is the function's own exception, with
    its traceback, where there was one.
    """


class WaitingError(RuntimeError):
    """Other processes that merge parts of the same model have not done their part; try again."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the error's type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
