"""The forms of a sample: a prompt and its completion, a conversation, or text alone.

The keys of a row tell its form. A row that fits two forms, or none, is refused, since it would be a
guess which of its tokens to score. Keys that belong to no form are ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sensmerge.calibration.rows import Row
from sensmerge.errors import InputError

# Keys that data sets use for a prompt and its completion.
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "code"),
    ("question", "answer"),
    ("query", "response"),
    ("problem", "solution"),
    ("text", "code"),
)
CONVERSATIONS = (("messages",), ("conversations",))
ALPACA = ("instruction", "output")
TEXT = ("text",)
FORMS: tuple[tuple[str, ...], ...] = (*CONVERSATIONS, *PAIRS, ALPACA, TEXT)

EXPECTED = (
    "expected an object with messages, conversations, prompt and completion (or response, or "
    "code), question and answer, query and response, problem and solution, instruction and "
    "output, text and code, or text alone"
)

# The prompts that Stanford Alpaca was trained with.
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


@dataclass(frozen=True)
class Text:
    """Text alone."""

    text: str


@dataclass(frozen=True)
class Pair:
    """A prompt and its completion."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Conversation:
    """Turns as chat templates take them.

    Attributes:
        messages: Turns with role and content; also tool_calls and other keys that templates use.
        tools: Descriptions of the tools, if there are any.
        first: The first turn that is not part of the prompt: the assistant's turns from there on
            are scored.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    first: int = 0


def form(row: Row) -> Text | Pair | Conversation:
    """The sample in a row.

    Raises:
        InputError: It fits no form or two, or a value in it is not what its key says.
    """
    if not isinstance(row.data, dict):
        raise InputError(f"{row.place}: is {_kind(row.data)}; {EXPECTED}")
    keys = _keys(row)
    if keys in CONVERSATIONS:
        messages = _turns(row, keys[0])
        first = 0
    elif keys == PAIRS[0] and all(isinstance(row.data[key], list) for key in keys):
        prompt = _turns(row, "prompt")
        messages = [*prompt, *_turns(row, "completion")]
        first = len(prompt)
    else:
        return _written(row, keys)
    messages, first = _with_system(row, messages, first)
    if not any(turn["role"] == "assistant" for turn in messages[first:]):
        raise InputError(f"{row.place}: '{keys[-1]}' has no turn of the assistant to score")
    return Conversation(messages, _tools(row), first)


def _keys(row: Row) -> tuple[str, ...]:
    """The keys of the one form that the row fits."""
    found = [keys for keys in FORMS if all(key in row.data for key in keys)]
    # In tables every row has all columns, and null in those that it does not use.
    filled = [keys for keys in found if all(row.data[key] is not None for key in keys)]
    found = filled or found
    if TEXT in found and (("text", "code") in found or _repeats_alpaca(row, found)):
        found.remove(TEXT)
    if len(found) == 1:
        return found[0]
    if found:
        fitting = ", ".join(f"'{' + '.join(keys)}'" for keys in found)
        raise InputError(
            f"{row.place}: fits {len(found)} forms, {fitting}; leave only the keys of one of them"
        )
    for keys in FORMS:
        there = [key for key in keys if key in row.data]
        missing = [key for key in keys if key not in row.data]
        if there and missing:
            raise InputError(
                f"{row.place}: has no '{missing[0]}' beside '{there[0]}' {_among(row)}; {EXPECTED}"
            )
    raise InputError(f"{row.place}: fits no form {_among(row)}; {EXPECTED}")


def _among(row: Row) -> str:
    return f"(its keys: {', '.join(map(str, row.data)) or 'none'})"


def _repeats_alpaca(row: Row, found: list[tuple[str, ...]]) -> bool:
    """Whether 'text' repeats the other columns as prompt and output, as in Alpaca's own files."""
    if ALPACA not in found or not all(isinstance(row.data[key], str) for key in (*ALPACA, "text")):
        return False
    prompt = _alpaca_prompt(row)
    return bool(row.data["text"].rstrip() == (prompt + row.data["output"]).rstrip())


def _written(row: Row, keys: tuple[str, ...]) -> Text | Pair:
    for key in keys:
        _check_text(row.data[key], f"'{key}'", row.place)
    if not row.data[keys[-1]]:
        raise InputError(f"{row.place}: '{keys[-1]}' is empty; expected text to score")
    if keys == TEXT:
        return Text(row.data["text"])
    for key in ("system", "system_prompt", "history"):
        if row.data.get(key):
            raise InputError(
                f"{row.place}: '{key}' has no place beside {' and '.join(keys)}; write the sample "
                "as messages"
            )
    prompt, completion = (row.data[key] for key in keys)
    return Pair(_alpaca_prompt(row) if keys == ALPACA else prompt, completion)


def _alpaca_prompt(row: Row) -> str:
    given = row.data.get("input")
    if given is None or given == "":
        return _ALPACA.format(instruction=row.data["instruction"])
    _check_text(given, "'input'", row.place)
    return _ALPACA_WITH_INPUT.format(instruction=row.data["instruction"], input=given)


def _turns(row: Row, key: str) -> list[dict[str, Any]]:
    turns = row.data[key]
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{row.place}: '{key}' is {_kind(turns)}; expected a list of turns")
    return [_turn(turn, f"{key}[{number}]", row.place) for number, turn in enumerate(turns)]


