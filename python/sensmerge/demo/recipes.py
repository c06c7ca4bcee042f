"""The demo's recipes: files that a user can change and run again."""

from __future__ import annotations

from dataclasses import dataclass

MODES = {
    None: "",
    "task": "+ task-specific",
    "cross": "+ cross-task",
    "full": "+ Sens-Merging",
}

METHODS = {
    "task_arithmetic": "Task Arithmetic",
    "ties": "Ties-Merging",
    "dare_linear": "DARE",
}

# The paper's: TIES masks 0.7 of the entries and DARE drops 0.5; density is what stays.
DENSITIES = {"ties": 0.3, "dare_linear": 0.5}
PAPER_LAMBDAS = {"task_arithmetic": 1.0, "ties": 1.0, "dare_linear": 0.5}


@dataclass(frozen=True)
class Variant:
    """One way to merge the family.

    Attributes:
        method: The merge method.
        mode: The sensitivity mode; None is the plain method.
        scale: λ.
    """

    method: str
    mode: str | None
    scale: float

    @property
    def name(self) -> str:
        """Name of its recipe and of its model's folder."""
        return f"{self.method}-{self.mode or 'plain'}-lambda-{self.scale:.3g}"

    @property
    def label(self) -> str:
        """Its row in the table."""
        return METHODS[self.method] if self.mode is None else f"  {MODES[self.mode]}"

    @property
    def title(self) -> str:
        """Its name in a sentence."""
        return f"{METHODS[self.method]} {MODES[self.mode]}".strip() + f", λ = {self.scale:.3g}"

    def recipe(self, tasks: list[str], seed: int) -> str:
        """The recipe as YAML, with paths as seen from its own folder."""
        lines = [
            f"# {self.title}",
            f"merge_method: {self.method}",
            "base_model: ../base",
            "models:",
        ]
        for task in tasks:
            lines += [f"  - model: ../{task}", f"    calibration: ../calibration/{task}.jsonl"]
        lines += ["parameters:", f"  lambda: {self.scale!r}"]
        if self.method in DENSITIES:
            lines.append(f"  density: {DENSITIES[self.method]}")
        if self.mode is not None:
            lines += ["sensitivity:", f"  mode: {self.mode}"]
        return "\n".join([*lines, "semantics: original", f"seed: {seed}", ""])
