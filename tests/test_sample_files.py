"""Samples in common forms and file types: they equal plain ones written by hand."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from families import CHAT_TEMPLATE, byte_tokenizer, word_tokenizer
from sensmerge import InputError, Recipe
from sensmerge.calibration import samples
from sensmerge.calibration.forms import Conversation, Pair, Text, form
from sensmerge.calibration.record import SampleFile, TaskRecord
from sensmerge.calibration.rows import Row, rows
from sensmerge.recipe import Sensitivity

QUESTION = "Mira has 3 boxes of 12 pencils and gives 5 away. How many are left?"
ANSWER = "There are 3*12 = <<3*12=36>>36 pencils.\n36 - 5 = <<36-5=31>>31 are left.\n#### 31"
TASK = "Write a function to find the last word of a line."
CODE = "def last_word(line):\n  return line.split()[-1]"
ALPACA_TEXT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nTranslate.\n\n### Input:\nGuten Tag\n\n### Response:\nGood day"
)
ALPACA_ALONE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nName a colour.\n\n### Response:\n"
)
ALPACA = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
WEATHER = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

CHATML = (
    "{% if tools %}<|tools|>{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls %}[{{ call.function.name }} "
    "{{ call.function.arguments | tojson }}]{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<s> {{ m['role'] }} {% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }} {% endgeneration %}</s> "
    "{% else %}{{ m['content'] }} </s> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)


def said(data: Any) -> Text | Pair | Conversation:
    return form(Row("file, line 1", data))


def conversation(data: Any) -> Conversation:
    found = said(data)
    assert isinstance(found, Conversation)
    return found


def turns(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


def scored_text(data: Any, template: str, tokenizer: Any = None) -> str:
    tokenizer = tokenizer or byte_tokenizer()
    tokenizer.chat_template = template
    sample = samples.encode(Row("line", data), tokenizer, 4096, "completion")
    return str(tokenizer.decode([sample.ids[place] for place in sample.scored]))


@pytest.mark.parametrize(
    ("data", "prompt", "completion"),
    [
        ({"prompt": "a", "completion": "b"}, "a", "b"),
        ({"prompt": "a", "response": "b", "prompt_id": "f00"}, "a", "b"),
        ({"question": QUESTION, "answer": ANSWER}, QUESTION, ANSWER),
        ({"task_id": 7, "text": TASK, "code": CODE, "test_list": ["assert"]}, TASK, CODE),
        ({"task_id": 7, "prompt": TASK, "code": CODE, "test_imports": []}, TASK, CODE),
        ({"type": "GSM_SV", "query": "a", "original_question": "c", "response": "b"}, "a", "b"),
        ({"problem": "a", "level": "Level 2", "solution": "b"}, "a", "b"),
        (ALPACA, ALPACA_TEXT.removesuffix("Good day"), "Good day"),
        (ALPACA | {"text": ALPACA_TEXT}, ALPACA_TEXT.removesuffix("Good day"), "Good day"),
        ({"instruction": "Name a colour.", "input": "", "output": "Red"}, ALPACA_ALONE, "Red"),
        ({"instruction": "Name a colour.", "input": None, "output": "Red"}, ALPACA_ALONE, "Red"),
        ({"instruction": "Name a colour.", "output": "{x}"}, ALPACA_ALONE, "{x}"),
        # A table of two forms has every column in each row.
        ({"prompt": "a", "completion": "b", "text": None, "messages": None}, "a", "b"),
    ],
)
def test_every_spelling_of_a_pair(data: dict[str, Any], prompt: str, completion: str) -> None:
    assert said(data) == Pair(prompt, completion)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"prompt": "a", "completion": "b", "text": "c"}, "'prompt + completion', 'text'"),
        ({"messages": turns(("assistant", "a")), "text": "c"}, "'messages', 'text'"),
        ({"prompt": "a", "completion": "b", "response": "c"}, "prompt + response'; leave only"),
        (ALPACA | {"text": "other"}, "'instruction + output', 'text'; leave only"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "(its keys: prompt, chosen, rejected)"),
        (ALPACA | {"input": 3}, "'input' is a number; expected text"),
        (ALPACA | {"history": [["a", "b"]]}, "'history' has no place beside instruction and"),
        ({"prompt": "a", "completion": "b", "system": "c"}, "'system' has no place"),
    ],
)
def test_what_fits_two_forms_or_none_is_refused_with_its_keys(
    data: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=rf"^file, line 1: .*{re.escape(words)}"):
        said(data)


def test_sharegpt_is_messages() -> None:
    spoken = [("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    data = {"id": "x_1", "conversations": [{"from": who, "value": what} for who, what in spoken]}
    plain = turns(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert said(data) == said({"messages": plain}) == Conversation(plain)
    with_system = conversation(data | {"system": "Be brief."})
    assert with_system.messages == [*turns(("system", "Be brief.")), *plain]
    beginning = [{"from": "system", "value": "s"}, *data["conversations"]]
    assert conversation({"conversations": beginning}).messages[0] == turns(("system", "s"))[0]
    with pytest.raises(InputError, match="has 'system' and a turn of it"):
        said({"conversations": beginning, "system": "Be brief."})
    with pytest.raises(InputError, match=r"conversations\[0\].from is 'bing'; expected one of hum"):
        said({"conversations": [{"from": "bing", "value": "a"}]})


def test_calls_of_tools_are_one_whatever_their_spelling() -> None:
    as_text = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    called = {"role": "assistant", "content": "", "tool_calls": [WEATHER]}
    for call in (WEATHER, {"type": "function", "function": as_text}, as_text):
        for content in ({"content": None}, {"content": ""}, {}):
            turn: dict[str, Any] = {"role": "assistant", "tool_calls": [call], **content}
            assert conversation({"messages": [turn]}).messages == [called]
    spoken = [
        {"from": "human", "value": "Oslo?"},
        {"from": "function_call", "value": json.dumps(WEATHER["function"])},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "It rains."},
    ]
    found = conversation({"conversations": spoken, "tools": json.dumps([TOOL])})
    assert [turn["role"] for turn in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.messages[1] == called
    assert found.tools == [TOOL]


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"tool_calls": [{"function": {}}]}, r"tool_calls\[0\] is no call"),
        ({"tool_calls": "x"}, "tool_calls is text; expected a list of calls"),
        ({"tool_calls": [{"name": "f", "arguments": "{"}]}, "arguments is text that is not JSON"),
        ({"tool_calls": [{"name": "f", "arguments": [1]}]}, "expected an object of arguments"),
        ({"content": [{"type": "image_url"}]}, r"content\[0\] is no text; expected parts"),
        ({"content": [{"type": "text"}]}, r"content\[0\].text is null; expected text"),
        ({"content": "a", "from": "gpt", "value": "b"}, r"messages\[0\] is no turn"),
    ],
)
def test_turns_that_cannot_be_laid_out(turn: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        said({"messages": [{"role": "assistant"} | turn]})


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    found = conversation({"messages": [{"role": "assistant", "content": parts}]})
    assert found.messages == turns(("assistant", "a b"))


def test_tools_that_are_none() -> None:
    messages = turns(("assistant", "a"))
    empty: list[Any] = [None, "", [], "[]"]
    for tools in empty:
        assert conversation({"messages": messages, "tools": tools}).tools is None
    with pytest.raises(InputError, match="'tools' is text that is not JSON"):
        said({"messages": messages, "tools": "weather"})
    with pytest.raises(InputError, match="'tools' is an object; expected a list"):
        said({"messages": messages, "tools": TOOL})


def test_only_the_assistant_is_scored_among_tools_and_developers() -> None:
    messages = [
        *turns(("developer", "Be brief."), ("user", "Oslo?")),
        {"role": "assistant", "tool_calls": [WEATHER]},
        {"role": "tool", "content": "rain", "tool_call_id": "1"},
        *turns(("assistant", "It rains."), ("user", "Thanks")),
    ]
    data = {"messages": messages, "tools": [TOOL]}
    assert scored_text(data, CHATML) == (
        '[weather {"city": "Oslo"}]<|end|>\nIt rains.<|end|>\n'
    )  # fmt: skip
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    ids = samples.encode(Row("line", data), tokenizer, 4096, "completion").ids
    assert tokenizer.decode(ids).startswith('<|tools|>[{"type": "function"')


def test_a_prompt_of_turns_is_not_scored() -> None:
    # TRL's conversational form.
    prompt = turns(("user", "a"), ("assistant", "no"), ("user", "b"))
    data = {"prompt": prompt, "completion": turns(("assistant", "yes"))}
    assert scored_text(data, CHATML) == "yes<|end|>\n"
    assert scored_text(data | {"system": "s"}, CHATML) == "yes<|end|>\n"
    assert scored_text(data, MARKED).strip() == "yes"
    with pytest.raises(InputError, match="'completion' has no turn of the assistant"):
        said({"prompt": prompt, "completion": turns(("user", "b"))})


def test_a_template_that_marks_the_assistant_is_taken_at_its_word() -> None:
    messages = turns(("user", "w1"), ("assistant", "w2 w3"), ("user", "w4"), ("assistant", "w5"))
    # Without the mark the end of a turn is the assistant's too.
    assert scored_text({"messages": messages}, CHAT_TEMPLATE, word_tokenizer()) == (
        "w2 w3 </s> w5 </s>"
    )
    assert scored_text({"messages": messages}, MARKED, word_tokenizer()) == "w2 w3 w5"
    assert scored_text({"messages": messages}, MARKED).split() == ["w2", "w3", "w5"]
    # It may rewrite earlier turns: what it marks is known all the same.
    rewriting = "w9 {{ messages | length }} " + MARKED
    assert scored_text({"messages": messages}, rewriting, word_tokenizer()) == "w2 w3 w5"
    nothing = "{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}" + (
        "{% generation %}{% endgeneration %}{% endif %}"
    )
    with pytest.raises(InputError, match="line: the chat template marks no words"):
        scored_text({"messages": messages}, nothing)


MADE = [{"question": QUESTION, "answer": f"{ANSWER} ({place})"} for place in range(5)]


def lines(data: list[Any]) -> bytes:
    return "\n".join(json.dumps(row) for row in data).encode()


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.jsonl", lines(MADE), "line"),
        ("a.jsonl.gz", gzip.compress(lines(MADE)), "line"),
        ("A.JSON", json.dumps(MADE, indent=1).encode("utf-8-sig"), "row"),
        ("a.json.gz", gzip.compress(json.dumps(MADE).encode()), "row"),
        # Many .json files hold JSON lines.
        ("a.json", lines(MADE), "line"),
    ],
)
def test_every_kind_of_file_has_the_same_rows(
    tmp_path: Path, name: str, content: bytes, word: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert list(rows(path)) == [
        (f"{path}, {word} {number}", row) for number, row in enumerate(MADE, start=1)
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"{}", "is no kind of file that samples are read from; known: .jsonl, .json"),
        ("a.pkl", b"\x80", "is no kind of file"),
        ("a.json", b"[\n{},\n{]", "line 3: not JSON: .*; expected a list of objects"),
        ("a.json", b"[" * 100_000, "not JSON: .*expected a list of objects"),
        ("a.json", b'{\n"data": []\n}', "line 1: not JSON: .* in a file named .json a list"),
        ("a.json", b"[]", "holds no samples"),
        ("a.json", b'[{"text": "a"}, 3]', "row 2: is a number; expected an object"),
        ("a.jsonl.gz", b"{}", "is not a whole gzip file: .*; fetch it again"),
        ("a.jsonl.gz", gzip.compress(lines(MADE))[:-9], "is not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b"\xff", mtime=0), "is not UTF-8 text"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as refused:
        samples.read(path)
    assert str(refused.value).startswith(str(path))


def test_a_folder_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Is a directory; name a file in it, or a list of them"):
        samples.read(tmp_path)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"a.parquet: .*pip install 'sensmerge\[parquet\]', or"):
        samples.read(tmp_path / "a.parquet")


@pytest.mark.parametrize("compression", ["snappy", "gzip", "zstd", "none"])
def test_parquet_is_read_with_nested_columns(tmp_path: Path, compression: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    data: list[dict[str, Any]] = [
        {"messages": [*turns(("user", "a")), {"role": "assistant", "tool_calls": [WEATHER]}]},
        {"messages": turns(("user", "c"), ("assistant", "d"))},
        {"prompt": "e", "completion": "f"},
    ]
    columns = ("messages", "prompt", "completion")
    table = pyarrow.Table.from_pylist([{key: row.get(key) for key in columns} for row in data])
    parquet.write_table(table, path, compression=compression, row_group_size=1)
    found = samples.read(path)
    assert [row.place for row in found] == [f"{path}, row {number}" for number in (1, 2, 3)]
    assert [form(row) for row in found] == [said(row) for row in data]


def test_parquet_that_is_none(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    with pytest.raises(InputError, match="No such file"):
        samples.read(path)
    for content in (b"", b"PAR1", b"no parquet at all, however long it is PAR1"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as Parquet behind row 0"):
            samples.read(path)
    parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    with pytest.raises(InputError, match="row 2: 'text' is null; expected text"):
        samples.read(path)
    parquet.write_table(pyarrow.table({"text": [b"a"]}), path)
    with pytest.raises(InputError, match="row 1: 'text' is of type bytes; expected text"):
        samples.read(path)
    twice = pyarrow.Table.from_arrays([["a"], ["b"]], names=["text", "text"])
    parquet.write_table(twice, path)
    with pytest.raises(InputError, match="two of its columns have one name"):
        samples.read(path)


def recipe(folder: Path, calibration: Any) -> Recipe:
    models = [{"model": "e", "calibration": calibration}]
    data = {"merge_method": "task_arithmetic", "base_model": "b", "models": models}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(data))
    return Recipe.load(path)


def test_rows_of_several_files_are_drawn_together(tmp_path: Path) -> None:
    texts = [{"text": f"w{place}"} for place in range(30)]
    (tmp_path / "a.jsonl").write_bytes(lines(texts[:20]))
    (tmp_path / "b.json").write_text(json.dumps(texts[20:]))
    (tmp_path / "whole.jsonl").write_bytes(lines(texts))
    options = Sensitivity(samples=8, seed=3)
    whole = samples.task(recipe(tmp_path, "whole.jsonl"), 0, word_tokenizer(), options)
    files = ["a.jsonl", "b.json"]
    for calibration in (files, {"path": files}, {"path": files, "samples": 8}):
        found = samples.task(recipe(tmp_path, calibration), 0, word_tokenizer(), options)
        assert [one.ids for one in found.samples] == [one.ids for one in whole.samples]
        assert found.record.token_ids == whole.record.token_ids
        assert found.record.drawn == whole.record.drawn == samples.draw(30, 8, 3)
        assert (found.record.path, found.record.rows) == ("a.jsonl, b.json", 30)
        assert found.record.files == [SampleFile("a.jsonl", 20), SampleFile("b.json", 10)]
    # The samples drawn depend on the files' order, so that the record keeps it.
    turned = samples.task(recipe(tmp_path, files[::-1]), 0, word_tokenizer(), options)
    assert turned.record.token_ids != whole.record.token_ids


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ([], "expected a file of samples, or a list of them"),
        (["a.jsonl", 3], "expected a file of samples, or a list of them"),
        ({"path": ""}, "expected a file of samples, or a list of them"),
        ({"path": ["a.jsonl", "b.jsonl", "a.jsonl"]}, "names 'a.jsonl' twice"),
        ({"files": ["a.jsonl"]}, "path: is missing"),
    ],
)
def test_a_recipe_names_files_once(tmp_path: Path, calibration: Any, words: str) -> None:
    with pytest.raises(InputError, match=rf"models\[0\].calibration.*{words}"):
        recipe(tmp_path, calibration)


def test_records_made_before_there_were_several_files_are_read() -> None:
    old = {
        "path": "t.jsonl", "rows": 3, "drawn": [0, 2], "used": 2, "left_out": 0,
        "scored_tokens": 9, "token_ids": "sha256:0", "max_length": 512,
    }  # fmt: skip
    record = TypeAdapter(TaskRecord).validate_json(json.dumps(old), strict=True)
    assert record == TaskRecord("t.jsonl", 3, [0, 2], 2, 0, 9, "sha256:0", 512, files=[])
