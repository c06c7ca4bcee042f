"""The evaluators, by the key that each has in the ``evaluate`` section of a farm file."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from pydantic import BeforeValidator, model_validator

from sensmerge.farm.evaluators import Context, Evaluator
from sensmerge.farm.evaluators.benchmarks import BenchmarkSettings
from sensmerge.farm.evaluators.command import CommandSettings
from sensmerge.farm.evaluators.loss import LossSettings
from sensmerge.recipe.fields import Strict, section


class Settings(Protocol):
    """The section of one evaluator."""

    def opened(self, context: Context) -> Evaluator:
        """The evaluator.

        Raises:
            InputError: What it needs is not there.
        """
        ...


class Evaluate(Strict):
    """How candidates are scored: one of these.

    Attributes:
        loss: By the loss on the experts' samples, merged in memory.
        command: By a command that prints JSON.
        benchmarks: By tasks of lm-evaluation-harness, merged in memory.
    """

    loss: Annotated[LossSettings | None, BeforeValidator(section)] = None
    command: CommandSettings | None = None
    benchmarks: BenchmarkSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """``evaluate: loss`` is the evaluator with its defaults."""
        return {value: None} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> Evaluate:
        if sum(each is not None for _, each in self) != 1:
            raise ValueError(f"name one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def chosen(self) -> tuple[str, Settings]:
        """The name of the evaluator, and its section."""
        return next((name, each) for name, each in self if each is not None)
