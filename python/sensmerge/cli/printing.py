"""The one way out to the terminal, for all commands: every line is made plain."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import click

from sensmerge.document import document
from sensmerge.terminal import lines, plain

# The values of --format that every command has.
TEXT, JSON = "text", "json"


def show(text: str) -> None:
    """Print what a command found, which may have several lines."""
    for line in lines(text):
        click.echo(line)


def give(
    form: str,
    data: Mapping[str, Any],
    text: str,
    *,
    quiet: bool = False,
    told: Collection[str] = (),
) -> None:
    """Print what a command found, and the notes on it beside the output.

    Args:
        form: The value of ``--format``.
        data: What was found, with ``notes``: the document of ``--format json``.
        text: The same for people.
        quiet: Print no notes, and no text; who asks for a document gets it.
        told: Notes that were printed before, or that the text holds.
    """
    if not quiet:
        note(*(each for each in data["notes"] if each not in told))
    if form == JSON:
        click.echo(document(data), nl=False)
    elif not quiet:
        show(text)


def held(form: str, notes: Sequence[str]) -> Sequence[str]:
    """The notes that need no printing where the text for people holds them."""
    return notes if form == TEXT else ()


# Lines of one kind that anybody reads; what files hold may give rise to thousands.
_MOST = 100


def note(*notes: str) -> None:
    """Print notes for the user, one a line, beside the output."""
    _print("note", notes)


def complain(faults: Sequence[str], hint: str | None = None) -> None:
    """Print what is wrong, one fault a line, and what would have avoided it."""
    _print("error", faults)
    if hint is not None:
        click.echo(f"hint: {hint}", err=True)


def _print(kind: str, said: Sequence[str]) -> None:
    for each in said[:_MOST]:
        click.echo(f"{kind}: {plain(each)}", err=True)
    if len(said) > _MOST:
        click.echo(f"{kind}: and {len(said) - _MOST} more", err=True)
