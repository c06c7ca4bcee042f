"""Hostile cases: configs, adapters and tokenizers."""

from __future__ import annotations

import json
from collections.abc import Iterator

from hostile_files import (
    EVIL,
    NAME,
    Case,
    both,
    entry,
    held,
    put,
    sparse,
)


def configs() -> Iterator[Case]:
    """Configs of models that are merged."""
    for name, text, said in (
        ("empty", "", "JSON"),
        ("a list", "[]", "object"),
        ("a number", "1", "object"),
        ("half an object", "{", "JSON"),
        ("nested 100,000 deep", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "JSON"),
        ("nested 500 deep", '{"a":' + "[" * 500 + "]" * 500 + "}", "nested deeper"),
        ("nested 50 deep", '{"a":' + "[" * 50 + "]" * 50 + "}", None),
        ("a million lists", '{"a":[' + "[]," * 999_999 + "[]]}", "lists and objects"),
        ("10,000 digits", '{"vocab_size":' + "9" * 10_000 + "}", "digits"),
        ("no UTF-8", '{"a":"\udcff"}'.encode("utf-8", "surrogateescape").decode("latin-1"), None),
        ("numbers that are none", '{"a":[NaN,Infinity,-Infinity,1e999]}', None),
        ("a type that forges", json.dumps({"model_type": EVIL}), None),
        ("a type that is a list", json.dumps({"model_type": ["llama"]}), None),
        ("a million layers", json.dumps({"model_type": "llama", "num_hidden_layers": 10**6}), None),
        ("a text config that is a list", json.dumps({"text_config": []}), None),
        ("a quantisation that is a list", json.dumps({"quantization_config": [1]}), None),
        ("a quantisation that forges",
         json.dumps({"quantization_config": {"quant_method": EVIL}}), None),
        ("a block of no size", json.dumps(
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 0]}}), None),
        ("a block of 2^64", json.dumps(
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [2**64, -1]}}),
         None),
        ("weights elsewhere", json.dumps({"transformers_weights": f"../base/{NAME}"}),
         "transformers_weights"),
        ("weights of a long name", json.dumps({"transformers_weights": "a" * 300 + ".safetensors"}),
         ""),
        ("weights that forge", json.dumps({"transformers_weights": EVIL}), "transformers_weights"),
        ("weights in an object", json.dumps({"transformers_weights": {}}), "transformers_weights"),
        ("code", json.dumps({"auto_map": {"AutoConfig": "evil--x.Y"}}), None),
    ):  # fmt: skip
        file = "" if said == "" else "config.json"
        yield Case("merge", f"config: {name}", put("base/config.json", text), file, said)
    yield Case(
        "merge", "config: of 1 TB", sparse("base/config.json", 2**40), "config.json", "bytes"
    )
    for name, text in (
        ("nested", '{"eos_token_id":' + "[" * 5000 + "]" * 5000 + "}"),
        ("a list", "[]"),
        ("ids that are none", json.dumps({"eos_token_id": [None, "a", -1, 2**70]})),
    ):
        yield Case("merge", f"generation config: {name}",
                   put("base/generation_config.json", text), "", None)  # fmt: skip


