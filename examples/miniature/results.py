"""What was measured: kept as JSON, from which the page is written."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sensmerge.demo.evaluate import Score
from sensmerge.demo.table import SOLVED


@dataclass(frozen=True)
class Row:
    """One way to merge.

    Attributes:
        losses: For every draw: each task's mean held-back loss of a token, in nats.
        solved: For every draw: the share of held-back problems that are solved exactly.
    """

    losses: list[dict[str, float]]
    solved: list[float]

    @classmethod
    def of(cls, scores: list[Score]) -> Row:
        """What scores say."""
        return cls(
            [{name: task.loss for name, task in score.tasks.items()} for score in scores],
            [float(score.tasks[SOLVED].exact.mean()) for score in scores],
        )

    @property
    def means(self) -> list[float]:
        """For every draw: the mean over the tasks."""
        return [math.fsum(losses.values()) / len(losses) for losses in self.losses]

    @property
    def mean(self) -> float:
        """The mean over draws."""
        return statistics.fmean(self.means)

    @property
    def spread(self) -> float:
        """Standard deviation over draws; 0 where there is one."""
        return statistics.stdev(self.means) if len(self.means) > 1 else 0.0

    def task(self, name: str) -> float:
        """One task's loss, the mean over draws."""
        return statistics.fmean(losses[name] for losses in self.losses)

    def minus(self, other: Row) -> list[float]:
        """Differences of the means, draw by draw; what is not random is repeated."""
        count = max(len(self.means), len(other.means))
        ours, theirs = (
            means * (count // len(means)) if len(means) == 1 else means
            for means in (self.means, other.means)
        )
        return [one - two for one, two in zip(ours, theirs, strict=True)]


@dataclass
class Results:
    """Everything.

    Attributes:
        rows: Every way, by name.
        scales: Every plain method's own best λ.
        notes: What sensmerge said of what it chose, draw by draw.
        made: By what: machine, versions, family.
    """

    rows: dict[str, Row]
    scales: dict[str, float]
    notes: dict[str, list[list[str]]]
    made: dict[str, Any] | None = None

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file."""
        data = json.loads(path.read_text(encoding="utf-8"))
        data["rows"] = {name: Row(**row) for name, row in data["rows"].items()}
        return cls(**data)

    def save(self, path: Path) -> None:
        """Write a file; digits beyond the fifth say nothing."""
        text = json.dumps(_rounded(asdict(self)), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
