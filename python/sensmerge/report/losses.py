"""The losses of merges that a search compared, from the file that it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sensmerge.errors import InputError
from sensmerge.reading import MIDDLE, object_of
from sensmerge.refusals import explain

# What of a candidate's settings is shown, as it is called there and on the page.
_SETTINGS = (
    ("method", "method"), ("mode", "mode"), ("temperature", "T"), ("scale", "λ"),
    ("density", "density"),
)  # fmt: skip


class _Candidate(BaseModel):
    settings: dict[str, Any]
    losses: list[float]
    objective: float
    validation_objective: float | None


class _File(BaseModel):
    tasks: list[str]
    taken: _Candidate
    best: _Candidate
    baselines: list[_Candidate]
    notes: list[str]


@dataclass(frozen=True)
class Losses:
    """A table of losses in nats per token.

    Attributes:
        head: Names of the columns.
        words: Number of columns, from the left, that are text.
        rows: The candidate that was taken, the best trial, and plain merges.
        notes: What the search said of them.
    """

    head: list[str]
    words: int
    rows: list[list[str]]
    notes: list[str]


def read(path: Path) -> Losses:
    """The losses in a file of trials that ``sensmerge tune`` wrote.

    Raises:
        InputError: It is no such file; the message names the key.
        OSError: It cannot be read.
    """
    try:
        file = _File.model_validate(object_of(path, MIDDLE))
    except ValidationError as error:
        said = explain(error, _File)
        raise InputError(f"{path}: is no file of trials of tune: {said}") from None
    candidates = [("taken", file.taken), ("best trial", file.best)]
    candidates += [("plain merge", each) for each in file.baselines]
    for name, each in candidates:
        if len(each.losses) != len(file.tasks):
            raise InputError(
                f"{path}: {name}: has {len(each.losses)} losses for {len(file.tasks)} tasks"
            )
    head = ["merge", *(title for _, title in _SETTINGS), *file.tasks, "objective", "validation"]
    rows = [
        [
            name,
            *(_written(each.settings.get(key)) for key, _ in _SETTINGS),
            *(f"{loss:.4f}" for loss in [*each.losses, each.objective]),
            "" if each.validation_objective is None else f"{each.validation_objective:.4f}",
        ]
        for name, each in candidates
    ]
    return Losses(head, 3, rows, file.notes)


def _written(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
