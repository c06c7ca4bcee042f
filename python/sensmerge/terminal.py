"""Text for the terminal: what comes from files can neither steer it, nor forge lines, nor flood it.

Names in models, recipes and configs are whatever their authors wrote.
"""

from __future__ import annotations

import re
from typing import Any

# The longest run of characters without a space, and the longest line; the middle is left out.
_RUN = 200
_LINE = 4000

_LONG_RUN = re.compile(rf"\S{{{_RUN + 1},}}")


def plain(text: Any) -> str:
    r"""One line of text as it can be shown: visible characters alone, and not too many.

    What cannot be seen is written as Python writes it: ``\x1b``, ``\u202e``, ``\n``. The middle of
    what is long is left out: ``…`` stands for it.

    Args:
        text: The text, or what is to be shown as text.
    """
    shown = _cut(_LONG_RUN.sub(lambda run: _cut(run[0], _RUN), str(text)), _LINE)
    if shown.isprintable():
        return shown
    # Not printable are control characters, those that change the direction or the shape of the text
    # around them, halves of surrogate pairs, separators, and what no Unicode knows.
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in shown)


def lines(text: str) -> list[str]:
    """The lines of a text that was laid out here, each as :func:`plain` shows it.

    Names in it were made plain before, so that no line is theirs.
    """
    return [plain(line) for line in text.split("\n")]


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 1]}…{text[-end:]}"