def _turn(turn: Any, key: str, place: str) -> dict[str, Any]:
    """One turn, with the keys that chat templates use."""
    plain = isinstance(turn, dict) and _has(turn, "role") and {"content", "tool_calls"} & {*turn}
    sharegpt = isinstance(turn, dict) and _has(turn, "from") and "value" in turn
    if bool(plain) == sharegpt:
        raise InputError(
            f"{place}: {key} is no turn; expected an object with role and content, or with from "
            "and value"
        )
    if sharegpt:
        return _sharegpt(turn, key, place)
    _check_text(turn["role"], f"{key}.role", place)
    calls, content = turn.get("tool_calls"), turn.get("content")
    # Other keys that templates use hold text: name, tool_call_id, reasoning_content.
    found: dict[str, Any] = {name: text for name, text in turn.items() if isinstance(text, str)}
    # A turn that only calls a tool has no content.
    found["content"] = "" if content is None and calls else _content(content, key, place)
    if calls:
        found["tool_calls"] = _calls(calls, f"{key}.tool_calls", place)
    _check_json(found, key, place)
    return found


def _has(turn: dict[str, Any], key: str) -> bool:
    # In tables every turn has all keys, and null under those that it does not use.
    return turn.get(key) is not None


def _content(content: Any, key: str, place: str) -> str:
    if not isinstance(content, list):
        _check_text(content, f"{key}.content", place)
        return str(content)
    texts = []
    for number, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise InputError(
                f"{place}: {key}.content[{number}] is no text; expected parts "
                '{"type": "text", "text": ...} only'
            )
        _check_text(part.get("text"), f"{key}.content[{number}].text", place)
        texts.append(part["text"])
    return "".join(texts)


def _sharegpt(turn: dict[str, Any], key: str, place: str) -> dict[str, Any]:
    for name in ("from", "value"):
        _check_text(turn[name], f"{key}.{name}", place)
    speaker = turn["from"]
    if speaker not in _SHAREGPT_ROLES:
        raise InputError(
            f"{place}: {key}.from is '{speaker}'; expected one of {', '.join(_SHAREGPT_ROLES)}"
        )
    found: dict[str, Any] = {"role": _SHAREGPT_ROLES[speaker], "content": turn["value"]}
    if speaker == "function_call":
        calls = _parsed(turn["value"], f"{key}.value", place)
        calls = calls if isinstance(calls, list) else [calls]
        found |= {"content": "", "tool_calls": _calls(calls, f"{key}.value", place)}
    return found


def _calls(calls: Any, key: str, place: str) -> list[dict[str, Any]]:
    """Calls of tools, as {type: function, function: {name, arguments}}, arguments an object."""
    if not isinstance(calls, list):
        raise InputError(f"{place}: {key} is {_kind(calls)}; expected a list of calls")
    found = []
    for number, call in enumerate(calls):
        at = f"{key}[{number}]"
        outer = isinstance(call, dict) and "function" in call
        function = call["function"] if outer else call
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(
                f"{place}: {at} is no call; expected an object with function: {{name, arguments}}"
            )
        arguments = function.get("arguments")
        # OpenAI's files have them as JSON text, and templates expect the object.
        if isinstance(arguments, str):
            arguments = _parsed(arguments, f"{at}.arguments", place)
        if not isinstance(arguments, dict | None):
            raise InputError(
                f"{place}: {at}.arguments is {_kind(arguments)}; expected an object of arguments"
            )
        rest = {name: value for name, value in call.items() if value is not None} if outer else {}
        made = {"type": "function"} | rest
        made["function"] = function | {"arguments": arguments or {}}
        _check_json(made, at, place)
        found.append(made)
    return found


def _with_system(
    row: Row, messages: list[dict[str, Any]], first: int
) -> tuple[list[dict[str, Any]], int]:
    """The conversation, with the row's 'system' as its first turn where it has one."""
    system = row.data.get("system")
    if not system:
        return messages, first
    _check_text(system, "'system'", row.place)
    if messages[0]["role"] == "system":
        raise InputError(f"{row.place}: has 'system' and a turn of it; leave out one of them")
    return [{"role": "system", "content": system}, *messages], first + bool(first)


def _tools(row: Row) -> list[Any] | None:
    tools = row.data.get("tools")
    # Tables keep them as JSON text, since every tool has other parameters.
    if isinstance(tools, str) and tools.strip():
        tools = _parsed(tools, "'tools'", row.place)
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(
            f"{row.place}: 'tools' is {_kind(tools)}; expected a list of objects, one a tool"
        )
    _check_json(tools, "'tools'", row.place)
    return tools


def _parsed(text: str, key: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: {key} is text that is not JSON: {error}") from None


def _check_json(value: Any, key: str, place: str) -> None:
    """Refuse values that no template can lay out: broken Unicode, and types unknown to JSON."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{place}: {key} holds half of a surrogate pair; expected Unicode text"
        ) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{place}: {key} is not what JSON can hold: {error}") from None


def _check_text(value: Any, key: str, place: str) -> None:
    if not isinstance(value, str):
        raise InputError(f"{place}: {key} is {_kind(value)}; expected text")
    _check_json(value, key, place)


def _kind(value: Any) -> str:
    """The type of a value, in words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, dict | list):
        return ("an object" if isinstance(value, dict) else "a list") if value else "empty"
    return "text" if isinstance(value, str) else f"of type {type(value).__name__}"
