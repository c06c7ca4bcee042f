"""Calibration samples: read, drawn, tokenised.

Scored are the completion's tokens where a sample has a prompt and a completion, the assistant's
turns where it is a conversation, every token but the first where it is text alone (``forms``).

Tokens of a prompt and completion: the prompt with the tokenizer's special tokens, the completion
without, EOS where the tokenizer has one. Text: with its special tokens, then EOS. Conversations:
as the chat template lays them out, with nothing added (``layout``).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sensmerge.calibration.forms import EXPECTED, Conversation, Pair, form
from sensmerge.calibration.layout import lay_out, tokens
from sensmerge.calibration.record import SampleFile, TaskRecord
from sensmerge.calibration.rows import Row, rows
from sensmerge.errors import InputError
from sensmerge.recipe.places import at_home

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sensmerge.recipe import Model, Recipe, Sensitivity
    from sensmerge.recipe.fields import Task as Wanted


# Rows of a file, which are all read before some are drawn.
_MOST_ROWS = 10**6


@dataclass(frozen=True)
class Sample:
    """One tokenised sample.

    Attributes:
        ids: Its token ids.
        scored: Places of the tokens that the loss is taken over, each at least 1.
        place: The file and line it is from.
    """

    ids: list[int]
    scored: list[int]
    place: str

    def logit_positions(self, positions: str) -> list[int]:
        """Places whose logits are compared: all, or those that predict a scored token."""
        if positions == "all":
            return list(range(len(self.ids)))
        return [place - 1 for place in self.scored]


@dataclass(frozen=True)
class Task:
    """The samples of one expert, ready to be run."""

    samples: list[Sample]
    record: TaskRecord


def task(
    recipe: Recipe, place: int, tokenizer: PreTrainedTokenizerBase, options: Sensitivity
) -> Task:
    """The samples of one of the models that a recipe measures.

    Raises:
        InputError: The recipe names none for it, or :func:`load` refuses them.
    """
    return of_expert(recipe, recipe.measured[place], tokenizer, options)


def of_expert(
    recipe: Recipe, expert: Model, tokenizer: PreTrainedTokenizerBase, options: Sensitivity
) -> Task:
    """The samples of one of a recipe's models.

    Raises:
        InputError: As :func:`task`.
    """
    if expert.calibration is None:
        raise InputError(
            f"expert '{expert.model}' has no calibration samples; add 'calibration: FILE.jsonl' to "
            "it, or give a calibration with --calibration"
        )
    return read_task(recipe, expert.calibration, tokenizer, options)


def read_task(
    recipe: Recipe, wanted: Wanted, tokenizer: PreTrainedTokenizerBase, options: Sensitivity
) -> Task:
    """The samples that a recipe names in one place.

    Raises:
        InputError: As :func:`load`.
    """
    return load(
        [recipe.folder / at_home(file) for file in wanted.files],
        wanted.files,
        tokenizer,
        count=wanted.samples or options.samples,
        seed=options.seed,
        max_length=wanted.max_length or options.max_length,
        positions=options.positions,
    )


def load(
    path: Path | Sequence[Path],
    name: str | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    seed: int,
    max_length: int,
    positions: str,
) -> Task:
    """Read one file or several, draw samples from all their rows together, and tokenise them.

    Args:
        path: The file, or the files in the order in which their rows are counted.
        name: What the recipe calls it, or each of them.
        tokenizer: The expert's tokenizer.
        count: Samples to draw; files with fewer give all of them.
        seed: Seed of the draw.
        max_length: Longest sample in tokens; the right end is cut off.
        positions: ``completion`` or ``all``.

    Raises:
        InputError: A file or a row of it is not what it should be, or no sample has a scored
            token left.
    """
    paths = [path] if isinstance(path, Path) else list(path)
    names = [name] if isinstance(name, str) else list(name)
    read_from = [read(one) for one in paths]
    found = [row for file in read_from for row in file]
    drawn = draw(len(found), count, seed)
    samples = [encode(found[place], tokenizer, max_length, positions) for place in drawn]
    used = [sample for sample in samples if sample.scored]
    if not used:
        raise InputError(
            f"{', '.join(map(str, paths))}: no sample has a scored token within max_length "
            f"{max_length}; shorten the prompts or raise sensitivity.max_length"
        )
    digest = hashlib.sha256()
    for sample in used:
        digest.update(json.dumps([sample.ids, sample.scored]).encode())
    record = TaskRecord(
        path=", ".join(names),
        rows=len(found),
        drawn=drawn,
        used=len(used),
        left_out=len(samples) - len(used),
        scored_tokens=sum(len(sample.scored) for sample in used),
        token_ids=f"sha256:{digest.hexdigest()}",
        max_length=max_length,
        files=[
            SampleFile(path=each, rows=len(file))
            for each, file in zip(names, read_from, strict=True)
        ],
    )
    return Task(samples=used, record=record)


def draw(rows: int, count: int, seed: int) -> list[int]:
    """Draw places without replacement, in the files' order; all of them where there are few.

    The draw is that of Python's own ``random.Random(seed).sample(range(rows), count)``.
    """
    if rows <= count:
        return list(range(rows))
    return sorted(random.Random(seed).sample(range(rows), count))


def read(path: Path) -> list[Row]:
    """Read a file of samples, all of it: a row that is no sample is refused, drawn or not.

    Raises:
        InputError: The file cannot be read, is empty, or has a row that is no sample.
    """
    found = []
    for place, data in rows(path):
        found.append(Row(place, data))
        form(found[-1])
        if len(found) > _MOST_ROWS:
            raise InputError(f"{path}: has over {_MOST_ROWS} rows; name a part of them")
    if not found:
        raise InputError(f"{path}: holds no samples; {EXPECTED} in each row")
    return found


def encode(row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int, positions: str) -> Sample:
    """Tokenise one sample and say which tokens are scored.

    Raises:
        InputError: The tokenizer cannot lay out its messages, or makes no token of its text.
    """
    said = form(row)
    scored: Sequence[int]
    if isinstance(said, Conversation):
        ids, scored = lay_out(said, tokenizer, row.place)
    elif isinstance(said, Pair):
        prompt = tokens(tokenizer, said.prompt, special=True)
        completion = _written(row, tokenizer, said.completion)
        ids = [*prompt, *completion, *_end(tokenizer)]
        scored = range(len(prompt), len(ids))
    else:
        _written(row, tokenizer, said.text)
        ids = [*tokens(tokenizer, said.text, special=True), *_end(tokenizer)]
        scored = range(1, len(ids))
    ids = ids[:max_length]
    if positions == "all":
        scored = range(1, len(ids))
    # The first token has nothing before it that could predict it.
    return Sample(ids, [place for place in scored if 0 < place < len(ids)], row.place)


def _written(row: Row, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text without special ones; refuses a text that has none."""
    ids = tokens(tokenizer, text)
    if not ids:
        key = [key for key, value in row.data.items() if value == text][-1]
        raise InputError(
            f"{row.place}: the expert's tokenizer makes no token of '{key}'; write text that it "
            "knows, or see whether its files belong to the model"
        )
    return ids


def _end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
