"""The merges that are measured: every method that works entry by entry, with its targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EXPERTS = 3


@dataclass(frozen=True)
class Work:
    """A merge that is measured.

    Attributes:
        name: Its row in the table.
        method: The method's name.
        target: Upper limit for the ratio to the floor; None if there is none.
        times: Lower limit for the speed relative to mergekit, if mergekit has the same method.
        semantics: The variant of the method.
        parameters: The method's parameters beside the models' weights.
        experts: The number of experts; the floor gets as many.
        base: Whether the recipe names the base.
        weights: Whether the models have weights.
        sensitivity: Whether coefficients by layer come from a calibration.
        statistics: Whether it reads Fisher information of every expert beside them.
        main: Whether it is measured without ``--all``.
    """

    name: str
    method: str
    target: float | None = None
    times: int | None = None
    semantics: str = "mergekit"
    parameters: dict[str, Any] = field(default_factory=dict)
    experts: int = EXPERTS
    base: bool = True
    weights: bool = True
    sensitivity: bool = False
    statistics: bool = False
    main: bool = False


WORKS = [
    Work("linear", "linear", 1.25, 15, base=False, main=True),
    Work("task_arithmetic", "task_arithmetic", 1.25, 15, main=True),
    Work(
        "task_arithmetic, sensitivity", "task_arithmetic", 1.25, sensitivity=True, main=True,
    ),
    Work(
        "dare_linear 0.5, original", "dare_linear", 1.8, semantics="original",
        parameters={"density": 0.5}, main=True,
    ),
    Work(
        "dare_linear 0.5, mergekit", "dare_linear", 2.3, 50,
        parameters={"density": 0.5}, main=True,
    ),
    Work(
        "dare_ties 0.5, mergekit", "dare_ties", 2.5, 50, parameters={"density": 0.5}, main=True,
    ),
    Work("ties 0.2, per tensor", "ties", 2.5, 100, parameters={"density": 0.2}, main=True),
    Work(
        "ties 0.3, whole model", "ties", 3, semantics="original",
        parameters={"density": 0.3}, main=True,
    ),
    Work("breadcrumbs 0.5", "breadcrumbs", 5, parameters={"density": 0.5}),
    Work("breadcrumbs_ties 0.5", "breadcrumbs_ties", 5, parameters={"density": 0.5}),
    Work("della_linear 0.5", "della_linear", 5, parameters={"density": 0.5}),
    Work("della 0.5", "della", 5, parameters={"density": 0.5}),
    Work("sce 0.5", "sce", 3, parameters={"select_topk": 0.5}, weights=False),
    Work("ram", "ram", 3, weights=False),
    Work("ramplus_tl", "ramplus_tl", 3, weights=False),
    Work("slerp", "slerp", 3, parameters={"t": 0.4}, experts=1, weights=False),
    Work("nuslerp", "nuslerp", 3, experts=2),
    Work("multislerp", "multislerp", 3),
    Work("karcher", "karcher", 3, base=False, weights=False),
    Work("model_stock", "model_stock", 3, weights=False),
    Work("nearswap", "nearswap", 3, parameters={"t": 0.001}, experts=1, weights=False),
    Work("arcee_fusion", "arcee_fusion", experts=1, weights=False),
    Work("passthrough", "passthrough", experts=1, base=False, weights=False),
    Work("magmax", "magmax"),
    Work("emr", "emr"),
    Work("consensus", "consensus"),
    Work("pcb 0.1", "pcb", parameters={"density": 0.1}),
    Work("widen", "widen"),
    Work("fisher", "fisher", 2, base=False, statistics=True),
    Work("wsm", "wsm", base=False, weights=False),
]  # fmt: skip
