"""Ways to merge the experts, as recipes, and which stand in which section of the table."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from splits import TASKS

BASE = "base"
PAIR = ("math", "code")

# What the methods' own pages and papers advise; all else is left at its default.
ADVISED: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.3},
    "dare_linear": {"density": 0.5},
    "della": {"density": 0.5},
    "breadcrumbs": {"density": 0.9},
    "sce": {"select_topk": 0.5},
    "tsv": {"matrices": [{"filter": "embed_tokens", "value": 0}, {"value": 1}]},
}
# The methods whose λ is chosen, with their defaults.
SCALED = {
    "task_arithmetic": 1.0,
    "ties": 1.0,
    "dare_linear": 1.0,
    "della": 1.0,
    "breadcrumbs": 1.0,
    "consensus": 1.0,
    "emr": 1.0,
    "magmax": 0.5,
    "pcb": 1.0,
}
LAMBDAS = (0.33, 0.67, 1.0, 1.5)
UNSCALED = ("linear", "sce", "model_stock", "multislerp", "karcher")
# The methods that Sens-Merging is tried on.
GUIDED = ("task_arithmetic", "ties")


@dataclass(frozen=True)
class Way:
    """One way to merge.

    Attributes:
        method: The merge method.
        parameters: Of the method; ``lambda`` may be auto.
        sensitivity: Settings of Sens-Merging; None is the plain method.
        experts: Whom to merge.
        base: Whether the recipe names the base.
    """

    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    sensitivity: dict[str, Any] | None = None
    experts: tuple[str, ...] = TASKS
    base: bool = True

    @property
    def name(self) -> str:
        """Its name in the results."""
        said = [f"{key} {value}" for key, value in self.parameters.items() if key != "matrices"]
        if self.sensitivity is not None:
            said += ["sens", *(f"{key} {value}" for key, value in self.sensitivity.items())]
        return ", ".join(["&".join(self.experts), self.method, *said])

    def at(self, scale: float | str) -> Way:
        """The same with another λ."""
        return replace(self, parameters=self.parameters | {"lambda": scale})

    def guided(self, **sensitivity: Any) -> Way:
        """The same with Sens-Merging."""
        return replace(self, sensitivity=sensitivity)

    def data(self, samples: int, longest: int) -> dict[str, Any]:
        """The recipe, with paths as seen from the work folder.

        Args:
            samples: Calibration samples an expert.
            longest: Tokens of a sample.
        """
        models: list[dict[str, Any]] = [
            {"model": model_of(task)} | ({} if task == BASE else {"calibration": samples_of(task)})
            for task in self.experts
        ]
        data: dict[str, Any] = {"merge_method": self.method, "models": models}
        if self.base:
            data["base_model"] = BASE
        if self.method == "slerp":
            data["base_model"] = models[0]["model"]
        if self.parameters:
            data["parameters"] = self.parameters
        if self.sensitivity is not None:
            data["sensitivity"] = {"samples": samples, "max_length": longest} | self.sensitivity
        return data


def model_of(task: str) -> str:
    """A model's name in recipes: the base, or the base with an expert's adapter."""
    return BASE if task == BASE else f"{BASE}+adapters/{task}"


def samples_of(task: str) -> str:
    """A task's calibration samples, as seen from the work folder."""
    return f"samples/{task}.jsonl"


def plain(method: str) -> Way:
    """A plain method with what is advised, λ at its default."""
    named = method not in ("linear", "multislerp", "karcher", "slerp")
    return Way(method, dict(ADVISED.get(method, {})), base=named)


def singles() -> dict[str, Way]:
    """The base and every expert alone."""
    names = (BASE, *TASKS)
    return {name: Way("passthrough", experts=(name,), base=False) for name in names}


def defaults() -> list[Way]:
    """Every method at its defaults; those on matrices last."""
    scaled = [plain(method).at(scale) for method, scale in SCALED.items()]
    return [*scaled, *map(plain, UNSCALED), plain("tsv").at(1.0)]


def chosen(scales: dict[str, float]) -> list[Way]:
    """Every method that has a λ, at the one that was chosen."""
    return [plain(method).at(scales[method]) for method in SCALED]


def pairs() -> list[Way]:
    """Methods for two models, and a plain one beside them."""
    slerp = replace(plain("slerp"), parameters={"t": 0.5}, experts=PAIR)
    return [
        replace(plain("task_arithmetic").at(0.5), experts=PAIR),
        slerp,
        replace(plain("nuslerp"), experts=PAIR),
    ]


def guided(method: str, scale: float, own: float) -> list[Way]:
    """Sens-Merging on a method: at the default λ, the plain method's chosen one, and its own."""
    scales = dict.fromkeys((SCALED[method], scale, own))
    return [plain(method).at(one).guided() for one in scales]


def ablation(scale: float) -> list[Way]:
    """Parts of Sens-Merging and the other Eq. 5, on task arithmetic at its chosen λ."""
    way = plain("task_arithmetic").at(scale)
    return [
        way.guided(mode="task"),
        way.guided(mode="cross"),
        way.guided(cross_task="distance"),
    ]


def automatic() -> Way:
    """Sens-Merging on task arithmetic with λ and T that sensmerge chooses."""
    return plain("task_arithmetic").at("auto").guided(temperature="auto")
