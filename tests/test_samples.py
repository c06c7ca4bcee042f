"""Which tokens a sample has, and which of them are scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from families import word_tokenizer
from sensmerge import InputError
from sensmerge.calibration.samples import Row, Sample, draw, encode, load

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


def test_a_draw_is_seeded_without_replacement_and_in_order() -> None:
    drawn = draw(100, 10, seed=1)
    assert drawn == sorted(set(drawn)) == draw(100, 10, seed=1)
    assert len(drawn) == 10
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