def adapters() -> Iterator[Case]:
    """Adapters' configs and weights."""
    sound = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    digits = "9" * 5000
    for name, said, keys in (
        ("not LoRA", "type", {"peft_type": EVIL}),
        ("no type", "type", {"peft_type": None}),
        ("rank 0", "r:", {"r": 0}),
        ("rank negative", "r:", {"r": -1}),
        ("rank a float", "r:", {"r": 2.5}),
        ("rank a text", "r:", {"r": "2"}),
        ("rank of 2^80", "rank", {"r": 2**80}),
        ("another rank", "rank", {"r": 3}),
        ("alpha infinite", "lora_alpha", {"lora_alpha": float("inf")}),
        ("alpha not a number", "lora_alpha", {"lora_alpha": float("nan")}),
        ("alpha a list", "lora_alpha", {"lora_alpha": []}),
        ("patterns a list", "rank_pattern", {"rank_pattern": ["a"]}),
        ("no pattern", "no pattern", {"rank_pattern": {"(": 2}}),
        ("a pattern for ever", "repeat", {"rank_pattern": {"(a+)+$": 2}}),
        ("a pattern of alternatives for ever", "repeat", {"alpha_pattern": {"(a|a)*b": 2}}),
        ("a pattern of many repetitions", "repetitions", {"rank_pattern": {".*.*.*.*.*.*b": 2}}),
        ("a pattern that refers back", "refers back", {"rank_pattern": {r"(a)\1": 2}}),
        ("a pattern of 100 KB", "too long", {"rank_pattern": {"a" * 100_000: 2}}),
        ("a pattern's rank", "rank_pattern", {"rank_pattern": {"a": "x"}}),
        ("an unknown key", "unknown_key", {"unknown_key": {"evil": 1}}),
        ("a key that forges", "not known here", {EVIL: 1}),
        ("another start", "init_lora_weights", {"init_lora_weights": {"a": 1}}),
        ("tokens that are none", None, {"trainable_token_indices": {"x": ["a", -1, None]}}),
        ("a base that forges", None, {"base_model_name_or_path": EVIL}),
        ("a base that is a list", None, {"base_model_name_or_path": [1]}),
    ):
        build = put("lora/adapter_config.json", json.dumps(sound | keys))
        file = "adapter_config.json" if said not in (None, "rank") else "lora"
        yield Case("adapter", f"adapter: {name}", build, file, said)
    for name, text, said in (
        ("a list", "[]", "object"),
        ("empty", "", "JSON"),
        ("nested", "[" * 200_000, "JSON"),
        ("10,000 digits", '{"lora_alpha":' + digits + digits + "}", "digits"),
    ):
        yield Case("adapter", f"adapter: {name}", put("lora/adapter_config.json", text),
                   "adapter_config.json", said)  # fmt: skip
    wrap = "base_model.model."
    for name, tensors in (
        ("nothing", {}),
        ("a name that forges", {f"{wrap}{EVIL}.lora_A.weight": (2, 4)}),
        ("a half", {f"{wrap}a.lora_A.weight": (2, 4)}),
        ("three axes", {f"{wrap}a.lora_A.weight": (2, 2, 2), f"{wrap}a.lora_B.weight": (3, 2)}),
        ("another shape", {f"{wrap}a.lora_A.weight": (2, 9), f"{wrap}a.lora_B.weight": (3, 2)}),
        ("another kind", {f"{wrap}a.lora_evil": (1,)}),
        ("a whole tensor of another shape", {f"{wrap}a.weight": (1,)}),
    ):
        header, end = {}, 0
        for tensor, shape in tensors.items():
            size = 4
            for each in shape:
                size *= each
            header[tensor] = entry(shape, (end, end + size))
            end += size
        build = put("lora/adapter_model.safetensors", held(header, end))
        yield Case("adapter", f"adapter's weights: {name}", build, "lora", "")


def tokenizers() -> Iterator[Case]:
    """Tokenizers' files, whose tokens a merge matches."""
    for name, text in (
        ("nested", '{"model":' + "[" * 100_000),
        ("a list", "[]"),
        ("a model that is a list", '{"model": []}'),
        ("ids that are none", json.dumps({"model": {"vocab": {"a": -1, "b": 1.5, "c": "x"}}})),
        ("pairs that are none", json.dumps({"model": {"vocab": [1, None, [], ["a"]]}})),
        ("added tokens that are none", json.dumps({"added_tokens": [1, None, {"id": "x"}]})),
        ("10,000 digits", '{"model":{"vocab":{"a":' + "9" * 10_000 + "}}}"),
        ("tokens that forge", json.dumps({"model": {"vocab": {EVIL: 0}}})),
    ):
        yield Case("union", f"tokenizer: {name}", put("e1/tokenizer.json", text), "", None)
    for name, data in (
        ("no protocol buffer", b"\xff" * 5000),
        ("a length past the end", b"\x0a\xff\xff\xff\xff\x0f"),
        ("a number without end", b"\x80" * 100_000),
    ):
        yield Case("union", f"pieces: {name}", put("e1/tokenizer.model", data), "", None)
    yield Case("union", "tokenizer: of 1 TB", sparse("e1/tokenizer.json", 2**40), "tokenizer.json",
               "bytes")  # fmt: skip
    yield Case("union", "tokens: ids of 10,000 digits",
               both(put("e1/vocab.json", '{"a": 0}'), put("e1/tokenizer_config.json", json.dumps(
                   {"added_tokens_decoder": {"9" * 10_000: {"content": "b"}}}))),
               "", None)  # fmt: skip
