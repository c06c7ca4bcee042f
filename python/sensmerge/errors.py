"""The one error that is the caller's to mend."""

from __future__ import annotations


class InputError(ValueError):
    """Files or settings cannot be used as they are; the message says which, why, and what to do."""
