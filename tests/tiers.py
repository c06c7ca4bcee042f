"""How many cases a test takes: few in `make test`, many in `make torture`."""

from __future__ import annotations

import os

TORTURE = os.environ.get("SENSMERGE_TORTURE", "") not in ("", "0")


def cases(quick: int, long: int) -> int:
    """``quick``, or ``long`` in the tests that `make torture` runs."""
    return long if TORTURE else quick
