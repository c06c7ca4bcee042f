"""A candidate of a search, and its losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sensmerge.search.settings import Settings


@dataclass(frozen=True)
class Result:
    """One candidate and its losses.

    Attributes:
        kind: ``trial``, or ``baseline`` for a plain merge.
        settings: The candidate.
        losses: Every task's mean loss on the search samples, in nats per token.
        objective: The objective on the search samples.
        validation: Every task's mean loss on the validation samples; empty if not computed.
        validation_objective: The objective on the validation samples; NaN if not computed.
    """

    kind: str
    settings: Settings
    losses: list[float]
    objective: float
    validation: list[float] = field(default_factory=list)
    validation_objective: float = math.nan

    @property
    def score(self) -> float:
        """The objective on the validation samples or, if not computed, on the search samples."""
        unknown = math.isnan(self.validation_objective)
        return self.objective if unknown else self.validation_objective
