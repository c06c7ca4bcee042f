"""Calibration samples: read, drawn, tokenised.

What is scored: the completion's tokens where a sample has a prompt and a completion, the
assistant's turns where it has messages, every token but the first where it has only text.

Tokens of a prompt and completion: the prompt with the tokenizer's special tokens, the completion
without, EOS where the tokenizer has one. Text: with its special tokens, then EOS. Messages: as the
chat template lays them out, with nothing added.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge.calibration.record import TaskRecord
from sensmerge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXPECTED = "expected an object with prompt and completion, with messages, or with text"


@dataclass(frozen=True)
class Row:
    """One line of a file."""

    place: str
    data: dict[str, Any]


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


def load(
    path: Path,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    seed: int,
    max_length: int,
    positions: str,
) -> Task:
    """Read a JSONL file, draw samples and tokenise them.

    Args:
        path: The file.
        name: What the recipe calls it.
        tokenizer: The expert's tokenizer.
        count: Samples to draw; a file with fewer gives all of them.
        seed: Seed of the draw.
        max_length: Longest sample in tokens; the right end is cut off.
        positions: ``completion`` or ``all``.

    Raises:
        InputError: The file or a line of it is not what it should be, or no sample has a scored
            token left.
    """
    rows = read(path)
    drawn = draw(len(rows), count, seed)
    samples = [encode(rows[place], tokenizer, max_length, positions) for place in drawn]
    used = [sample for sample in samples if sample.scored]
    if not used:
        raise InputError(
            f"{path}: no sample has a scored token within max_length {max_length}; shorten the "
            "prompts or raise sensitivity.max_length"
        )
    digest = hashlib.sha256()
    for sample in used:
        digest.update(json.dumps([sample.ids, sample.scored]).encode())
    record = TaskRecord(
        path=name,
        rows=len(rows),
        drawn=drawn,
        used=len(used),
        left_out=len(samples) - len(used),
        scored_tokens=sum(len(sample.scored) for sample in used),
        token_ids=f"sha256:{digest.hexdigest()}",
        max_length=max_length,
    )
    return Task(samples=used, record=record)


def draw(rows: int, count: int, seed: int) -> list[int]:
    """Draw places without replacement, in the file's order; all of them where there are few.

    The draw is that of Python's own ``random.Random(seed).sample(range(rows), count)``.
    """
    if rows <= count:
        return list(range(rows))
    return sorted(random.Random(seed).sample(range(rows), count))


def read(path: Path) -> list[Row]:
    """Read a JSONL file; blank lines are passed over.

    Raises:
        InputError: The file cannot be read, is empty, or has a line that is no sample.
    """
    try:
        # Some editors begin a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: {error.reason}") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                data = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place}: not JSON: {error}; {EXPECTED}") from None
            _check(data, place)
            rows.append(Row(place, data))
    if not rows:
        raise InputError(f"{path}: holds no samples; {EXPECTED} on each line")
    return rows


def _check(data: Any, place: str) -> None:
    if not isinstance(data, dict):
        raise InputError(f"{place}: is {_kind(data)}; {EXPECTED}")
    if "messages" in data:
        _check_messages(data["messages"], place)
        return
    keys = ("prompt", "completion") if "prompt" in data or "completion" in data else ("text",)
    for key in keys:
        if key not in data:
            raise InputError(f"{place}: has no '{key}'; {EXPECTED}")
        _check_text(data[key], f"'{key}'", place)
    if not data[keys[-1]]:
        raise InputError(f"{place}: '{keys[-1]}' is empty; expected text to score")


def _check_messages(messages: Any, place: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{place}: 'messages' is {_kind(messages)}; expected a list of turns")
    for number, turn in enumerate(messages):
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise InputError(
                f"{place}: messages[{number}] is no turn; expected an object with role and content"
            )
        for key in ("role", "content"):
            _check_text(turn[key], f"messages[{number}].{key}", place)
    if not any(turn["role"] == "assistant" for turn in messages):
        raise InputError(f"{place}: 'messages' has no turn of the assistant to score")


def _check_text(value: Any, key: str, place: str) -> None:
    if not isinstance(value, str):
        raise InputError(f"{place}: {key} is {_kind(value)}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{place}: {key} holds half of a surrogate pair; expected Unicode text"
        ) from None


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return ("an object" if isinstance(value, dict) else "a list") if value else "empty"


def encode(row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int, positions: str) -> Sample:
    """Tokenise one sample and say which tokens are scored.

    Raises:
        InputError: The tokenizer cannot lay out its messages, or makes no token of its text.
    """
    data = row.data
    scored: Sequence[int]
    if "messages" in data:
        ids, scored = _encode_messages(row, tokenizer)
    elif "completion" in data:
        prompt = _tokens(tokenizer, data["prompt"])
        completion = _written(row, tokenizer, "completion")
        ids = [*prompt, *completion, *_end(tokenizer)]
        scored = range(len(prompt), len(ids))
    else:
        _written(row, tokenizer, "text")
        ids = [*_tokens(tokenizer, data["text"]), *_end(tokenizer)]
        scored = range(1, len(ids))
    ids = ids[:max_length]
    if positions == "all":
        scored = range(1, len(ids))
    # The first token has nothing before it that could predict it.
    return Sample(ids, [place for place in scored if 0 < place < len(ids)], row.place)


def _written(row: Row, tokenizer: PreTrainedTokenizerBase, key: str) -> list[int]:
    """The tokens of a text without special ones; a measurement of EOS alone would mean nothing."""
    ids = _tokens(tokenizer, row.data[key], add_special_tokens=False)
    if not ids:
        raise InputError(
            f"{row.place}: the expert's tokenizer makes no token of '{key}'; write text that it "
            "knows, or see whether its files belong to the model"
        )
    return ids


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    # Not verbose: a text that is longer than the tokenizer thinks fit is cut here, not there.
    return list(tokenizer(text, verbose=False, **options)["input_ids"])


def _end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]


def _encode_messages(
    row: Row, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], Sequence[int]]:
    """Lay out a conversation by the chat template; a turn of the assistant's is what it adds.

    A turn begins where the layout of the turns before it, with the generation prompt, ends. A
    token that reaches over that edge, as a space and the first word do in some tokenizers, is
    the assistant's.
    """
    messages = row.data["messages"]
    if not tokenizer.chat_template:
        raise InputError(
            f"{row.place}: has messages, but the expert's tokenizer has no chat template; give "
            "prompt and completion instead"
        )
    whole = _layout(row, tokenizer, messages)
    ids = _tokens(tokenizer, whole, add_special_tokens=False)

    def tokens_of(text: str) -> int:
        """How many of the conversation's tokens lie in this beginning of it."""
        part = _tokens(tokenizer, text, add_special_tokens=False)
        pairs = enumerate(zip(part, ids, strict=False))
        return next((place for place, (one, other) in pairs if one != other), len(part))

    scored: list[int] = []
    for place, turn in enumerate(messages):
        if turn["role"] == "assistant":
            before = _layout(row, tokenizer, messages[:place], add_generation_prompt=True)
            after = _layout(row, tokenizer, messages[: place + 1])
            if not (after.startswith(before) and whole.startswith(after)):
                raise InputError(
                    f"{row.place}: the chat template rewrites earlier turns, so the assistant's "
                    "tokens cannot be told; give prompt and completion instead"
                )
            scored += range(tokens_of(before), tokens_of(after))
    return ids, scored


def _layout(
    row: Row, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any
) -> str:
    if not messages:
        return ""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:
        raise InputError(f"{row.place}: the chat template refuses it: {error}") from None
