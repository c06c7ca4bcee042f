"""The one way out to the terminal, for all commands: every line is made plain."""

from __future__ import annotations

from collections.abc import Sequence

import click

from sensmerge.terminal import lines, plain


def show(text: str) -> None:
    """Print what a command found, which may have several lines."""
    for line in lines(text):
        click.echo(line)


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
