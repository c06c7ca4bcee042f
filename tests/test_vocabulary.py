"""Tokenizers with more tokens than there are rows, and ids that models gave to different tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import sensmerge
from families import Family, add_tokens, llama_family
from sensmerge import InputError, Recipe, _core
from sensmerge.models.vocabulary import check

ROWS = 10
VOCABULARY = {f"w{place}": place for place in range(ROWS)}


def model(folder: Path, rows: int = ROWS, **files: Any) -> Path:
    """A model of one embedding, with JSON files beside it."""
    folder.mkdir(parents=True)
    name = "model.embed_tokens.weight"
    save_file({name: torch.zeros(rows, 2)}, folder / "model.safetensors")
    for file, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{file}.json").write_text(text)
    return folder


def tokenizer(vocabulary: Any = VOCABULARY, **added: int) -> dict[str, Any]:
    listed = [{"id": place, "content": token} for token, place in added.items()]
    return {"model": {"vocab": vocabulary}, "added_tokens": listed}


def decoder(**added: int) -> dict[str, Any]:
    return {"added_tokens_decoder": {str(i): {"content": token} for token, i in added.items()}}


FITS: list[dict[str, Any]] = [
    {},
    {"tokenizer": tokenizer()},
    {"tokenizer": tokenizer([[token, 0.0] for token in VOCABULARY])},
    {"vocab": VOCABULARY},
    {"tokenizer": tokenizer(), "tokenizer_config": decoder(w9=9), "vocab": {"other": 99}},
    {"tokenizer": "no JSON", "added_tokens": [], "tokenizer_config": []},
    {"tokenizer": {"model": None, "added_tokens": {}}, "added_tokens": {"odd": None}},
]
DOES_NOT_FIT: list[dict[str, Any]] = [
    {"tokenizer": tokenizer(im_start=10, im_end=11)},
    {"tokenizer": tokenizer(VOCABULARY | {"a": 10, "b": 11})},
    {"tokenizer": tokenizer([[str(place), 0.0] for place in range(12)])},
    {"tokenizer": tokenizer(), "added_tokens": {"im_end": 11}},
    {"tokenizer": tokenizer(), "tokenizer_config": decoder(im_end=11)},
    {"vocab": VOCABULARY | {"b": 11}},
]


@pytest.mark.parametrize("files", FITS)
def test_a_tokenizer_that_fits(tmp_path: Path, files: dict[str, Any]) -> None:
    base, other = model(tmp_path / "base"), model(tmp_path / "other", **files)
    assert check(base, other, []) == (None, [])


@pytest.mark.parametrize("files", DOES_NOT_FIT)
def test_a_tokenizer_with_more_tokens_than_rows(tmp_path: Path, files: dict[str, Any]) -> None:
    base, other = model(tmp_path / "base"), model(tmp_path / "other", **files)
    refusal, notes = check(base, other, [])
    assert refusal is not None
    assert refusal.startswith(f"tokenizer_source: the tokenizer of {other} has ids up to 11, ")
    assert f"{base}'s, {ROWS} rows" in refusal
    assert refusal.endswith("use tokenizer_source: base")
    assert notes == []
    # The base that is so itself is what it was.
    own = model(tmp_path / "own", **files)
    refusal, notes = check(own, own, [])
    assert refusal is None
    assert len(notes) == 1
    assert "has ids up to 11 and its input embedding 10 rows" in notes[0]


def test_a_model_without_an_embedding_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    save_file({"a.w": torch.zeros(3, 2)}, tmp_path / "base" / "model.safetensors")
    other = model(tmp_path / "other", tokenizer=tokenizer())
    assert check(tmp_path / "base", other, []) == (None, [])


def test_ids_that_two_models_gave_to_different_tokens(tmp_path: Path) -> None:
    base = model(tmp_path / "base", tokenizer=tokenizer(pad=8))
    chat = model(tmp_path / "chat", tokenizer=tokenizer(pad=8, im_start=10, im_end=11))
    tool = model(tmp_path / "tool", tokenizer=tokenizer(), tokenizer_config=decoder(call=10, pad=8))
    same = model(tmp_path / "same", added_tokens={"im_start": 10, "answer": 12})
    other = model(tmp_path / "other", tokenizer=tokenizer(unused=8, think=10, answer=11))
    named = [(path.name, path) for path in (base, chat, tool, same, other)]
    refusal, notes = check(base, base, named)
    assert refusal is None
    assert notes == [
        "chat and tool: token 10 is 'im_start' in the first and 'call' in the second; their rows "
        "are merged as if they were one token's",
        "base and other: token 8 is 'pad' in the first and 'unused' in the second; their rows are "
        "merged as if they were one token's",
        "chat and other: token 10 is 'im_start' in the first and 'think' in the second, and so "
        "on for 1 more; their rows are merged as if they were one token's",
    ]


def test_the_merge_refuses_it_and_what_it_writes_runs(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=2, layers=1)
    add_tokens(tmp_path / "e0", "<|im_start|>", "<|im_end|>")
    add_tokens(tmp_path / "e1", "<tool>")

    def merged(source: str) -> sensmerge.MergeResult:
        recipe = Recipe.from_dict(family.recipe(tokenizer_source=source), folder=tmp_path)
        return sensmerge.merge(recipe, tmp_path / f"out-{source}", progress=False, sync=False)

    with pytest.raises(InputError, match=r"ids up to 101, and .* 100 rows"):
        merged("e0")
    assert not (tmp_path / "out-e0").exists()
    notes = merged("base").notes
    assert any("token 100 is '<|im_start|>' in the first and '<tool>' in" in note for note in notes)
    ids = AutoTokenizer.from_pretrained(tmp_path / "out-base")("w1 <|im_start|>")["input_ids"]
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out-base")
    model(torch.tensor([ids]))


def test_the_base_of_a_family_says_nothing(family: Family) -> None:
    folders = [(name, family.folder / name) for name in ("base", "e0", "e1", "e2")]
    assert check(family.folder / "base", family.folder / "e0", folders) == (None, [])


def rows_and_largest_id(out: Path) -> tuple[int, int]:
    """Rows of an output's embedding and of its head, if they are as many, and its largest id."""
    rows = {
        tensor.shape[0]
        for tensor in _core.Checkpoint(str(out)).tensors
        if tensor.name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    assert len(rows) == 1
    return rows.pop(), max(AutoTokenizer.from_pretrained(out).get_vocab().values())


# The base has 100 tokens, e0 has 102, e1 has 101 and e2 as many as the base. Without a base, the
# output has the rows of the first of the models.
MERGES: list[tuple[str, list[str], str | None, dict[str, Any]]] = [
    ("task_arithmetic", ["e0", "e1", "e2"], None, {}),
    ("task_arithmetic", ["e0", "e1", "e2"], "base", {}),
    ("task_arithmetic", ["e0", "e2"], "e2", {}),
    ("ties", ["e0", "e1"], "base", {}),
    ("slerp", ["e1"], None, {"parameters": {"t": 0.5}}),
    ("linear", ["e2", "e0"], None, {"base_model": None}),
    ("linear", ["e2", "e0"], "e2", {"base_model": None}),
    ("passthrough", ["e0"], None, {"base_model": None}),
    ("linear", ["e0"], "e0", {"base_model": None}),
]
REFUSED: list[tuple[str, list[str], str, dict[str, Any]]] = [
    ("task_arithmetic", ["e0", "e2"], "e0", {}),
    ("slerp", ["e1"], "e1", {"parameters": {"t": 0.5}}),
    ("linear", ["e2", "e0"], "e0", {"base_model": None}),
]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family of which two experts have more tokens than the base."""
    family = llama_family(tmp_path_factory.mktemp("grown"), layers=1)
    add_tokens(family.folder / "e0", "<|im_start|>", "<|im_end|>")
    add_tokens(family.folder / "e1", "<tool>")
    return family


def merged_of(
    family: Family, out: Path, method: str, models: list[str], source: str | None, **keys: Any
) -> Path:
    data = family.recipe(method, **keys, models=[{"model": name} for name in models])
    data |= {} if source is None else {"tokenizer_source": source}
    sensmerge.merge(Recipe.from_dict(data, family.folder), out, progress=False, sync=False)
    return out


@pytest.mark.parametrize(("method", "models", "source", "keys"), MERGES)
def test_every_token_of_an_output_has_a_row(
    grown: Family,
    tmp_path: Path,
    method: str,
    models: list[str],
    source: str | None,
    keys: dict[str, Any],
) -> None:
    out = merged_of(grown, tmp_path / "out", method, models, source, **keys)
    rows, largest = rows_and_largest_id(out)
    assert largest < rows
    assert json.loads((out / "config.json").read_text())["vocab_size"] == rows


@pytest.mark.parametrize(("method", "models", "source", "keys"), REFUSED)
def test_a_merge_whose_tokens_would_lack_rows_is_not_written(
    grown: Family,
    tmp_path: Path,
    method: str,
    models: list[str],
    source: str,
    keys: dict[str, Any],
) -> None:
    with pytest.raises(InputError, match=r"tokenizer_source: .* 100 rows"):
        merged_of(grown, tmp_path / "out", method, models, source, **keys)
    assert not (tmp_path / "out").exists()
