"""The tokens that are read from tokenizers' files, and outputs whose every token has a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import sensmerge
from families import Family, add_tokens, byte_tokenizer, llama_family, word_tokenizer
from sensmerge import InputError, Recipe, _core, workflow
from sensmerge.merging.manifest import request
from sensmerge.models import open_models
from sensmerge.models.vocabulary.sentencepiece import pieces
from sensmerge.models.vocabulary.tokens import Vocabularies
from sensmerge.recipe import Sensitivity
from sensmerge.search import tasks
from sensmerge.search.candidates import Candidate

ROWS = 10
VOCABULARY = {f"w{place}": place for place in range(ROWS)}


def folder_of(folder: Path, **files: Any) -> Path:
    """A folder with files of a tokenizer."""
    folder.mkdir(parents=True)
    for file, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{file}.json").write_text(text)
    return folder


def tokenizer(vocabulary: Any = VOCABULARY, **added: int) -> dict[str, Any]:
    listed = [{"id": place, "content": token} for token, place in added.items()]
    return {"model": {"vocab": vocabulary}, "added_tokens": listed}


def decoder(**added: int) -> dict[str, Any]:
    return {"added_tokens_decoder": {str(i): {"content": token} for token, i in added.items()}}


READ: list[tuple[dict[str, Any], dict[str, int]]] = [
    ({"tokenizer": tokenizer()}, VOCABULARY),
    ({"tokenizer": tokenizer([[token, 0.0] for token in VOCABULARY])}, VOCABULARY),
    ({"vocab": VOCABULARY}, VOCABULARY),
    ({"tokenizer": tokenizer(), "vocab": {"other": 99}}, VOCABULARY),
    ({"tokenizer": tokenizer(im=10, w3=3)}, VOCABULARY | {"im": 10}),
    ({"tokenizer": tokenizer(), "added_tokens": {"im": 11}}, VOCABULARY | {"im": 11}),
    ({"tokenizer": tokenizer(), "tokenizer_config": decoder(im=12)}, VOCABULARY | {"im": 12}),
    ({"vocab": VOCABULARY, "tokenizer_config": decoder(im=12)}, VOCABULARY | {"im": 12}),
    # What the vocabulary itself says is what counts.
    ({"tokenizer": tokenizer(), "added_tokens": {"w1": 30}}, VOCABULARY),
]
UNREADABLE: list[dict[str, Any]] = [
    {},
    {"tokenizer": "no JSON", "added_tokens": [], "tokenizer_config": []},
    {"tokenizer": {"model": None, "added_tokens": {}}, "added_tokens": {"odd": None}},
    {"tokenizer": {"model": {"vocab": {"a": "b", "c": -1, "d": True}}, "added_tokens": [3, {}]}},
    {"added_tokens": {"im": 11}},
]


@pytest.mark.parametrize(("files", "expected"), READ)
def test_tokens_are_read_from_every_file_that_has_some(
    tmp_path: Path, files: dict[str, Any], expected: dict[str, int]
) -> None:
    found = Vocabularies().of(folder_of(tmp_path / "model", **files))
    assert found is not None
    assert found.ids == expected
    assert found.size == max(expected.values()) + 1
    assert set(found.added) <= {"im", "w3"}


@pytest.mark.parametrize("files", UNREADABLE)
def test_files_that_tell_no_tokens(tmp_path: Path, files: dict[str, Any]) -> None:
    assert Vocabularies().of(folder_of(tmp_path / "model", **files)) is None


def test_equal_files_are_one_vocabulary(tmp_path: Path) -> None:
    known = Vocabularies()
    one, two, other = (
        known.of(folder_of(tmp_path / name, tokenizer=tokenizer(), tokenizer_config={"a": name}))
        for name in ("one", "two", "other")
    )
    assert one is two
    assert one is other
    (tmp_path / "elsewhere.txt").write_text("")
    assert known.of(tmp_path / "elsewhere.txt") is None


def unigram() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    )
    raw.train_from_iterator([f"hello world {place} times" for place in range(99)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>")


def word_pieces() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(
        vocab_size=60, special_tokens=["[UNK]", "[PAD]"], show_progress=False
    )
    raw.train_from_iterator([f"hello world {place} times" for place in range(99)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]")


REAL = {
    "words": word_tokenizer,
    "byte-level BPE": byte_tokenizer,
    "unigram": unigram,
    "word pieces": word_pieces,
}


@pytest.mark.parametrize("kind", REAL)
def test_the_tokens_of_real_tokenizers_are_transformers_own(tmp_path: Path, kind: str) -> None:
    made = REAL[kind]()
    made.add_tokens(["<extra>", "more"])
    made.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    made.save_pretrained(tmp_path)
    found = Vocabularies().of(tmp_path)
    assert found is not None
    assert found.ids == AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    assert found.added["<|turn|>"]["special"]
    assert not found.added["more"]["special"]


def test_a_list_of_words_a_line(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes("[PAD]\n[UNK]\r\na\u2028b\nc\n".encode())
    found = Vocabularies().of(tmp_path)
    assert found is not None
    assert found.ids == {"[PAD]": 0, "[UNK]": 1, "a\u2028b": 2, "c": 3}


def piece(text: str, score: float = 0.5, kind: int = 1) -> bytes:
    """A piece as SentencePiece writes it: text, score and kind, with a length before it."""
    import struct

    data = text.encode()
    body = b"\x0a" + bytes([len(data)]) + data + b"\x15" + struct.pack("<f", score)
    body += b"\x18" + bytes([kind])
    length = [len(body)] if len(body) < 128 else [len(body) & 127 | 128, len(body) >> 7]
    return b"\x0a" + bytes(length) + body


def test_the_pieces_of_a_sentencepiece_model(tmp_path: Path) -> None:
    texts = ["<unk>", "<s>", "▁hello", "<0x0A>", "ö" * 60]
    # Behind the pieces: settings of the training and of the normaliser.
    model = b"".join(piece(text, kind=place % 4) for place, text in enumerate(texts))
    settings = b"\x12\x02\x18\x01" + b"\x19" + bytes(8) + b"\x98\x06\x96\x01"
    assert pieces(model + settings) == texts
    for broken in (b"", b"\x0a\x05a", b"no model", model[:-1], b"\x0b", b"\x0a\xff", b"\x0a\x00"):
        assert pieces(broken) == []
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 5}')
    found = Vocabularies().of(tmp_path)
    assert found is not None
    assert found.ids == {text: place for place, text in enumerate([*texts, "<pad>"])}


# The base has 100 tokens, e0 has 102, e1 has 101, e2 as many as the base, e3 two of them swapped.
MERGES: list[tuple[str, list[str], dict[str, Any]]] = [
    ("task_arithmetic", ["e0", "e1", "e2"], {}),
    ("task_arithmetic", ["e0", "e1", "e2"], {"tokenizer_source": "base"}),
    ("task_arithmetic", ["e0", "e2"], {"tokenizer_source": "e2"}),
    ("task_arithmetic", ["e0", "e2"], {"tokenizer_source": "e0"}),
    ("task_arithmetic", ["e0", "e3"], {"tokenizer_source": "model:./e3"}),
    ("task_arithmetic", ["e0", "e1", "e3"], {"tokenizer_source": "union"}),
    ("task_arithmetic", ["e2"], {"tokenizer_source": "e0"}),
    ("ties", ["e0", "e1"], {"tokenizer": {}}),
    ("ties", ["e0", "e1"], {"tokenizer": {"source": "base", "pad_to_multiple_of": 64}}),
    ("ties", ["e0", "e3"], {"tokenizer": {"source": "union", "pad_to_multiple_of": 8}}),
    ("dare_ties", ["e0"], {"tokenizer": {"tokens": {"<new>": {"source": {"kind": "zero"}}}}}),
    ("slerp", ["e1"], {"parameters": {"t": 0.5}}),
    ("slerp", ["e1"], {"parameters": {"t": 0.5}, "tokenizer_source": "e1"}),
    ("slerp", ["e3"], {"parameters": {"t": 0.5}, "tokenizer_source": "union"}),
    ("linear", ["e2", "e0"], {"base_model": None}),
    ("linear", ["e2", "e0"], {"base_model": None, "tokenizer_source": "e0"}),
    ("linear", ["e0", "e2", "e3"], {"base_model": None, "tokenizer_source": "union"}),
    ("passthrough", ["e0"], {"base_model": None}),
    ("passthrough", ["e0"], {"base_model": None, "tokenizer_source": "e2"}),
    ("linear", ["e0"], {"base_model": None, "tokenizer_source": "e0"}),
]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family in which two experts have more tokens than the base, and one has two swapped."""
    family = llama_family(tmp_path_factory.mktemp("grown"), experts=4, layers=1)
    add_tokens(family.folder / "e0", "<|im_start|>", "<|im_end|>")
    add_tokens(family.folder / "e1", "<tool>")
    swap(family.folder / "e3", "w1", "w2")
    return family


