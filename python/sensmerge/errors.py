"""The one error that the caller can mend, and the words of other errors."""

from __future__ import annotations


class InputError(ValueError):
    """Files or settings cannot be used as they are; the message says which, why, and what to do.

    Attributes:
        option: The keyword that would let it pass, such as ``overwrite``, where there is one.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the kind of the error where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
