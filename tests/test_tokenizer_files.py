"""The tokenizer beside merged weights: as transformers loads it, and how it encodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from families import CHAT_TEMPLATE, Family, add_tokens, byte_tokenizer, llama_family, word_tokenizer
from sensmerge import Recipe
from sensmerge.merging.templates import most_common, template_of
from sensmerge.merging.tokenizer import merged_tokenizer
from sensmerge.models import open_models
from sensmerge.recipe.tokenizer import known_templates
from test_vocabulary import merged_of, unigram, word_pieces

TEXTS = [
    "hello world w1 w2",
    "w3 <|im_start|>w4<|im_end|> w5",
    "times <tool> 7 world",
    "many\nlines  and <nothing>",
]
REAL: dict[str, Callable[[], Any]] = {
    "words": word_tokenizer,
    "byte-level BPE": byte_tokenizer,
    "unigram": unigram,
    "word pieces": word_pieces,
}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]


@pytest.fixture(scope="module", params=REAL)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family with a tokenizer of some kind; both experts have tokens of their own."""
    made = REAL[request.param]()
    folder = tmp_path_factory.mktemp("family")
    family = llama_family(folder, experts=2, layers=1, tokenizer=made)
    add_tokens(folder / "e0", "<|im_start|>", "<|im_end|>", "world")
    add_tokens(folder / "e1", "<tool>", "<|im_end|>")
    return family


def encoded(folder: Path) -> list[list[str]]:
    loaded: Any = AutoTokenizer.from_pretrained(folder)
    return [loaded.convert_ids_to_tokens(loaded(text)["input_ids"]) for text in TEXTS]


@pytest.mark.parametrize("source", ["base", "e0", "e1"])
def test_a_model_s_tokenizer_is_copied_byte_for_byte(
    family: Family, tmp_path: Path, source: str
) -> None:
    merged_of(family, tmp_path / "out", "ties", ["e0", "e1"], tokenizer_source=source)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        theirs = family.folder / source / name
        assert (tmp_path / "out" / name).exists() == theirs.exists()
        if theirs.exists():
            assert (tmp_path / "out" / name).read_bytes() == theirs.read_bytes()
    assert encoded(tmp_path / "out") == encoded(family.folder / source)


def test_a_union_has_the_tokens_of_all_and_splits_text_as_the_base(
    family: Family, tmp_path: Path
) -> None:
    merged_of(family, tmp_path / "out", "ties", ["e0", "e1"], tokenizer_source="union")
    base, e0, e1, union = (
        AutoTokenizer.from_pretrained(folder)
        for folder in (*(family.folder / name for name in ("base", "e0", "e1")), tmp_path / "out")
    )
    size = len(base.get_vocab())
    assert {token: union.get_vocab()[token] for token in base.get_vocab()} == base.get_vocab()
    added = ["<|im_start|>", "<|im_end|>", "world", "<tool>"]
    added = [token for token in added if token not in base.get_vocab()]
    assert [union.get_vocab()[token] for token in added] == list(range(size, size + len(added)))
    assert len(union.get_vocab()) == size + len(added)
    # The same as if all had been added to the base's by its own means.
    base.add_tokens(list(e0.added_tokens_decoder.values()))
    base.add_tokens(list(e1.added_tokens_decoder.values()))
    assert [union(text)["input_ids"] for text in TEXTS] == [
        base(text)["input_ids"] for text in TEXTS
    ]


def test_special_tokens_of_one_expert_stay_special(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=1, layers=1, tokenizer=byte_tokenizer())
    add_tokens(tmp_path / "e0", "<|turn|>")
    path = tmp_path / "e0" / "tokenizer.json"
    data = json.loads(path.read_text())
    data["added_tokens"][-1] |= {"special": True, "normalized": False}
    path.write_text(json.dumps(data))
    merged_of(family, tmp_path / "out", "ties", ["e0"], tokenizer_source="union")
    union = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = union("w1<|turn|>w2")["input_ids"]
    assert union.get_vocab()["<|turn|>"] in ids
    assert "<|turn|>" not in union.decode(ids, skip_special_tokens=True)


