"""A candidate of a search, and its losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sensmerge.search.settings import Settings


@dataclass(frozen=True)
class Result:
    """One candidate and what it came to.

    Attributes:
        kind: ``trial``, or ``baseline`` for a plain merge.
        settings: The candidate.
        losses: Every task's mean loss on the search samples.
        objective: What was to be small, on them.
        validation: Every task's mean loss on the validation samples, where it was looked at.
        validation_objective: The objective on them.
    """

    kind: str
    settings: Settings
    losses: list[float]
    objective: float
    validation: list[float] = field(default_factory=list)
    validation_objective: float = math.nan

    @property
    def score(self) -> float:
        """The validation objective or, where there is none, that of the search."""
        unknown = math.isnan(self.validation_objective)
        return self.objective if unknown else self.validation_objective
