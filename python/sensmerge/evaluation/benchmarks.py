"""The benchmarks of the Sens-Merging paper: their tasks in the harness, and its table's columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GENERAL, MATH, CODE = "General Knowledge", "Mathematical Reasoning", "Code Generation"

# What stands for all of them where tasks are named.
PRESET = "paper"


@dataclass(frozen=True)
class Benchmark:
    """One column of the paper's tables.

    Attributes:
        task: The task's name in the harness.
        title: The column's name in the paper.
        area: What it belongs to in the paper's tables.
        metric: The number that is the score, as the harness names it: metric and filter.
    """

    task: str
    title: str
    area: str
    metric: str


PAPER = (
    Benchmark("mmlu", "MMLU", GENERAL, "acc,none"),
    Benchmark("hellaswag", "HellaSwag", GENERAL, "acc,none"),
    Benchmark("truthfulqa_mc2", "TruthfulQA", GENERAL, "acc,none"),
    # Without examples in the prompt, few models write the answer's mark that the strict one wants.
    Benchmark("gsm8k", "GSM8K", MATH, "exact_match,flexible-extract"),
    Benchmark("hendrycks_math", "MATH", MATH, "exact_match,none"),
    Benchmark("mbpp", "MBPP", CODE, "pass_at_1,none"),
    Benchmark("humaneval", "HumanEval", CODE, "pass@1,create_test"),
)


def benchmark(task: str) -> Benchmark | None:
    """The paper's benchmark of a task; None for other tasks."""
    return next((each for each in PAPER if each.task == task), None)


def named(tasks: str | Sequence[str]) -> list[str]:
    """The tasks that a list names, each once, with those of the preset in its place.

    Args:
        tasks: Names, or a text with commas between them.
    """
    given = tasks.split(",") if isinstance(tasks, str) else list(tasks)
    found: list[str] = []
    for name in (each.strip() for each in given):
        found += [each.task for each in PAPER] if name == PRESET else [name] if name else []
    return list(dict.fromkeys(found))


def title(task: str) -> str:
    """The name of a task's column."""
    known = benchmark(task)
    return task if known is None else known.title


def area(task: str) -> str | None:
    """What a task belongs to in the paper's tables; None for other tasks."""
    known = benchmark(task)
    return None if known is None else known.area