def test_ordinary_tokens_of_another_vocabulary_are_added(tmp_path: Path) -> None:
    from tokenizers import AddedToken

    family = llama_family(tmp_path, experts=1, layers=1)
    path = tmp_path / "e0" / "tokenizer.json"
    data = json.loads(path.read_text())
    ids = data["model"]["vocab"]
    ids["w1000"] = ids.pop("w96")
    path.write_text(json.dumps(data))
    result = merged_of(family, tmp_path / "out", "ties", ["e0"], tokenizer_source="union")
    union = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert union.get_vocab()["w1000"] == 100
    assert union.added_tokens_decoder[100] == AddedToken("w1000", normalized=True, special=False)
    assert any(
        note.startswith("1 of other models' ordinary tokens") and "lost" in note
        for note in result.notes
    )


def test_tokenizers_of_older_files_are_edited_too(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=1, layers=1, tokenizer=byte_tokenizer())
    for name in ("base", "e0"):
        data = json.loads((tmp_path / name / "tokenizer.json").read_text())
        (tmp_path / name / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
        merges = "\n".join(" ".join(pair) for pair in data["model"]["merges"])
        (tmp_path / name / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        (tmp_path / name / "tokenizer.json").unlink()
        config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>"}
        config |= {"unk_token": "<unk>", "chat_template": CHAT_TEMPLATE}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config))
    add_tokens(tmp_path / "e0", "<|im_start|>")
    merged_of(family, tmp_path / "out", "ties", ["e0"], tokenizer_source="union")
    union = AutoTokenizer.from_pretrained(tmp_path / "out")
    base = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert union.get_vocab() == base.get_vocab() | {"<|im_start|>": len(base.get_vocab())}
    assert union("w1<|im_start|>")["input_ids"][-1] == len(base.get_vocab())


RENDERED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
    "<|im_start|>assistant\nTwo.<|im_end|>\n<|im_start|>user\nThree?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nTwo.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nThree?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\nOne? [/INST] Two.</s>[INST] Three? [/INST]",
    "alpaca": "Be brief.\n\n### Instruction:\nOne?\n\n### Response:\nTwo.\n\n"
    "### Instruction:\nThree?\n\n### Response:\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]One?\n[|assistant|]Two.[|endofturn|]\n"
    "[|user|]Three?\n[|assistant|]",
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return llama_family(tmp_path_factory.mktemp("words"), experts=2, layers=1)


