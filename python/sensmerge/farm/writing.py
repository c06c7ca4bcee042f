"""Writes a board's page; needs matplotlib and jinja2, which come with ``sensmerge[report]``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge.files import write_atomically
from sensmerge.report import needs

if TYPE_CHECKING:
    from sensmerge.farm.board import Board


def write(board: Board, output: Path) -> None:
    """Write one self-contained HTML file.

    Raises:
        InputError: matplotlib or jinja2 is missing, or the file cannot be written.
    """
    with needs():
        from sensmerge.farm import page
    write_atomically(output, page.render(board))
