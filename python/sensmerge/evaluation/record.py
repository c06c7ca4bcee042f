"""Scores of models on tasks: as a result, as a file that later runs add to, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from sensmerge import refusals
from sensmerge.document import Documented
from sensmerge.errors import InputError
from sensmerge.evaluation import table
from sensmerge.evaluation.benchmarks import area
from sensmerge.files import write_atomically
from sensmerge.reading import MIDDLE, mode_of, object_of


class Conditions(BaseModel):
    """What a score depends on beside the model and the task.

    Attributes:
        limit: Samples of each task, from its start; None for all.
        dtype: The dtype in which the model ran: ``stored`` or ``float32``.
        device: The kind of device that it ran on.
        batch_size: Requests that ran at a time.
        versions: Versions of the packages that computed it.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    limit: int | None = None
    dtype: str = "stored"
    device: str = "cpu"
    batch_size: int = 1
    versions: dict[str, str] = {}

    def comparable(self, other: Conditions) -> bool:
        """Whether scores under both can stand in one table."""
        return (self.limit, self.dtype) == (other.limit, other.dtype)


class Score(BaseModel):
    """A model's score on one task.

    Attributes:
        value: The score, a share between 0 and 1.
        metric: Which of the harness's numbers it is.
        error: Its standard error; None where there is none.
        samples: Samples that it was computed on.
        metrics: All numbers of the harness.
        digest: A digest of the task's definition and of those samples.
        seconds: Time that it took.
        conditions: What else it depends on.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    value: float
    metric: str
    error: float | None
    samples: int
    metrics: dict[str, float]
    digest: str
    seconds: float
    conditions: Conditions


class Evaluated(BaseModel):
    """One model and its scores.

    Attributes:
        fingerprint: A digest of its weights.
        tokenizer: A digest of its tokenizer.
        scores: Its scores, by the tasks' names.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    fingerprint: str
    tokenizer: str
    scores: dict[str, Score] = {}

    def known(self, task: str, digest: str, conditions: Conditions) -> Score | None:
        """Its score on a task under the same conditions; None if there is none."""
        score = self.scores.get(task)
        if score is None or score.digest != digest:
            return None
        return score if score.conditions.comparable(conditions) else None

    def with_score(self, task: str, score: Score) -> Evaluated:
        """The same with one more score."""
        return self.model_copy(update={"scores": self.scores | {task: score}})

    def average(self, tasks: Iterable[str]) -> float | None:
        """The mean of its scores on tasks; None unless it has all of them."""
        tasks = list(tasks)
        if not tasks or not all(task in self.scores for task in tasks):
            return None
        return math.fsum(self.scores[task].value for task in tasks) / len(tasks)


class _File(BaseModel):
    """A file of results."""

    model_config = ConfigDict(extra="ignore")

    tasks: list[str]
    models: dict[str, Evaluated]


@dataclass(frozen=True)
class Evaluation(Documented):
    """Scores of models on tasks.

    Attributes:
        tasks: The tasks, in the order of the columns.
        models: The models by name, in the order of the rows.
        notes: Notes for the user.
    """

    tasks: list[str]
    models: dict[str, Evaluated]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read a file of results.

        Raises:
            InputError: There is no such file, or it is none of results.
            OSError: It cannot be read.
        """
        if mode_of(path) is None:
            raise InputError(f"{path}: no such file of results")
        try:
            read = _File.model_validate(object_of(path, MIDDLE))
        except ValidationError as error:
            reason = refusals.explain(error, _File)
            raise InputError(f"{path}: is no file of results: {reason}") from None
        return cls(read.tasks, read.models)

    def save(self, path: Path) -> None:
        """Write the file of results, whole or not at all.

        Raises:
            InputError: It cannot be written there.
        """
        write_atomically(path, self.to_json())

    def with_model(self, name: str, evaluated: Evaluated) -> Evaluation:
        """The same with a model's scores; those that it has of the same weights stay."""
        return replace(self, models=self.models | {name: evaluated})

    def find(self, fingerprint: str, tokenizer: str) -> Evaluated | None:
        """The scores of a model with these weights and this tokenizer, whatever its name."""
        found = [
            each
            for each in self.models.values()
            if (each.fingerprint, each.tokenizer) == (fingerprint, tokenizer)
        ]
        scores = {task: score for each in found for task, score in each.scores.items()}
        return found[0].model_copy(update={"scores": scores}) if found else None

    def scores(self) -> dict[str, dict[str, float]]:
        """Plain numbers: the score of every model on every task that it has one of."""
        return {
            name: {task: score.value for task, score in each.scores.items()}
            for name, each in self.models.items()
        }

    def areas(self) -> dict[str, list[str]]:
        """The tasks of every area of the paper's tables that has any."""
        found: dict[str, list[str]] = {}
        for task in self.tasks:
            of = area(task)
            if of is not None:
                found.setdefault(of, []).append(task)
        return found

    def as_dict(self) -> dict[str, Any]:
        """The scores as keys and values; see docs/json.md."""
        return {
            "tasks": self.tasks,
            "models": {
                name: each.model_dump()
                | {
                    "average": each.average(self.tasks),
                    "areas": {of: each.average(tasks) for of, tasks in self.areas().items()},
                }
                for name, each in self.models.items()
            },
            "notes": [*self.notes, *self.differences()],
        }

    def differences(self) -> list[str]:
        """Why scores in one column may not be comparable, in words."""
        said = []
        for task in self.tasks:
            with_it = {
                name: each.scores[task] for name, each in self.models.items() if task in each.scores
            }
            kinds = {
                (score.digest, score.conditions.limit, score.conditions.dtype)
                for score in with_it.values()
            }
            if len(kinds) > 1:
                counts = ", ".join(f"{name} on {score.samples}" for name, score in with_it.items())
                said.append(
                    f"{task}: scores are not of the same samples or conditions, and not to be "
                    f"compared: {counts} samples; evaluate again with one --limit and --dtype"
                )
        return said

    def table(self) -> str:
        """The table of the paper: a row a model, a column a task, in percent, and averages."""
        return table.text_of(self)

    def describe(self) -> str:
        """The table, for the terminal."""
        return self.table()

    def __repr__(self) -> str:
        return f"Evaluation(models={len(self.models)}, tasks={len(self.tasks)})"

    def _repr_html_(self) -> str:
        return table.html_of(self)