def with_template(folder: Path, template: str | None) -> None:
    """Give a model another chat template, or none."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)


def rendered(folder: Path, messages: Any = MESSAGES, *, prompt: bool = True) -> str:
    loaded: Any = AutoTokenizer.from_pretrained(folder)
    text: str = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    return text


def test_every_known_template_is_compared() -> None:
    assert sorted(RENDERED) == known_templates()


@pytest.mark.parametrize("name", RENDERED)
def test_a_known_template_lays_out_a_conversation(words: Family, tmp_path: Path, name: str) -> None:
    result = merged_of(words, tmp_path / "out", "ties", ["e0"], chat_template=name)
    assert rendered(tmp_path / "out") == RENDERED[name]
    told = [note for note in result.notes if "does not have as one token" in note]
    assert len(told) == (name in ("chatml", "llama3"))


def test_the_templates_of_short_conversations(words: Family, tmp_path: Path) -> None:
    one = [{"role": "user", "content": " Hi. "}]
    expected = {
        "alpaca": "### Instruction:\nHi.\n\n### Response:\n",
        "exaone": "[|system|][|endofturn|]\n[|user|] Hi. \n[|assistant|]",
        "mistral": "<s>[INST]  Hi.  [/INST]",
    }
    for name, text in expected.items():
        out = tmp_path / name
        merged_of(words, out, "ties", ["e0"], chat_template=name)
        assert rendered(out, one) == text
    answered = [*one, {"role": "assistant", "content": "Ho."}]
    assert rendered(tmp_path / "alpaca", answered, prompt=False).endswith("### Response:\nHo.")
    with pytest.raises(Exception, match="in turns"):
        rendered(tmp_path / "mistral", [*one, *one])


def test_a_template_in_the_recipe(words: Family, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }};{% endfor %}"
    merged_of(words, tmp_path / "out", "ties", ["e0"], chat_template=template)
    assert rendered(tmp_path / "out") == "Be brief.;One?;Two.;Three?;"


@pytest.mark.parametrize(
    ("templates", "expected"),
    [
        ({"base": None, "e0": "A {{ 1 }}", "e1": None}, "A 1"),
        ({"base": "B {{ 2 }}", "e0": "A {{ 1 }}", "e1": " A {{ 1 }}\n"}, "A 1"),
        ({"base": "B {{ 2 }}", "e0": "A {{ 1 }}", "e1": "C {{ 3 }}"}, "B 2"),
    ],
)
def test_auto_takes_the_template_that_most_models_have(
    words: Family, tmp_path: Path, templates: dict[str, str | None], expected: str
) -> None:
    family = words.copy(tmp_path)
    for name, template in templates.items():
        with_template(tmp_path / name, template)
    merged_of(family, tmp_path / "out", "ties", ["e0", "e1"], chat_template="auto")
    assert rendered(tmp_path / "out") == expected


def test_auto_without_any_template_adds_none(words: Family, tmp_path: Path) -> None:
    family = words.copy(tmp_path)
    for name in ("base", "e0", "e1"):
        with_template(tmp_path / name, None)
    merged_of(family, tmp_path / "out", "ties", ["e0", "e1"], chat_template="auto")
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    assert most_common([tmp_path / "base", tmp_path / "nowhere"]) is None


def test_templates_in_older_places_are_found_and_replaced(words: Family, tmp_path: Path) -> None:
    family = words.copy(tmp_path)
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D {{ 4 }}"}]
    for name, said in (("base", "O {{ 5 }}"), ("e0", named)):
        with_template(tmp_path / name, None)
        path = tmp_path / name / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": said}))
    with_template(tmp_path / "e1", None)
    (tmp_path / "e1" / "chat_template.json").write_text('{"chat_template": "D {{ 4 }}"}')
    found = [template_of(tmp_path / name) for name in ("base", "e0", "e1")]
    assert found == ["O {{ 5 }}", "D {{ 4 }}", "D {{ 4 }}"]
    merged_of(family, tmp_path / "out", "ties", ["e0", "e1"], chat_template="auto")
    assert rendered(tmp_path / "out") == "D 4"
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert "chat_template" not in config


def test_a_model_without_a_tokenizer_gets_none(words: Family, tmp_path: Path) -> None:
    family = words.copy(tmp_path)
    for file in [*(tmp_path / "base").glob("tokenizer*"), *(tmp_path / "base").glob("chat*")]:
        file.unlink()
    recipe = Recipe.from_dict(family.recipe(chat_template="chatml"), tmp_path)
    found = merged_tokenizer(recipe, open_models(recipe))
    assert (found.copies, found.texts) == ([], [])
    assert "has no tokenizer files" in found.notes[0]


def test_ids_in_configs_follow_their_tokens(words: Family, tmp_path: Path) -> None:
    family = words.copy(tmp_path)
    path = tmp_path / "e0" / "tokenizer.json"
    data = json.loads(path.read_text())
    ids = data["model"]["vocab"]
    ids["</s>"], ids["w1"] = ids["w1"], ids["</s>"]
    data["added_tokens"] = [
        {**token, "id": ids[token["content"]]} for token in data["added_tokens"]
    ]
    path.write_text(json.dumps(data))
    generation = tmp_path / "base" / "generation_config.json"
    generation.write_text('{"eos_token_id": [2, 5], "bos_token_id": 1, "top_p": 0.5}')
    merged_of(family, tmp_path / "out", "ties", ["e0"], tokenizer_source="e0")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, ids["</s>"])
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written == {"eos_token_id": [ids["</s>"], 5], "bos_token_id": 1, "top_p": 0.5}
