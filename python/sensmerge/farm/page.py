"""The board as one self-contained HTML page: no script, no reference to any other file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from sensmerge.farm import figures
from sensmerge.farm.board import SHOWN
from sensmerge.recipe import to_yaml
from sensmerge.report.page import lines, rendered

if TYPE_CHECKING:
    from sensmerge.farm.board import Board

_TEMPLATE = Path(__file__).with_name("board.html.j2")


def render(board: Board) -> str:
    """The page's text; everything that comes from files is escaped."""
    best = board.best
    rows = board.rows()
    # Drawn by matplotlib, which escapes the texts it is given.
    drawn = {
        "parameters": figures.parameters_svg(board),
        "fronts": figures.fronts_svg(board),
        "coefficients": None if best is None else figures.coefficients_svg(best),
    }
    front = {str(number) for number in board.front}
    return rendered(
        _TEMPLATE,
        title=f"Merge farm: {board.folder}",
        sentence=board.sentence(),
        better=board.better,
        evaluator=board.evaluator,
        notes=board.notes,
        head=board.head(),
        words={*board.parameters, "status"},
        rows=rows[:SHOWN],
        others=rows[SHOWN:],
        front=[row for row in rows if row[0] in front],
        failures=[
            (reason, ", ".join(map(str, numbers))) for reason, numbers in board.failures.items()
        ],
        best=None if best is None else best.number,
        model=None if best is None else board.model(best),
        recipe=None if best is None else lines(to_yaml(best.recipe)),
        **{name: None if text is None else Markup(text) for name, text in drawn.items()},
    )
