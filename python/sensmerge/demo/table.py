"""The demo's table, and its findings in words; every number is computed from the scores."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sensmerge.demo.recipes import METHODS, PAPER_LAMBDAS, Variant

if TYPE_CHECKING:
    from sensmerge.demo.evaluate import Score

SOLVED = "math"  # the one task whose completions are right or wrong

NOISE = 2.0  # standard errors; a smaller difference counts as none


@dataclass(frozen=True)
class Section:
    """Rows that are compared with each other: label, λ (None for a single model), score."""

    title: str
    rows: Sequence[tuple[str, float | None, Score]]


@dataclass(frozen=True)
class Outcome:
    """All scores of a demo.

    Attributes:
        singles: The base and each expert, by folder.
        merged: Every merged model.
        plain: Plain task arithmetic at its own best λ, chosen on other samples.
        full: Sens-Merging on task arithmetic at its own best λ, chosen likewise.
        samples: Held-back samples a task.
    """

    singles: Mapping[str, Score]
    merged: Mapping[Variant, Score]
    plain: Variant
    full: Variant
    samples: int

    @property
    def experts(self) -> list[str]:
        """The tasks, each the name of its expert."""
        return [name for name in self.singles if name != "base"]

    def sections(self) -> list[Section]:
        """The rows of the table, as in the paper's ablation."""
        singles = [
            ("Base" if name == "base" else f"Expert, {name}", None, score)
            for name, score in self.singles.items()
        ]
        count = len(self.experts)
        own = [self.plain, Variant("task_arithmetic", "full", self.plain.scale)]
        own += [self.full] if self.full not in own else []
        return [
            Section("One model", singles),
            self._section("Merged, λ as in the paper", ablation(None)),
            self._section(f"Merged, λ = 1/{count}", ablation(1 / count)),
            self._section("Merged, own best λ of each (chosen on other samples)", own),
        ]

    def _section(self, title: str, variants: list[Variant]) -> Section:
        rows = [(variant.label, variant.scale, self.merged[variant]) for variant in variants]
        return Section(title, rows)


def ablation(scale: float | None) -> list[Variant]:
    """The rows of the paper's ablation at one λ, or at each method's own in the paper."""
    return [
        Variant(method, mode, PAPER_LAMBDAS[method] if scale is None else scale)
        for method in METHODS
        for mode in (
            (None, "task", "cross", "full") if method == "task_arithmetic" else (None, "full")
        )
    ]


def render(outcome: Outcome) -> str:
    """The table as plain text."""
    tasks = outcome.experts
    head = f"{'':<20}{'λ':>7}" + "".join(f"{name:>10}" for name in [*tasks, "mean", "solved"])
    lines = [
        f"Mean token loss in nats on {outcome.samples} held-back samples a task (lower is better);",
        f"solved: {SOLVED} problems answered exactly; * best of its section",
        "",
        head,
    ]
    for section in outcome.sections():
        lines += ["-" * len(head), section.title]
        columns = [
            [*(score.tasks[task].loss for task in tasks), score.mean]
            for _, _, score in section.rows
        ]
        best = [min(column) for column in zip(*columns, strict=True)]
        solved = [float(score.tasks[SOLVED].exact.mean()) for _, _, score in section.rows]
        for (label, scale, _), losses, share in zip(section.rows, columns, solved, strict=True):
            cells = [
                f"{loss:9.3f}{'*' if loss == lowest else ' '}"
                for loss, lowest in zip(losses, best, strict=True)
            ]
            shown = "" if scale is None else f"{scale:.3g}"
            mark = "*" if share == max(solved) > 0 else " "
            lines.append(
                f"{label:<20}{shown:>7}{''.join(cells)}{100 * share:7.0f} %{mark}".rstrip()
            )
    return "\n".join(lines)


def verdict(outcome: Outcome) -> list[str]:
    """The findings on Sens-Merging, good or bad."""
    count = len(outcome.experts)
    return [
        _baseline(outcome),
        _effect("At the paper's λ", outcome, None),
        _effect(f"At λ = 1/{count}", outcome, 1 / count),
        _best(outcome),
    ]


def paragraphs(sentences: Sequence[str]) -> str:
    """Sentences as a list that fits a terminal."""
    return "\n".join(
        textwrap.fill(sentence, 79, initial_indent="- ", subsequent_indent="  ")
        for sentence in sentences
    )


def judge(change: float, error: float) -> str:
    """Whether a change of the loss with this standard error is better, worse or within noise."""
    if abs(change) <= NOISE * error:
        return "within noise"
    return "better" if change < 0 else "worse"


def _baseline(outcome: Outcome) -> str:
    plain, full = outcome.merged[outcome.plain], outcome.merged[outcome.full]
    change, error = full.minus(plain)
    judged = judge(change, error)
    headline = {
        "better": "Sens-Merging helps here",
        "worse": "Sens-Merging does not help here",
        "within noise": "Sens-Merging makes no difference beyond noise here",
    }[judged]
    return (
        f"{headline}: at its own best λ ({outcome.full.scale:.3g}) it changes the mean loss by "
        f"{change:+.3f} ± {error:.3f} (standard error) against plain Task Arithmetic at its own "
        f"best λ ({outcome.plain.scale:.3g})."
    )


def _effect(where: str, outcome: Outcome, scale: float | None) -> str:
    parts, judged = [], []
    for method, title in METHODS.items():
        at = PAPER_LAMBDAS[method] if scale is None else scale
        plain, full = (outcome.merged[Variant(method, mode, at)] for mode in (None, "full"))
        change, error = full.minus(plain)
        judged.append(judge(change, error))
        parts.append(f"{title} {change:+.3f} ± {error:.3f}")
    counted = ", ".join(
        f"{word} for {judged.count(word)}" for word in ("better", "worse", "within noise")
    )
    return f"{where} it is {counted} of {len(METHODS)} methods: {', '.join(parts)}."


def _best(outcome: Outcome) -> str:
    variant = min(outcome.merged, key=lambda merged: outcome.merged[merged].mean)
    best, base = outcome.merged[variant], outcome.singles["base"]
    change, error = best.minus(base)
    beaten = "beats" if judge(change, error) == "better" else "does not beat"
    return (
        f"The best of {len(outcome.merged)} merges, {variant.title}, has a mean loss of "
        f"{best.mean:.3f} and {beaten} the base, which has {base.mean:.3f}."
    )
