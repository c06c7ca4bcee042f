"""The tokens of a sample, and those that are scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from families import byte_tokenizer, word_tokenizer
from sensmerge import InputError
from sensmerge.calibration.rows import Row
from sensmerge.calibration.samples import Sample, draw, encode, load, read

BOS, EOS = 1, 2


def ids(*words: int) -> list[int]:
    return [3 + word for word in words]


def encoded(
    data: dict[str, Any], *, max_length: int = 100, positions: str = "completion", eos: bool = True
) -> Sample:
    return encode(Row("line", data), word_tokenizer(eos=eos), max_length, positions)


PAIR = {"prompt": "w1 w2", "completion": "w3 w4"}


def test_a_pair_is_prompt_completion_and_eos() -> None:
    sample = encoded(PAIR)
    assert sample.ids == [BOS, *ids(1, 2), *ids(3, 4), EOS]
    assert sample.scored == [3, 4, 5]
    assert sample.logit_positions("completion") == [2, 3, 4]
    assert sample.logit_positions("all") == [0, 1, 2, 3, 4, 5]


def test_without_an_eos_nothing_is_added() -> None:
    assert encoded(PAIR, eos=False).ids == [BOS, *ids(1, 2, 3, 4)]


def test_an_empty_prompt_without_bos_leaves_the_first_token_unpredicted() -> None:
    row = Row("line", {"prompt": "", "completion": "w3 w4"})
    sample = encode(row, word_tokenizer(bos=False), 100, "completion")
    assert sample.ids == [*ids(3, 4), EOS]
    assert sample.scored == [1, 2]
    assert encode(row, word_tokenizer(), 100, "completion").scored == [1, 2, 3]


@pytest.mark.parametrize("data", [PAIR | {"completion": " "}, {"text": " "}])
def test_text_that_gives_no_token_is_refused(data: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"^line: the expert's tokenizer makes no token of '"):
        encoded(data)


def test_nothing_is_put_between_prompt_and_completion() -> None:
    tokenizer = byte_tokenizer()
    joined = encode(Row("line", {"text": "hello world"}), tokenizer, 100, "completion")
    row = Row("line", {"prompt": "hello", "completion": " world"})
    apart = encode(row, tokenizer, 100, "completion")
    assert apart.ids == joined.ids
    assert tokenizer.decode([apart.ids[place] for place in apart.scored]) == " world</s>"


def test_the_tokenizers_own_limit_is_passed_over_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 4
    sample = encode(Row("line", {"text": "w1 " * 20}), tokenizer, 100, "completion")
    assert len(sample.ids) == 22
    assert not caplog.records


def test_text_scores_every_token_but_the_first() -> None:
    sample = encoded({"text": "w1 w2"})
    assert sample.ids == [BOS, *ids(1, 2), EOS]
    assert sample.scored == [1, 2, 3]


def test_positions_all_scores_the_prompt_too() -> None:
    assert encoded(PAIR, positions="all").scored == [1, 2, 3, 4, 5]


def test_the_right_end_is_cut_off() -> None:
    sample = encoded(PAIR, max_length=4)
    assert sample.ids == [BOS, *ids(1, 2, 3)]
    assert sample.scored == [3]
    assert encoded(PAIR, max_length=3).scored == []


def test_messages_score_the_assistants_turns() -> None:
    turns = [("user", "w1"), ("assistant", "w2 w3"), ("user", "w4"), ("assistant", "w5")]
    messages = [{"role": role, "content": content} for role, content in turns]
    sample = encoded({"messages": messages})
    # <s> user w1 </s>  <s> assistant | w2 w3 </s>  <s> user w4 </s>  <s> assistant | w5 </s>
    assert [sample.ids[place] for place in sample.scored] == [*ids(2, 3), EOS, *ids(5), EOS]
    assert sample.scored == [6, 7, 8, 15, 16]


def test_messages_need_a_template_that_keeps_earlier_turns() -> None:
    tokenizer = word_tokenizer()
    row = Row("line 7", {"messages": [{"role": "assistant", "content": "w1"}]})
    tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"line 7: has messages, but .* no chat template"):
        encode(row, tokenizer, 10, "completion")
    tokenizer.chat_template = "w{{ messages | length }} {{ messages[-1]['content'] }}"
    with pytest.raises(InputError, match="line 7: the chat template rewrites"):
        encode(
            Row("line 7", {"messages": [{"role": "user", "content": "w1"}, *row.data["messages"]]}),
            tokenizer,
            10,
            "completion",
        )


def test_a_token_over_the_edge_of_a_turn_is_the_assistants() -> None:
    # The generation prompt ends in a space, and the tokenizer gives spaces to the next word.
    tokenizer = byte_tokenizer()
    messages = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "hello world"},
        {"role": "user", "content": "w2"},
    ]
    sample = encode(Row("line", {"messages": messages}), tokenizer, 100, "completion")
    assert tokenizer.decode(sample.ids) == (
        "<s> user w1 </s> <s> assistant hello world </s> <s> user w2 </s> "
    )
    # The template writes a space behind </s>, so that is the turn's too.
    scored = tokenizer.decode([sample.ids[place] for place in sample.scored])
    assert scored == " hello world </s> "


def test_a_turn_that_the_template_refuses_is_named() -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    row = Row("t.jsonl, line 3", {"messages": [{"role": "assistant", "content": "w1"}]})
    with pytest.raises(InputError, match="line 3: the chat template refuses it: no such role"):
        encode(row, tokenizer, 10, "completion")


def test_a_draw_is_seeded_without_replacement_and_in_order() -> None:
    drawn = draw(100, 10, seed=1)
    assert drawn == sorted(set(drawn)) == draw(100, 10, seed=1)
    # The same with every Python: files measured years apart can be compared.
    assert drawn == [8, 15, 17, 32, 57, 60, 63, 72, 83, 97]
    assert drawn != draw(100, 10, seed=2)
    assert draw(7, 10, seed=1) == draw(10, 10, seed=1)[:7] == list(range(7))


def test_samples_without_a_scored_token_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    long = {"prompt": " ".join(["w1"] * 9), "completion": "w2"}
    path.write_text("\n".join(json.dumps(line) for line in [long, PAIR, long]))

    def loaded(max_length: int) -> Any:
        return load(
            path, "s.jsonl", word_tokenizer(), count=10, seed=0, max_length=max_length,
            positions="completion",
        )  # fmt: skip

    record = loaded(6).record
    assert (record.rows, record.used, record.left_out, record.scored_tokens) == (3, 1, 2, 3)
    assert record.drawn == [0, 1, 2]
    assert record.token_ids != loaded(5).record.token_ids
    with pytest.raises(InputError, match="no sample has a scored token within max_length 3"):
        loaded(3)


USER = {"role": "user", "content": "w1"}

WRONG = [
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("[1]", "is a list; expected an object with messages, conversations"),
    ("3", "is a number; expected an object"),
    ("null", "is null; expected an object"),
    ("{}", "fits no form (its keys: none); expected an object"),
    ('{"title": "w1", "id": 3}', "fits no form (its keys: title, id); expected an object"),
    ('{"question": "w1"}', "has no 'answer' beside 'question' (its keys: question); expected"),
    ('{"prompt": "w1"}', "has no 'completion' beside 'prompt'"),
    ('{"completion": "w1"}', "has no 'prompt' beside 'completion'"),
    ('{"prompt": 1, "completion": "w1"}', "'prompt' is a number; expected text"),
    ('{"prompt": "w1", "completion": null}', "'completion' is null; expected text"),
    ('{"prompt": "w1", "completion": ""}', "'completion' is empty; expected text to score"),
    ('{"text": ""}', "'text' is empty; expected text to score"),
    ('{"text": ["w1"]}', "'text' is a list; expected text"),
    ('{"text": "\\ud800"}', "'text' holds half of a surrogate pair"),
    ('{"messages": "w1"}', "'messages' is text; expected a list of turns"),
    ('{"messages": []}', "'messages' is empty; expected a list of turns"),
    ('{"messages": ["w1"]}', "messages[0] is no turn; expected an object with role and content"),
    ('{"messages": [{"role": "user"}]}', "messages[0] is no turn"),
    (
        '{"messages": [{"role": "assistant", "content": null}]}',
        "messages[0].content is null; expected text",
    ),
    (json.dumps({"messages": [USER]}), "has no turn of the assistant"),
]


@pytest.mark.parametrize(("line", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_line_that_is_no_sample_is_refused_by_number(
    tmp_path: Path, line: str, said: str
) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(f"{json.dumps(PAIR)}\n\n{line}\n")
    with pytest.raises(InputError) as refused:
        read(path)
    assert f"{path}, line 3: " in str(refused.value)
    assert said in str(refused.value)


def test_files_without_samples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with pytest.raises(InputError, match="No such file"):
        read(path)
    with pytest.raises(InputError, match="Is a directory"):
        read(tmp_path)
    path.write_text(" \n\n")
    with pytest.raises(InputError, match="holds no samples; expected an object"):
        read(path)
    path.write_bytes(b'{"text": "\xff"}')
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read(path)


def test_blank_lines_other_keys_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    # A Unicode line separator within a text does not end the line.
    rows = [PAIR | {"source": [1, 2]}, {"text": "w1\u2028w2"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\ufeff" + "\r\n\r\n".join(lines), encoding="utf-8", newline="")
    assert [row.data for row in read(path)] == rows
    assert read(path)[1].place == f"{path}, line 3"
