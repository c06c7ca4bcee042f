"""The board: what a farm found, as text, as JSON, live on a terminal, and as a page."""

from __future__ import annotations

import io
import json
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hostile_files import EVIL
from sensmerge.farm import live, lock
from sensmerge.farm.board import Board
from sensmerge.farm.database import Database
from sensmerge.farm.fronts import front_of
from sensmerge.farm.jobs import Merged, Outcome, Scores
from sensmerge.terminal import plain
from test_bad_input import run

Said = pytest.CaptureFixture[str]

COEFFICIENTS = {
    "experts": ["e0", "e1"], "layers": ["a.0", "a.1"], "alpha": [[0.6, 0.8], [0.8, 0.6]],
    "tau": [0.5, 0.5], "sigma": [[0.4, 0.6], [0.6, 0.4]], "outside": [0.5, 0.5], "mode": "full",
    "temperature": 0.05, "cross_task": "transfer", "outside_blocks": "uniform", "base": "origin",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The database of a farm with 30 candidates of two tasks, of which two failed."""
    out = tmp_path / "out"
    out.mkdir()
    with closing(Database(out, write=True)) as database:
        database.set(better="higher", evaluator="command", notes=[f"a note {EVIL}"], disk=None)
        for place in range(30):
            chosen = {"lambda": place / 30, "merge_method": ("ties", "linear")[place % 2]}
            recipe = {"merge_method": "ties", "base_model": EVIL, "models": [{"model": "e0"}]}
            database.add([(f"{place:064x}", recipe, chosen)])
        for number in range(1, 28):
            tasks = {"math": number / 10, "code": abs(14 - number) / 10}
            scores = Scores(sum(tasks.values()), tasks, seconds=0.5)
            merged = Merged(0.25, 1000, COEFFICIENTS if number == 27 else None)
            database.end(Outcome(number, merged, scores), kept=number == 27)
        database.end(Outcome(28, reason=f"no {EVIL}"), kept=False)
        database.end(Outcome(29, reason=f"no {EVIL}"), kept=False)
    return out


def test_the_best_come_first(folder: Path) -> None:
    board = Board.read(folder)
    assert board.counts == {"waiting": 1, "running": 0, "done": 27, "failed": 2}
    assert [each.number for each in board.candidates[:2]] == [27, 26]
    assert [each.status for each in board.candidates[-3:]] == ["waiting", "failed", "failed"]
    assert board.front == [27]
    assert board.failures == {f"no {EVIL}": [28, 29]}
    text = board.table()
    assert text.splitlines()[3].split() == (
        ["27", "4.0000", "2.7000", "1.3000", "0.8667", "ties", "0.25", "s", "0.50", "s", "kept"]
    )
    assert "and more: 30 candidates in all" in text
    assert f"failed: 28, 29: no {plain(EVIL)}" in text
    assert EVIL not in text


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_nobody_on_the_front_is_beaten(better: str) -> None:
    sign = 1 if better == "lower" else -1
    scores = [{"a": sign * a, "b": sign * b} for a, b in [(1, 5), (2, 2), (5, 1), (3, 3), (2, 2)]]
    assert front_of(scores, better) == [0, 1, 2, 4]  # type: ignore[arg-type]


def test_the_command_prints_it_once_where_there_is_no_terminal(folder: Path, capsys: Said) -> None:
    assert run("board", str(folder)) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[2].split()[:5] == ["no.", "score", "math", "code", "lambda"]
    assert EVIL not in said.out + said.err
    assert run("board", str(folder), "--format", "json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["best"] == 27
    assert data["candidates"][0]["scores"] == {"math": 2.7, "code": 1.3}
    assert data["candidates"][0]["model"] == str(folder / "models" / f"00027-{'0' * 12}")
    assert data["coefficients"] == COEFFICIENTS


def test_a_terminal_shows_it_until_the_farm_ends(folder: Path) -> None:
    from rich.console import Console

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, height=16)
    looks = 0

    def read() -> Board:
        nonlocal looks
        looks += 1
        if looks < 3:
            with lock.held(folder):
                return Board.read(folder)
        return Board.read(folder)

    last = live.show(read, 0.0, console)
    assert looks == 3
    assert not last.running
    shown = screen.getvalue()
    assert "27 done" in shown
    assert "4.0000" in shown
    assert EVIL not in shown
    # No more rows than the terminal has lines.
    last_frame = shown.rpartition("not running")[2]
    assert last_frame.count("\n") < 16


def test_a_narrow_terminal_shows_what_matters_most(folder: Path) -> None:
    from rich.console import Console

    def shown(width: int) -> str:
        screen = io.StringIO()
        console = Console(file=screen, width=width, height=30)
        console.print(live.drawn(Board.read(folder), width, 30))
        return screen.getvalue()

    assert all(name in shown(120) for name in ("math", "code", "lambda", "merge ", "evaluation"))
    narrow = shown(42)
    assert not any(name in narrow for name in ("math", "code", "merge ", "evaluation"))
    assert all(name in narrow for name in ("score", "lambda", "merge_method", "status"))
    assert "…" not in narrow.partition("note:")[0].partition("no.")[2]


class Page(HTMLParser):
    """What a page holds: its tags are closed in order, and it names no other file."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.cells = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        assert tag not in ("script", "iframe", "link", "object")
        for key in ("src", "href", "xlink:href"):
            assert (names.get(key) or "#").startswith(("#", "data:image/png;base64,"))
        self.cells += tag == "td"
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "br"):
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def test_the_page_holds_everything_and_nothing_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "board.html"
    assert run("board", str(folder), "-o", str(file)) == 0
    text = file.read_text()
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.headings == [
        f"Merge farm: {folder}", "Notes", "Leaderboard", "Score by parameter",
        "Tasks against each other", "The best: number 27", "Failures",
    ]  # fmt: skip
    assert page.cells > 30 * 8
    assert EVIL not in text
    assert "url(" not in text.replace("url(#", "")
    assert text.count("<svg ") == 3
    # The same again, byte for byte.
    again = tmp_path / "again.html"
    assert run("board", str(folder), "-o", str(again)) == 0
    assert again.read_text() == text


def test_a_farm_that_has_found_nothing_has_a_board_too(tmp_path: Path) -> None:
    with closing(Database(tmp_path, write=True)) as database:
        database.set(better="lower", evaluator="loss", notes=[])
        database.add([("f" * 64, {}, {"seed": 1})])
    board = Board.read(tmp_path)
    assert board.best is None
    assert "1 waiting" in board.table()
    assert run("board", str(tmp_path), "-o", str(tmp_path / "board.html")) == 0
    assert "The best" not in (tmp_path / "board.html").read_text()
