"""The commands of the merge farm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sensmerge.cli import printing
from sensmerge.cli.options import (
    FILE,
    FOLDER,
    check_writable,
    device_option,
    format_option,
    quiet_option,
    threads_option,
)

if TYPE_CHECKING:
    from sensmerge.farm.board import Board


@click.command()
@click.argument("file", metavar="FARM", type=FILE)
@click.argument("folder", type=FOLDER)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Evaluations at a time; the next merge goes on beside them.",
)
@click.option("--retry", is_flag=True, help="Run candidates again that failed.")
@device_option
@threads_option
@format_option()
@quiet_option
def farm(
    file: Path,
    folder: Path,
    workers: int,
    retry: bool,
    device: str,
    threads: int | None,
    form: str,
    quiet: bool,
) -> None:
    """Merge and score many candidates of one recipe, as FARM says, and keep the best in FOLDER.

    Run the command again to go on after a stop. `sensmerge board FOLDER` shows what was found.
    """
    from sensmerge.farm.running import Options
    from sensmerge.farm.running import farm as run

    options = Options(workers, device, threads, retry, progress=not quiet)
    board = run(file, folder, options)
    printing.give(form, board.as_dict(), board.table(), quiet=quiet)


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--once", is_flag=True, help="Print the table once, also on a terminal.")
@click.option("-o", "--output", type=FILE, help="An HTML page to write instead of the table.")
@format_option()
def board(folder: Path, once: bool, output: Path | None, form: str) -> None:
    """Show what the farm in FOLDER has found so far: on a terminal live, while it runs."""
    from sensmerge.farm.board import Board

    if output is not None:
        check_writable(output)
    found = Board.read(folder)
    live = form == printing.TEXT and output is None and not once and sys.stdout.isatty()
    if live and found.running:
        from sensmerge.farm.live import show

        found = show(lambda: Board.read(folder))
    _give(found, form, output)


def _give(found: Board, form: str, output: Path | None) -> None:
    written: list[Path] = []
    text = found.table()
    if output is not None:
        from sensmerge.farm.writing import write

        write(found, output)
        written, text = [output], f"wrote {output}"
    printing.give(form, found.as_dict() | {"written": written}, text)
