"""The steps of learning, kept in a file so that learning can continue after a stop."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from sensmerge.errors import InputError, first_line
from sensmerge.files import write_atomically
from sensmerge.reading import LARGE, json_of, mode_of
from sensmerge.search.choice import difference
from sensmerge.search.judge import Objective

if TYPE_CHECKING:
    from sensmerge.search.choice import Difference
    from sensmerge.search.groups import Matrix, Weights


@dataclass(frozen=True)
class Step:
    """One step of learning.

    Attributes:
        offsets: The offsets of the recipe's weights, [K, groups].
        losses: Every task's loss on its search samples.
        held_back: The loss on every validation sample, a list for every task; empty without any.
    """

    offsets: list[list[float]]
    losses: list[float]
    held_back: list[list[float]]

    @property
    def loss(self) -> float:
        """The mean of the tasks' losses on the search samples."""
        return math.fsum(self.losses) / len(self.losses)

    @property
    def validation(self) -> list[float]:
        """Every task's loss on its validation samples; empty without any."""
        return [math.fsum(losses) / len(losses) for losses in self.held_back]

    @property
    def validation_loss(self) -> float:
        """The mean of the tasks' losses on the validation samples; NaN without any."""
        return math.fsum(self.validation) / len(self.validation) if self.validation else math.nan

    @property
    def score(self) -> float:
        """The number by which steps are compared: the validation loss or, without one, the loss."""
        return self.loss if math.isnan(self.validation_loss) else self.validation_loss


@dataclass
class History:
    """All steps of learning.

    Attributes:
        tasks: The experts' names.
        groups: Names of the groups of tensors.
        start: The recipe's weights, [K, groups].
        steps: The steps; the first has offsets of 0.
        key: All that the numbers depend on; a file with another key belongs to another search.
        state: Adam's state after the last step: its parameter and two moments, each [K, groups].
        path: The file; None if nothing is written.
    """

    tasks: list[str]
    groups: list[str]
    start: list[list[float]]
    steps: list[Step] = field(default_factory=list)
    key: dict[str, Any] = field(default_factory=dict)
    state: list[list[list[float]]] = field(default_factory=list)
    path: Path | None = None

    @classmethod
    def resume(
        cls, path: Path | None, key: dict[str, Any], weights: Weights, tasks: list[str]
    ) -> History:
        """The history in a file; a new one if there is no file, or one of another search.

        Raises:
            InputError: The file is not a history.
        """
        fresh = cls(tasks, weights.groups, weights.start.tolist(), key=key, path=path)
        if path is None or mode_of(path) is None:
            return fresh
        try:
            file = _FILE.validate_python(json_of(path, LARGE))
        except (OSError, ValueError, ValidationError) as error:
            said = first_line(error)
            raise InputError(f"{path}: is not a history of learning ({said}); remove it") from None
        if file.key != key:
            return fresh
        fresh.steps, fresh.state = file.steps, file.state
        return fresh

    @property
    def best(self) -> Step:
        """The step with the lowest score; the first of equal ones."""
        return min(self.steps, key=lambda step: step.score)

    @property
    def taken(self) -> Step:
        """The best step, if it is better than the first by more than a standard error."""
        first, best = self.steps[0], self.best
        gain = self._gain()
        return best if gain is None or gain.exceeds() else first

    def _gain(self) -> Difference | None:
        """How much lower the best step's validation loss is than the first's; None without any."""
        tables = [
            [np.array(losses) for losses in step.held_back] for step in (self.best, self.steps[0])
        ]
        if not tables[0]:
            return None
        if min(map(len, tables[0])) < 2:
            # One sample tells nothing of its task's spread; the samples of all tasks do together.
            tables = [[np.concatenate(table)] for table in tables]
        return difference(tables[0], tables[1], Objective())

    def is_over(self, patience: int) -> bool:
        """Whether none of the last ``patience`` steps was better than those before."""
        return (
            len(self.steps) - 1 - self.steps.index(self.best) >= patience if self.steps else False
        )

    def add(self, step: Step, parameter: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Add a step and Adam's state after it, and write the file."""
        self.steps.append(step)
        moments = optimizer.state[parameter]
        self.state = [
            parameter.detach().tolist(),
            moments["exp_avg"].tolist(),
            moments["exp_avg_sq"].tolist(),
        ]
        if self.path is not None:
            self._write(self.path)

    def restore(self, parameter: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Set a parameter and its optimizer to their state after the last step."""
        value, first, second = (torch.tensor(part, dtype=torch.float64) for part in self.state)
        with torch.no_grad():
            parameter.copy_(value)
        optimizer.state[parameter] = {
            "step": torch.tensor(float(len(self.steps))),
            "exp_avg": first,
            "exp_avg_sq": second,
        }

    def weights(self, step: Step) -> Matrix:
        """The weights of a step, [K, groups]."""
        weights: Matrix = np.array(self.start) + np.array(step.offsets)
        return weights

    def sentences(self) -> list[str]:
        """The outcome in plain words."""
        first, best, last, gain = self.steps[0], self.best, self.steps[-1], self._gain()
        place = self.steps.index(best)
        validated = not math.isnan(first.validation_loss)
        where = "the validation samples" if validated else "the samples"
        if place == 0:
            said = [
                f"no step was better than the start on {where} ({first.score:.4f}): the start is "
                "kept"
            ]
        elif self.taken is first and gain is not None:
            said = [
                f"step {place} is {gain.mean:.4f} better than the start on the validation samples "
                f"({first.score:.4f}), no more than its standard error of {gain.error:.4f}: the "
                "start is kept; give more samples"
            ]
        else:
            said = [
                f"step {place} is kept: mean loss on {where} {first.score:.4f} at the start, "
                f"{best.score:.4f} now; on the samples learned from {first.loss:.4f}, "
                f"{best.loss:.4f} now"
            ]
        if validated and last.validation_loss > best.validation_loss and last.loss < best.loss:
            said.append(
                "further steps were better on the samples learned from and worse on the others: "
                "this is overfitting, so that they are not kept"
            )
        if not validated:
            said.append(
                "nothing was validated: the gain on other samples is unknown; keep a share of the "
                "samples for that"
            )
        return said

    def _write(self, path: Path) -> None:
        file = _File(
            "sensmerge-learn", self.key, self.tasks, self.groups, self.start, self.steps, self.state
        )
        # Python writes floats with enough digits to be read back exactly.
        write_atomically(path, json.dumps(asdict(file), ensure_ascii=False))


@dataclass(frozen=True)
class _File:
    format: Literal["sensmerge-learn"]
    key: dict[str, Any]
    tasks: list[str]
    groups: list[str]
    start: list[list[float]]
    steps: list[Step]
    state: list[list[list[float]]]


_FILE = TypeAdapter(_File)
