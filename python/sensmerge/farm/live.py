"""The board on a terminal, drawn anew while the farm runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sensmerge.errors import InputError
from sensmerge.terminal import plain

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise InputError(
        f"a live board needs rich ({error}); pip install 'sensmerge[farm]', or use --once"
    ) from None

if TYPE_CHECKING:
    from sensmerge.farm.board import Board

_SECONDS = 1.0
# Lines around the table: what stands above and below it, its head, and the prompt.
_AROUND = 8


def show(
    read: Callable[[], Board], seconds: float = _SECONDS, console: Console | None = None
) -> Board:
    """Show a board until its farm does not run any more.

    Args:
        read: Reads the board.
        seconds: Time between two looks.
        console: The terminal; standard output by default.

    Returns:
        The last board.
    """
    console = console or Console()
    board = read()
    first = drawn(board, console.width, console.height)
    # Its last state is printed by whoever asked.
    with Live(first, console=console, auto_refresh=False, transient=True) as live:
        while board.running:
            time.sleep(seconds)
            board = read()
            live.update(drawn(board, console.width, console.height), refresh=True)
    return board


def drawn(board: Board, width: int, height: int) -> Group:
    """A board as rich draws it, no larger than the terminal where that can be.

    Args:
        board: The board.
        width: Columns of the terminal.
        height: Lines of the terminal.
    """
    head, rows = board.head(), board.rows(max(3, height - _AROUND))
    shown = _fitting(board, head, rows, width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in shown:
        table.add_column(Text(head[column]), justify="right", no_wrap=True)
    for row in rows:
        style = "bold" if row[-1] == "kept" else ""
        table.add_row(*(Text(plain(row[column])) for column in shown), style=style)
    notes = [Text(f"note: {plain(note)}", style="yellow") for note in board.notes[:3]]
    return Group(Text(board.sentence()), table, *notes)


def _fitting(board: Board, head: list[str], rows: list[list[str]], width: int) -> list[int]:
    """The columns for which there is room: seconds go first, then scores beside the score."""
    columns = list(range(len(head)))
    widths = [max(map(len, column)) + 1 for column in zip(head, *rows, strict=True)]
    scores = [2 + place for place in range(board.validated + len(board.tasks))]
    for column in [len(head) - 2, len(head) - 3, *reversed(scores)]:
        if sum(widths[each] for each in columns) <= width + 1:
            break
        columns.remove(column)
    return columns
