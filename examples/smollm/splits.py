"""Samples of three tasks: for training, for calibration and choices, and held back."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import transformers

from sensmerge.calibration import samples
from sensmerge.calibration.rows import Row
from sensmerge.calibration.samples import Sample

TASKS = ("math", "code", "chat")


@dataclass(frozen=True)
class Amounts:
    """How many samples a task gets.

    Attributes:
        longest: Tokens of a sample, chat template included; longer ones are left out.
        calibration: For sensitivity, λ and every other choice.
        held_back: For the tables.
        training: For an expert, at most.
    """

    longest: int
    calibration: int
    held_back: int
    training: int


@dataclass(frozen=True)
class Split:
    """One task's samples, in parts that share no prompt.

    Attributes:
        training: What its expert learns from.
        calibration: What everything is chosen on.
        held_back: What the tables are computed on.
        rows: The calibration samples as a file of samples has them.
    """

    training: list[Sample]
    calibration: list[Sample]
    held_back: list[Sample]
    rows: list[dict[str, Any]]


def split(data: Path, base: Path, amounts: Amounts, seed: int) -> dict[str, Split]:
    """Read the samples of every task and deal them out.

    Args:
        data: A folder with one file a task, ``math*.jsonl`` and so on, each row with a prompt and a
            completion.
        base: The model whose tokenizer and chat template lay them out.
        amounts: How many.
        seed: Of their order.

    Raises:
        ClickException: A file is missing, or has too few samples.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(base, local_files_only=True)
    return {task: _split(task, _file(data, task), tokenizer, amounts, seed) for task in TASKS}


def write(splits: dict[str, Split], folder: Path) -> None:
    """Write the calibration samples, a file a task."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, found in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows]
        (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")


def _file(data: Path, task: str) -> Path:
    found = sorted(data.glob(f"{task}*.jsonl"))
    if len(found) != 1:
        raise click.ClickException(
            f"{data}: has {len(found)} files {task}*.jsonl; one is needed for each of "
            f"{', '.join(TASKS)}, with a prompt and a completion in every row"
        )
    return found[0]


def _split(task: str, path: Path, tokenizer: Any, amounts: Amounts, seed: int) -> Split:
    read = samples.read(path)
    random.Random(f"{seed} {task}").shuffle(read)
    wanted = amounts.held_back + amounts.calibration + amounts.training
    kept: list[tuple[dict[str, Any], Sample]] = []
    seen: set[str] = set()
    for row in read:
        if len(kept) == wanted:
            break
        said = _conversation(row)
        prompt = " ".join(said["messages"][0]["content"].split())
        sample = samples.encode(Row(row.place, said), tokenizer, amounts.longest + 1, "completion")
        if prompt not in seen and len(sample.ids) <= amounts.longest:
            seen.add(prompt)
            kept.append((said, sample))
    first, second = amounts.held_back, amounts.held_back + amounts.calibration
    if len(kept) <= second:
        raise click.ClickException(
            f"{path}: has {len(kept)} samples of at most {amounts.longest} tokens with prompts of "
            f"their own; more than {second} are needed"
        )
    tokenised = [sample for _, sample in kept]
    return Split(
        training=tokenised[second:],
        calibration=tokenised[first:second],
        held_back=tokenised[:first],
        rows=[said for said, _ in kept[first:second]],
    )


def _conversation(row: Row) -> dict[str, Any]:
    """A prompt and completion as a conversation, which the chat template lays out."""
    try:
        turns = [("user", row.data["prompt"]), ("assistant", row.data["completion"])]
    except KeyError as key:
        raise click.ClickException(
            f"{row.place}: has no {key}; prompt and completion are needed"
        ) from None
    return {"messages": [{"role": role, "content": text} for role, text in turns]}
