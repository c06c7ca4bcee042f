"""The one way out to the terminal, for all commands: every line is made plain."""

from __future__ import annotations

from collections.abc import Iterable

import click

from sensmerge.terminal import lines, plain


def show(text: str) -> None:
    """Print what a command found, which may have several lines."""
    for line in lines(text):
        click.echo(line)


def note(*notes: str) -> None:
    """Print notes for the user, one a line, beside the output."""
    for each in notes:
        click.echo(f"note: {plain(each)}", err=True)


def complain(faults: Iterable[str], hint: str | None = None) -> None:
    """Print what is wrong, one fault a line, and what would have avoided it."""
    for fault in faults:
        click.echo(f"error: {plain(fault)}", err=True)
    if hint is not None:
        click.echo(f"hint: {hint}", err=True)