def swap(model: Path, one: str, other: str) -> None:
    """Swap the ids of two tokens of a model, and their rows."""
    from safetensors.torch import load_file

    path = model / "tokenizer.json"
    data = json.loads(path.read_text())
    ids = data["model"]["vocab"]
    places = [ids[one], ids[other]]
    ids[one], ids[other] = reversed(places)
    path.write_text(json.dumps(data))
    tensors = load_file(model / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name][places] = tensors[name][places[::-1]].clone()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def merged_of(
    family: Family, out: Path, method: str, models: list[str], **keys: Any
) -> sensmerge.MergeResult:
    data = family.recipe(method, models=[{"model": name} for name in models], **keys)
    recipe = Recipe.from_dict(data, family.folder)
    return sensmerge.merge(recipe, out, progress=False, sync=False)


@pytest.mark.parametrize(("method", "models", "keys"), MERGES)
def test_every_token_of_an_output_has_a_row(
    grown: Family, tmp_path: Path, method: str, models: list[str], keys: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    merged_of(grown, out, method, models, **keys)
    rows = {
        tensor.shape[0]
        for tensor in _core.Checkpoint(str(out)).tensors
        if tensor.name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    tokens = AutoTokenizer.from_pretrained(out).get_vocab()
    assert rows == {json.loads((out / "config.json").read_text())["vocab_size"]}
    assert max(tokens.values()) < min(rows)
    loaded: Any = AutoModelForCausalLM.from_pretrained(out)
    last = max(tokens.values())
    assert loaded(torch.tensor([[1, last]])).logits.shape[-1] == min(rows)


def test_swapped_ids_do_not_change_what_is_merged(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=2, layers=1)
    merged_of(family, tmp_path / "before", "ties", ["e0", "e1"])
    before = (tmp_path / "before" / "model.safetensors").read_bytes()
    swap(tmp_path / "e1", "w1", "w40")
    notes = merged_of(family, tmp_path / "after", "ties", ["e0", "e1"]).notes
    assert (tmp_path / "after" / "model.safetensors").read_bytes() == before
    assert any("e1: 2 tokens ('w1', 'w40') have other ids than in the" in note for note in notes)


def test_models_that_agree_are_merged_as_they_are_stored(family: Family) -> None:
    plan = workflow.plan(Recipe.from_dict(family.recipe(tokenizer_source="union"), family.folder))
    sources = [
        source["kind"]
        for tensor in plan.data["tensors"]
        for source in tensor["content"]["merge"]["experts"]
    ]
    assert set(sources) == {"stored"}
    assert plan.notes == []


def test_a_token_of_one_expert_is_kept_by_a_union(grown: Family, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    notes = merged_of(grown, tmp_path / "plain", "task_arithmetic", ["e0", "e1"]).notes
    assert "e0: 2 tokens ('<|im_start|>', '<|im_end|>') are not in the output's tokenizer: their " \
        "rows are left out" in notes  # fmt: skip
    assert "tokenizer_source: union would keep the tokens that are left out" in notes
    out = tmp_path / "union"
    result = merged_of(grown, out, "task_arithmetic", ["e0", "e1"], tokenizer_source="union")
    assert not any("left out" in note for note in result.notes)
    ids = AutoTokenizer.from_pretrained(out).get_vocab()
    merged = load_file(out / "model.safetensors")
    for model, token in (("e0", "<|im_end|>"), ("e1", "<tool>")):
        theirs = AutoTokenizer.from_pretrained(grown.folder / model).get_vocab()
        stored = load_file(grown.folder / model / "model.safetensors")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            torch.testing.assert_close(merged[name][ids[token]], stored[name][theirs[token]])


def test_tokens_of_the_tokenizer_that_no_model_has_are_zeros(
    family: Family, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    family = family.copy(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path / "base")
    other.add_tokens(["<nobody>"])
    other.save_pretrained(tmp_path / "outside")
    result = merged_of(family, tmp_path / "out", "ties", ["e0"], tokenizer_source="outside")
    assert any("('<nobody>') of the output's tokenizer have no row in" in n for n in result.notes)
    rows = load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"]
    assert len(rows) == 101
    assert rows[100].abs().max() == 0


def test_single_tokens_get_the_rows_that_the_recipe_names(grown: Family, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tokens = {
        "w5": {"source": {"kind": "zero"}, "force": True},
        "w6": {"source": "e3", "force": True},
        "w7": {
            "source": {"kind": "model_token", "model": "e0", "token": "<|im_end|>"},
            "force": True,
        },
        "w8": {"source": {"kind": "model_token", "model": "e0", "token_id": 3}, "force": True},
        "w9": {"source": {"kind": "zero"}},
        "<new>": {"source": {"kind": "model_token", "model": "e0", "token": "w1"}},
    }
    section = {"source": "base", "tokens": tokens}
    models = ["e0", "e3"]
    merged_of(grown, tmp_path / "out", "task_arithmetic", models, tokenizer=section)
    merged_of(grown, tmp_path / "plain", "task_arithmetic", models)
    name = "model.embed_tokens.weight"
    rows, plain, e0, e3 = (
        load_file(folder / "model.safetensors")[name]
        for folder in (
            tmp_path / "out",
            tmp_path / "plain",
            grown.folder / "e0",
            grown.folder / "e3",
        )
    )
    ids = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert rows[ids["w5"]].abs().max() == 0
    for token, expected in (
        ("w6", e3[ids["w6"]]),
        ("w7", e0[101]),
        ("w8", e0[3]),
        ("w9", plain[ids["w9"]]),
        ("<new>", e0[ids["w1"]]),
    ):
        torch.testing.assert_close(rows[ids[token]], expected)


def row_of(chosen: str, **said: Any) -> dict[str, Any]:
    """A recipe's keys that choose the row of one token, of the first expert's."""
    source = {"kind": "model_token", "model": "e0", **said} if said else "e0"
    return {"tokenizer": {"tokens": {chosen: {"source": source}}}}


REFUSED: list[tuple[dict[str, Any], str]] = [
    (row_of("w1", token="no"), "tokenizer.tokens.w1: e0 has no token 'no'"),
    (row_of("w1", token_id=999), "tokenizer.tokens.w1: e0 has no row 999"),
    (row_of("<new>"), "e0 has no token '<new>'"),
    ({"tokenizer_source": "e0/model.safetensors"}, "no tokenizer files"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED)
def test_what_cannot_be_done_is_refused_by_name(
    grown: Family, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        merged_of(grown, tmp_path / "out", "task_arithmetic", ["e0"], **keys)
    assert not (tmp_path / "out").exists()


def test_a_search_runs_merges_of_more_tokens_than_the_base_has(grown: Family) -> None:
    recipe = Recipe.from_dict(
        grown.recipe(models=[{"model": "e0"}, {"model": "e1"}], tokenizer_source="union"),
        grown.folder,
    )
    models = open_models(recipe)
    candidate = Candidate(models, request(recipe, None, models), dtype="stored", threads=1)
    embedding: Any = candidate.model.get_input_embeddings()
    assert embedding.weight.shape[0] == 103
    assert candidate.model(torch.tensor([[1, 102]])).logits.shape[-1] == 103


def test_a_search_refuses_samples_with_other_ids_in_the_merged_model(grown: Family) -> None:
    model = {"model": "e3", "calibration": "t3.jsonl"}
    recipe = Recipe.from_dict(grown.recipe(models=[model]), grown.folder)
    with pytest.raises(InputError, match=r"t3\.jsonl, line \d+: its tokens have other ids in the"):
        tasks.load(recipe, Sensitivity(), open_models(recipe), 0.0)
