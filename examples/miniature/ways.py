"""Ways to merge, and which of them stand in which table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sensmerge.demo.recipes import DENSITIES, METHODS, PAPER_LAMBDAS
from sensmerge.demo.text import TASKS
from sensmerge.recipe import DEFAULT_TEMPERATURE

PAIRS = (("prose", "math"), ("math", "code"))
TEMPERATURES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FORMS = ("transfer", "distance")

# Where every method looks for its own best λ, on development samples.
LAMBDAS = (0.1, 0.2, 1 / 3, 0.5, 0.7, 1.0)

# The paper's number of samples a task.
SAMPLES = 10


@dataclass(frozen=True)
class Way:
    """One way to merge, by fixed numbers.

    Attributes:
        method: The merge method.
        scale: λ.
        mode: The sensitivity mode; None is the plain method.
        temperature: T of Eq. 6.
        form: Which Eq. 5.
        experts: Whom to merge.
        kind: Which samples sensitivity is measured on.
        count: How many a task.
    """

    method: str = "task_arithmetic"
    scale: float = 1 / len(TASKS)
    mode: str | None = None
    temperature: float = DEFAULT_TEMPERATURE
    form: str = "transfer"
    experts: tuple[str, ...] = TASKS
    kind: str = "fresh"
    count: int = SAMPLES

    @property
    def name(self) -> str:
        """Its name in the results."""
        parts = ["&".join(self.experts), self.method, f"lambda {self.scale:.4g}"]
        if self.mode is not None:
            parts += [self.mode, f"T {self.temperature:.4g}", self.form]
            parts += [f"{self.count} {self.kind}"]
        return ", ".join(parts)

    @property
    def is_random(self) -> bool:
        """Whether draws of samples, or of DARE's masks, change it."""
        return self.mode is not None or self.method.startswith("dare")

    def data(self, seed: int) -> dict[str, Any]:
        """The recipe, with paths as seen from the family's folder.

        Args:
            seed: Of the draw of samples and of DARE.
        """
        parameters: dict[str, Any] = {"lambda": self.scale}
        if self.method in DENSITIES:
            parameters["density"] = DENSITIES[self.method]
        data = {
            "merge_method": self.method,
            "base_model": "base",
            "models": [
                {"model": task, "calibration": f"samples/{self.kind}/{task}.jsonl"}
                for task in self.experts
            ],
            "parameters": parameters,
            "semantics": "original",
            "seed": seed,
        }
        if self.mode is not None:
            data["sensitivity"] = sensitivity(seed, self.count) | {
                "mode": self.mode, "temperature": self.temperature, "cross_task": self.form,
            }  # fmt: skip
        return data


def sensitivity(seed: int, count: int = SAMPLES) -> dict[str, Any]:
    """How samples are drawn."""
    return {"samples": count, "max_length": 256, "seed": seed}


def with_and_without(way: Way) -> list[Way]:
    """The plain method and Sens-Merging on it."""
    return [way, replace(way, mode="full")]


def three_experts(best: dict[str, float]) -> list[tuple[str, list[Way]]]:
    """Table 1: every method with and without, at three choices of λ."""
    sections = (
        ("λ as in the paper", PAPER_LAMBDAS),
        ("λ = 1/3", dict.fromkeys(METHODS, 1 / len(TASKS))),
        ("the plain method's own best λ", best),
    )
    return [
        (
            title,
            [way for method in METHODS for way in with_and_without(Way(method, scales[method]))],
        )
        for title, scales in sections
    ]


def ablation() -> list[tuple[str, list[Way]]]:
    """Table 4, with both forms of Eq. 5."""
    found = []
    for title, scale in (("λ = 1, the paper's", 1.0), ("λ = 1/3", 1 / len(TASKS))):
        ways = [Way(scale=scale), Way(scale=scale, mode="task")]
        ways += [Way(scale=scale, mode=mode, form=f) for mode in ("cross", "full") for f in FORMS]
        found.append((title, ways))
    return found


def two_experts() -> list[tuple[str, list[Way]]]:
    """Table 5."""
    return [
        (
            f"{' & '.join(pair)}, {title}",
            [
                way
                for method in METHODS
                for way in with_and_without(Way(method, scales[method], experts=pair))
            ],
        )
        for pair in PAIRS
        for title, scales in (
            ("λ as in the paper", PAPER_LAMBDAS),
            ("λ = 1/2", dict.fromkeys(METHODS, 0.5)),
        )
    ]


def sample_counts() -> list[tuple[str, list[Way]]]:
    """Table 8."""
    return [
        (
            title,
            [Way(scale=scale, mode="full", count=count) for count in (SAMPLES, 2 * SAMPLES)],
        )
        for title, scale in (("λ = 1, the paper's", 1.0), ("λ = 1/3", 1 / len(TASKS)))
    ]


def temperatures(best: dict[str, float], grid: tuple[float, ...]) -> dict[str, list[Way]]:
    """Both forms over a grid of T, at plain task arithmetic's own best λ."""
    scale = best["task_arithmetic"]
    return {
        form: [Way(scale=scale, mode="full", temperature=T, form=form) for T in grid]
        for form in FORMS
    }
