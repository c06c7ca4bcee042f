"""Results as HTML for notebooks: small, self-contained, readable on light and on dark pages.

Styles are inline and take the page's own colours. All text is made plain and escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from sensmerge.terminal import plain

# More rows than anybody reads would make a notebook slow.
MOST_ROWS = 500

_LINE = "1px solid rgba(128,128,128,.35)"
_CELL = f"padding:.15em .8em .15em 0;border:0;border-bottom:{_LINE};vertical-align:top"
_BOX = "overflow:auto;max-height:28em;margin:.4em 0"
_TABLE = "border-collapse:collapse;margin:0;font-size:inherit;font-variant-numeric:tabular-nums"


def shown(title: str, *parts: str) -> str:
    """A result: its title, and parts made by the functions below."""
    head = f'<div style="font-weight:600">{text(title)}</div>'
    return f'<div style="font-size:.95em;line-height:1.4">{head}{"".join(parts)}</div>'


def text(value: Any) -> str:
    """Text as it can stand in a page."""
    return escape(plain(value))


def paragraphs(sentences: Iterable[str]) -> str:
    """Sentences, one below the other."""
    return "".join(f'<div style="margin:.2em 0">{text(each)}</div>' for each in sentences)


def notes(said: Sequence[str]) -> str:
    """Notes for the user, as a list; nothing where there are none."""
    if not said:
        return ""
    kept = "".join(f"<li>{text(each)}</li>" for each in said[:MOST_ROWS])
    more = _more(len(said) - MOST_ROWS)
    return f'<div style="margin-top:.4em">Notes</div><ul style="margin:.1em 0">{kept}</ul>{more}'


def facts(pairs: Mapping[str, Any]) -> str:
    """Names and values, a row each."""
    rows = "".join(
        f'<tr style="background:none">{_cell(name, "th")}{_cell(value, "td")}</tr>'
        for name, value in pairs.items()
    )
    return f'<div style="{_BOX}"><table style="{_TABLE}"><tbody>{rows}</tbody></table></div>'


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, words: int = 1) -> str:
    """A table that scrolls in itself.

    Args:
        head: Names of the columns.
        rows: A value for each column; the first is the row's name.
        words: Number of columns, from the left, that are text; the others are numbers.
    """

    def row(values: Sequence[Any], kinds: Sequence[str]) -> str:
        cells = "".join(
            _cell(value, kind, number=place >= words)
            for place, (value, kind) in enumerate(zip(values, kinds, strict=True))
        )
        return f'<tr style="background:none">{cells}</tr>'

    kinds = ["th", *["td"] * (len(head) - 1)]
    body = "".join(row(values, kinds) for values in rows[:MOST_ROWS])
    written = f"<thead>{row(head, ['th'] * len(head))}</thead><tbody>{body}</tbody>"
    more = _more(len(rows) - MOST_ROWS)
    return f'<div style="{_BOX}"><table style="{_TABLE}">{written}</table></div>{more}'


def folded(title: str, part: str) -> str:
    """A part that is opened by a click."""
    return f'<details><summary style="cursor:pointer">{text(title)}</summary>{part}</details>'


def verbatim(written: str) -> str:
    """Text of several lines, as it is laid out; each line is made plain."""
    lines = "\n".join(text(line) for line in written.rstrip("\n").split("\n"))
    return f'<pre style="{_BOX};background:none;color:inherit">{lines}</pre>'


def _cell(value: Any, kind: str, *, number: bool = False) -> str:
    side, weight = ("right" if number else "left"), (600 if kind == "th" else 400)
    space = "nowrap" if number else "normal"
    style = f"{_CELL};text-align:{side};font-weight:{weight};white-space:{space}"
    return f'<{kind} style="{style}">{text(value)}</{kind}>'


def _more(count: int) -> str:
    return paragraphs([f"and {count} more"]) if count > 0 else ""
