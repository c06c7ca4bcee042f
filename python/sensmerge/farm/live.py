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
    with Live(drawn(board, console.height), console=console, auto_refresh=False) as live:
        while board.running:
            time.sleep(seconds)
            board = read()
            live.update(drawn(board, console.height), refresh=True)
    return board


def drawn(board: Board, height: int) -> Group:
    """A board as rich draws it, no higher than the terminal.

    Args:
        board: The board.
        height: Lines of the terminal.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in board.head():
        table.add_column(Text(name), justify="right", no_wrap=True)
    for row in board.rows(max(3, height - _AROUND)):
        kept = row[-1] == "kept"
        table.add_row(*(Text(plain(cell)) for cell in row), style="bold" if kept else "")
    notes = [Text(f"note: {plain(note)}", style="yellow") for note in board.notes[:3]]
    return Group(Text(board.sentence()), table, *notes)
