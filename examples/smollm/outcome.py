"""What was measured: kept as JSON, from which the page is written."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensmerge.demo.evaluate import Score, TaskScore


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        losses: Of every task: the sum of the loss over each held-back sample's scored tokens, nats.
        seconds: What the merge itself took.
        notes: What sensmerge said of the merge.
    """

    losses: dict[str, list[float]]
    seconds: float
    notes: list[str]

    @classmethod
    def of(cls, score: Score, seconds: float, notes: list[str]) -> Row:
        """What a score says; digits beyond the fourth say nothing."""
        losses = {
            task: [round(loss, 4) for loss in found.losses.tolist()]
            for task, found in score.tasks.items()
        }
        return cls(losses, round(seconds, 2), notes)


@dataclass
class Outcome:
    """Everything.

    Attributes:
        rows: Every model, by its name.
        tokens: Of every task: the scored tokens of each held-back sample.
        scales: Every method's chosen λ, and every choice's losses by λ.
        stages: Name, wall seconds and processor seconds of every stage.
        made: By what and of what.
    """

    rows: dict[str, Row]
    tokens: dict[str, list[float]]
    scales: dict[str, dict[str, Any]]
    stages: list[tuple[str, float, float]]
    made: dict[str, Any]

    def score(self, name: str) -> Score:
        """A row as a score, which knows means and standard errors."""
        return Score(
            {
                task: TaskScore(
                    np.array(losses),
                    np.array(self.tokens[task]),
                    np.zeros(len(losses), dtype=np.bool_),
                )
                for task, losses in self.rows[name].losses.items()
            }
        )

    @classmethod
    def load(cls, path: Path) -> Outcome:
        """Read a file."""
        data = json.loads(path.read_text(encoding="utf-8"))
        data["rows"] = {name: Row(**row) for name, row in data["rows"].items()}
        return cls(**data)

    def save(self, path: Path) -> None:
        """Write a file: a line for every row and every stage."""
        parts = []
        for key, value in asdict(self).items():
            if isinstance(value, dict):
                inner = [f"  {json.dumps(name)}: {_json(each)}" for name, each in value.items()]
                shown = "{\n" + ",\n".join(inner) + "\n }"
            else:
                shown = "[\n" + ",\n".join(f"  {_json(each)}" for each in value) + "\n ]"
            parts.append(f' "{key}": {shown}')
        path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
