"""The one error that is the caller's to mend."""

from __future__ import annotations


class InputError(ValueError):
    """Files or settings cannot be used as they are; the message says which, why, and what to do.

    Attributes:
        option: The keyword that would let it pass, such as ``overwrite``, where there is one.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option
