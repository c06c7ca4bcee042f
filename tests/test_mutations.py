"""Recipes, adapters' configs, calibrations and tokenizers with something wrong in them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mutation import mutated
from sensmerge import Calibration, InputError
from sensmerge.models.adapter_config import read_adapter_config
from sensmerge.models.vocabulary.tokens import Vocabularies
from sensmerge.recipe import Recipe, load
from tiers import TORTURE
from tiers import cases as tier

# The same cases every time in `make test`, new ones in `make torture`.
fuzzed = settings(
    max_examples=tier(150, 20_000),
    derandomize=not TORTURE,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ADAPTER = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "rank_pattern": {"q_proj": 2, r"layers\.[01]\.k_proj": 3},
    "alpha_pattern": {"q_proj": 1.5},
    "use_rslora": False,
    "trainable_token_indices": {"embed": [1, 2]},
    "base_model_name_or_path": "base",
}
RECIPE = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [
        {"model": "e0", "parameters": {"weight": 0.5, "density": [0.1, 0.9]}},
        {"model": "e1+lora", "parameters": {"weight": [{"filter": "mlp", "value": 1}, 0.2]}},
    ],
    "parameters": {"normalize": True, "lambda": 0.5},
    "tokenizer": {"source": "union", "tokens": {"a": {"source": "e0", "force": True}}},
    "chat_template": "auto",
    "dtype": "bfloat16",
    "seed": 3,
}
SLICES = {
    "merge_method": "passthrough",
    "slices": [
        {"sources": [{"model": "e0", "layer_range": [0, 2]}]},
        {"sources": [{"model": "e1", "layer_range": [1, 3], "parameters": {"scale": 0.5}}]},
    ],
    "sensitivity": {"mode": "off", "samples": 3},
}
CALIBRATION = {
    "format": "sensmerge-calibration",
    "version": 1,
    "base": "base",
    "experts": [
        {
            "model": f"e{place}",
            "fingerprint": f"sampled-blake3:{place}",
            "vocabulary": 10,
            "loss": 1.5,
            "task": {
                "path": "t.jsonl", "rows": 3, "drawn": [0, 2], "used": 2, "left_out": 0,
                "scored_tokens": 9, "token_ids": "sha256:0", "max_length": 16,
                "files": [{"path": "t.jsonl", "rows": 3}],
            },
        }
        for place in range(2)
    ],
    "layers": ["layers.0", "layers.1"],
    "sensitivity": [[1.0, 2.0], [0.5, 0.25]],
    "outside": {"layers": ["head"], "sensitivity": [[1.0], [0.0]]},
    "order": ["layers.0", "layers.1", "head"],
    "alignment": [[0.0, 1.0], [2.0, 0.0]],
    "options": {"measure": "taylor", "base": "origin", "positions": "completion"},
    "notes": ["a note"],
    "versions": {"torch": "2"},
    "seconds": {"total": 1.0},
}  # fmt: skip
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]},
    "added_tokens": [{"id": 2, "content": "<s>", "special": True, "lstrip": False}],
}

PIECES = [
    *"&*!%@|>?:-{}[],#'\"\\\n\t~<= 0", "&a ", "*a", "<<: ", "!!int ", "!!bool ", "---\n", "0x",
    "!!python/name:os", "1:1", ".inf", "\x00", "\ud800",
]  # fmt: skip

pytestmark = pytest.mark.tiers


def outcome(read: Callable[[], Any]) -> tuple[Any, tuple[str, ...]]:
    """What is read, or the lines by which it is refused."""
    try:
        return read(), ()
    except InputError as error:
        return None, error.lines


@fuzzed
@given(data=mutated(ADAPTER), module=st.sampled_from(["q_proj", "layers.0.k_proj", "a" * 2000, ""]))
def test_configs_of_adapters(tmp_path: Path, data: Any, module: str) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(data))

    def read() -> tuple[int, float, list[int] | None]:
        config = read_adapter_config(path)
        return config.rank(module), config.scale(module), config.token_places(module)

    found, lines = outcome(read)
    assert all(line.startswith(f"{path}: ") for line in lines)
    if lines:
        return
    rank, scale, places = found
    assert rank > 0
    assert math.isfinite(scale)
    assert places is None or all(place >= 0 for place in places)


@fuzzed
@given(data=st.one_of(mutated(RECIPE), mutated(SLICES), mutated([RECIPE | {"name": "a"}, SLICES])))
def test_recipes(tmp_path: Path, data: Any) -> None:
    path = tmp_path / "recipe.yaml"
    documents = data if isinstance(data, list) else [data]
    path.write_text("\n---\n".join(json.dumps(each) for each in documents))
    recipe, lines = outcome(lambda: load(path))
    assert all(line.startswith(str(path)) for line in lines)
    if isinstance(recipe, Recipe):
        written = tmp_path / "written.yaml"
        written.write_text(recipe.to_yaml(), encoding="utf-8")
        assert repr(Recipe.load(written).source) == repr(recipe.source)


@fuzzed
@given(
    start=st.sampled_from([json.dumps(RECIPE), "a: &a [1]\nb: *a\n", "k: {<<: {a: 1}}\n"]),
    parts=st.lists(st.sampled_from(PIECES)),
    place=st.integers(0, 80),
)  # fmt: skip
def test_recipes_that_are_hardly_yaml(
    tmp_path: Path, start: str, parts: list[str], place: int
) -> None:
    path = tmp_path / "recipe.yaml"
    text = start[:place] + "".join(parts) + start[place:]
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    _, lines = outcome(lambda: load(path))
    assert all(line.startswith(str(path)) for line in lines)


@fuzzed
@given(data=mutated(CALIBRATION))
def test_calibrations(tmp_path: Path, data: Any) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(data))
    found, lines = outcome(lambda: Calibration.load(path))
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert lines or Calibration.from_json(found.to_json()).to_json() == found.to_json()


@fuzzed
@given(data=mutated(TOKENIZER), decoder=mutated({"3": {"content": "x", "special": True}}))
def test_tokenizers(tmp_path: Path, data: Any, decoder: Any) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    said = {"added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    found = Vocabularies().of(tmp_path)
    assert found is None or all(type(place) is int for place in found.ids.values())
