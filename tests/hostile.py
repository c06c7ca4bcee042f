"""Hostile files and folders, and what has to come of each: the corpus of `test_hostile.py`.

A case is refused by a message that names its file and has a word of the reason, or it is accepted
because it is sound, however odd.
"""

from __future__ import annotations

import gzip
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = Any
Build = Callable[[Path], object]

NAME = "model.safetensors"
INDEX = "model.safetensors.index.json"

# What a name can do to a terminal: forge a line, set the title, write backwards.
EVIL = "a\nerror: forged\r\x1b]0;title\x07\x1b[31m\u202egnp\u200b\x9b2J<img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        kind: Its kind, which says what is run on it.
        name: What is hostile about it.
        build: Writes it into a folder that holds sound models.
        file: The name that the message has to have.
        said: A word of the reason; None where the input is accepted.
    """

    kind: str
    name: str
    build: Build
    file: str
    said: str | None


def entry(shape: Json = (1,), offsets: Json = (0, 4), dtype: Json = "F32", **more: Json) -> Json:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


def framed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def held(header: Json, data: int = 4) -> bytes:
    return framed(json.dumps(header).encode(), bytes(data))


def put(path: str, content: bytes | str) -> Build:
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content

    def build(folder: Path) -> None:
        place = folder / path
        if place.is_symlink() or place.exists():
            place.unlink()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    return build


def sparse(path: str, size: int, start: bytes = b"") -> Build:
    """A file that claims a size and takes none."""

    def build(folder: Path) -> None:
        put(path, start)(folder)
        os.truncate(folder / path, size)

    return build


def special(path: str, what: str) -> Build:
    """Something other than a regular file: a pipe, a socket, a folder, or a link to a target."""

    def build(folder: Path) -> None:
        place = folder / path
        if place.is_symlink() or place.exists():
            place.unlink()
        if what == "pipe":
            os.mkfifo(place)
        elif what == "folder":
            place.mkdir()
        elif what == "socket":
            # The path of a socket is short: it is bound from its own folder.
            here = Path.cwd()
            os.chdir(place.parent)
            try:
                with socket.socket(socket.AF_UNIX) as made:
                    made.bind(place.name)
            finally:
                os.chdir(here)
        else:
            place.symlink_to(what)

    return build


def both(*builds: Build) -> Build:
    def build(folder: Path) -> None:
        for each in builds:
            each(folder)

    return build


def headers() -> Iterator[Case]:
    """Weight files, whose header is the only part that is read before the data."""

    def case(name: str, content: bytes, said: str | None) -> Case:
        return Case("inspect", f"header: {name}", put(f"e1/{NAME}", content), NAME, said)

    one = {"a": entry()}
    plain = json.dumps(entry()).encode()
    deep = b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    many = "{" + ",".join(
        f'"{place:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for place in range(100_002)
    ) + "}"  # fmt: skip
    for name, content, said in (
        ("no byte", b"", "hold no header"),
        ("seven bytes", b"\0" * 7, "hold no header"),
        ("a length alone", framed(b""), "malformed"),
        ("a length of 2^64", framed(b"{}", b"", 2**64 - 1), "claims"),
        ("a length of 2^63", framed(b"{}", b"", 2**63), "claims"),
        ("a length one too large", framed(b"{}", b"", 3), "truncated"),
        ("a length of 26 MB", framed(b"{}" + b" " * 30, b"", 26_000_000), "claims"),
        ("text", b"hello, world: this is not it", "claims"),
        ("HTML", b"<!doctype html><title>Not found</title>", "claims"),
        ("zip", b"PK\x03\x04" + b"\0" * 40, "torch.save"),
        ("GGUF", b"GGUF\x03\0\0\0" + b"\0" * 40, "GGUF"),
        ("a pointer of LFS", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a list", framed(b"[]"), "malformed"),
        ("null", framed(b"null"), "malformed"),
        ("a number", framed(b"1"), "malformed"),
        ("a text", framed(b'"a"'), "malformed"),
        ("half an object", framed(b"{"), "malformed"),
        ("two objects", framed(b"{}{}"), "malformed"),
        ("zeros behind the object", framed(b"{}\0\0"), "malformed"),
        ("a byte order mark", framed(b"\xef\xbb\xbf{}"), "malformed"),
        ("no UTF-8", framed(b'{"\xff":1}'), "malformed"),
        ("half a surrogate pair", framed(b'{"\\ud800":' + json.dumps(entry()).encode() + b"}"),
         "malformed"),
        ("single quotes", framed(b"{'a':1}"), "malformed"),
        ("a comment", framed(b"{/*x*/}"), "malformed"),
        ("nested 50,000 deep", framed(deep), "malformed"),
        ("nested in metadata", framed(b'{"__metadata__":{"a":' + b"[" * 9000 + b"}}"), "malformed"),
        ("no tensor", framed(b"{}"), None),
        ("no tensor, spaces", framed(b"{}      "), None),
        ("no tensor, data", framed(b"{}", bytes(4)), "at its end"),
        ("a tensor twice", framed(b'{"a":' + plain + b',"a":' + plain + b"}", bytes(4)), "twice"),
        ("metadata twice", framed(b'{"__metadata__":{},"__metadata__":{}}'), "twice"),
        ("metadata null", held({"__metadata__": None} | one), "malformed"),
        ("metadata a list", held({"__metadata__": []} | one), "malformed"),
        ("metadata of a number", held({"__metadata__": {"a": 1}} | one), "malformed"),
        ("metadata of an object", held({"__metadata__": {"a": {}}} | one), "malformed"),
        ("metadata of texts", held({"__metadata__": {"format": "pt", "x": EVIL}} | one), None),
        ("100,002 tensors", framed(many.encode()), "more than 100000 tensors"),
        ("sound", held(one), None),
        ("spaces around", framed(b" " + json.dumps(one).encode() + b"  ", bytes(4)), None),
    ):  # fmt: skip
        yield case(name, content, said)
    for name, value, said in (
        ("null", None, "malformed"),
        ("a list", [], "malformed"),
        ("a number", 1, "malformed"),
        ("a text", "F32", "malformed"),
        ("empty", {}, "malformed"),
        ("without dtype", {"shape": [1], "data_offsets": [0, 4]}, "malformed"),
        ("without shape", {"dtype": "F32", "data_offsets": [0, 4]}, "malformed"),
        ("without offsets", {"dtype": "F32", "shape": [1]}, "malformed"),
        ("with another key", entry(strides=[1]), "malformed"),
        ("dtype unknown", entry(dtype="F31"), "dtype"),
        ("dtype small", entry(dtype="f32"), "dtype"),
        ("dtype empty", entry(dtype=""), "dtype"),
        ("dtype null", entry(dtype=None), "malformed"),
        ("dtype a number", entry(dtype=32), "malformed"),
        ("dtype that forges", entry(dtype=EVIL), "dtype"),
        ("dtype of 100 KB", entry(dtype="F" * 100_000), "dtype"),
        ("shape negative", entry([-1]), "malformed"),
        ("shape of a float", entry([1.0]), "malformed"),
        ("shape of a text", entry(["1"]), "malformed"),
        ("shape null", entry(None), "malformed"),
        ("shape a number", entry(1), "malformed"),
        ("shape nested", entry([[1]]), "malformed"),
        ("shape that overflows", entry([2**63, 2]), "not a whole number of bytes"),
        ("shape that wraps to 1", entry([2**32, 2**32, 1]), "not a whole number of bytes"),
        ("shape of 2^65", entry([2**65]), "malformed"),
        ("shape too large", entry([2]), "8 bytes"),
        ("shape too small", entry([]), None),
        ("shape of 65 axes", entry([1] * 65), "malformed"),
        ("shape of 64 axes", entry([1] * 64), None),
        ("shape of 100,000 axes", entry([1] * 100_000), "malformed"),
        ("shape with 0 and data", entry([0, 2**60]), "0 bytes"),
        ("offsets null", entry(offsets=None), "malformed"),
        ("offsets of one", entry(offsets=[0]), "malformed"),
        ("offsets of three", entry(offsets=[0, 4, 8]), "malformed"),
        ("offsets negative", entry(offsets=[-4, 0]), "malformed"),
        ("offsets of floats", entry(offsets=[0.0, 4.0]), "malformed"),
        ("offsets of texts", entry(offsets=["0", "4"]), "malformed"),
        ("offsets reversed", entry(offsets=[4, 0]), "do not fit"),
        ("offsets past the end", entry(offsets=[4, 8]), "do not fit"),
        ("offsets of 2^64-1", entry(offsets=[2**64 - 1, 2**64 - 1]), "do not fit"),
        ("offsets of 2^70", entry(offsets=[0, 2**70]), "malformed"),
        ("offsets of 10,000 digits", None, "malformed"),
        ("offsets before the data", entry(offsets=[0, 3]), ""),
    ):
        content = held({"a": value})
        if name.startswith("offsets of 10,000"):
            digits = b"9" * 10_000
            content = framed(
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,' + digits + b"]}}", bytes(4)
            )
        yield case(f"tensor {name}", content, said)
    pair = {"a": entry((4,), (0, 4), "U8"), "b": entry((4,), (4, 8), "U8")}
    for name, header, size, said in (
        ("that overlap", pair | {"b": entry((4,), (2, 6), "U8")}, 6, "overlaps"),
        ("at one place", pair | {"b": entry((4,), (0, 4), "U8")}, 4, "overlaps"),
        ("with a gap", pair | {"b": entry((4,), (6, 10), "U8")}, 10, "belong to no tensor"),
        ("behind a gap", {"b": pair["b"]}, 8, "belong to no tensor"),
        ("before more data", pair, 9, "at its end"),
        ("of no bytes, anywhere", pair | {"c": entry((0,), (2, 2), "U8")}, 8, "overlaps"),
        ("of no bytes, at an end", pair | {"c": entry((0,), (8, 8), "U8")}, 8, None),
        ("in another order", dict(reversed(pair.items())), 8, None),
    ):  # fmt: skip
        yield case(f"tensors {name}", held(header, size), said)
    for name, text, said in (
        ("empty", "", "has no name"),
        ("that forges", EVIL, None),
        ("with a null", "a\0b", None),
        ("a path out", "../../etc/passwd", None),
        ("of formats", "{0.__class__} %s %n $HOME `id`", None),
        ("of 100 KB", "a." * 50_000, None),
        ("of a number of 5,000 digits", f"model.layers.{'9' * 5000}.w", None),
        ("of other digits", "model.layers.٣.w", None),
        ("with dots alone", "....", None),
        ("a mark of the format", "__metadata__ ", None),
    ):
        yield case(f"a name {name}", held({text: entry()}), said)
    for dtype, bits in (
        ("BOOL", 8), ("U8", 8), ("I8", 8), ("F8_E5M2", 8), ("F8_E4M3", 8), ("F8_E8M0", 8),
        ("I16", 16), ("U16", 16), ("F16", 16), ("BF16", 16), ("I32", 32), ("U32", 32),
        ("F64", 64), ("I64", 64), ("U64", 64), ("C64", 64), ("F4", 4), ("F6_E2M3", 6),
    ):  # fmt: skip
        size = bits  # eight entries
        content = held({"a": entry((8,), (0, size), dtype)}, size)
        yield case(f"dtype {dtype}", content, None)
    yield case("half a byte", held({"a": entry((1,), (0, 1), "F4")}, 1), "whole number of bytes")
    yield Case("inspect", "header: 99 MB of metadata",
               sparse(f"e1/{NAME}", 99_000_100, framed(b'{"__metadata__":{"a":"', b"", 99_000_000)),
               NAME, "claims")  # fmt: skip
    yield Case("inspect", "header: a file of 1 TB without data",
               sparse(f"e1/{NAME}", 2**40, held({"a": entry((2**38,), (0, 2**40))}, 0)),
               NAME, "do not fit")  # fmt: skip


def places() -> Iterator[Case]:
    """Files that are none, or lie elsewhere."""
    for file, kind in (
        (f"e1/{NAME}", "inspect"),
        ("e1/config.json", "merge"),
        ("base/generation_config.json", "merge"),
        ("base/tokenizer.json", "merge"),
        ("base/tokenizer_config.json", "merge"),
        ("base/chat_template.jinja", "merge"),
        (f"sharded/{INDEX}", "inspect-sharded"),
        ("sharded/part.safetensors", "inspect-sharded"),
        ("lora/adapter_config.json", "adapter"),
        ("lora/adapter_model.safetensors", "adapter"),
    ):
        name = Path(file).name
        for what, said in (
            ("pipe", "not a regular file"),
            ("folder", ""),
            ("/dev/zero", ""),
            ("../secret", "leads outside"),
            ("nowhere", ""),
        ):
            yield Case(kind, f"{file} is {what}", special(file, what), name, said)
    yield Case("inspect", "weights are a socket", special(f"e1/{NAME}", "socket"), NAME, "regular")
    yield Case("recipe", "a recipe is a pipe", special("recipe.yaml", "pipe"), "recipe.yaml",
               "regular")  # fmt: skip
    yield Case("recipe", "a recipe is a device", special("recipe.yaml", "/dev/zero"), "recipe.yaml",
               "regular")  # fmt: skip
    yield Case("recipe", "a recipe is a folder", special("recipe.yaml", "folder"), "recipe.yaml",
               "")  # fmt: skip
    for what in ("pipe", "../made", "/dev/null", "folder"):
        yield Case("merge", f"the marker is {what}",
                   both(lambda folder: (folder / "out").mkdir(),
                        special("out/.sensmerge-unfinished", what)),
                   ".sensmerge-unfinished" if what != "folder" else "out", "")  # fmt: skip
    yield Case("inspect", "a link beside the file",
               both(lambda folder: (folder / f"e1/{NAME}").rename(folder / "e1/other.bin"),
                    special(f"e1/{NAME}", "other.bin")), NAME, None)  # fmt: skip


def indices() -> Iterator[Case]:
    """Indices of sharded models."""
    part = "part.safetensors"
    sound = {"a.weight": part, "b.weight": part}

    def mapped(places: Json) -> str:
        return json.dumps({"weight_map": places})

    for name, text, said in (
        ("empty", "", "malformed"),
        ("a list", "[]", "malformed"),
        ("an empty object", "{}", "malformed"),
        ("null", mapped(None), "malformed"),
        ("a list of places", mapped([]), "malformed"),
        ("no tensor", mapped({}), "names no tensor"),
        ("a number", mapped({"a.weight": 1}), "malformed"),
        ("an object", mapped({"a.weight": {}}), "malformed"),
        ("a folder above", mapped(sound | {"a.weight": f"../base/{NAME}"}), "not a file name"),
        ("a folder below", mapped(sound | {"a.weight": f"x/{part}"}), "not a file name"),
        ("a whole path", mapped(sound | {"a.weight": "/etc/passwd"}), "not a file name"),
        ("a drive", mapped(sound | {"a.weight": "c:part"}), "not a file name"),
        ("a backslash", mapped(sound | {"a.weight": f"..\\{part}"}), "not a file name"),
        ("the folder", mapped(sound | {"a.weight": "."}), "not a file name"),
        ("no name", mapped(sound | {"a.weight": ""}), "not a file name"),
        ("a null", mapped(sound | {"a.weight": "a\0b"}), "not a file name"),
        ("a name that forges", mapped(sound | {"a.weight": EVIL}), ""),
        ("a name of 5,000 letters", mapped(sound | {"a.weight": "a" * 5000}), ""),
        ("a tensor that forges", mapped(sound | {EVIL: part}), "does not hold it"),
        ("a file that is not there", mapped(sound | {"a.weight": "missing.safetensors"}), ""),
        ("itself", mapped(sound | {"a.weight": INDEX}), ""),
        ("a tensor too many", mapped(sound | {"c.weight": part}), "does not hold it"),
        ("a tensor too few", mapped({"a.weight": part}), "is not in the index"),
        ("nested", '{"weight_map":' + "[" * 9000, "malformed"),
        (
            "a tensor twice",
            f'{{"weight_map":{{"a.weight":"{part}","a.weight":"{part}"}}}}',
            "twice",
        ),
        ("metadata of any kind", json.dumps({"metadata": [EVIL], "weight_map": sound}), None),
    ):
        file = "" if said in ("", "is not in the index") else INDEX
        build = put(f"sharded/{INDEX}", text)
        yield Case("inspect-sharded", f"index: {name}", build, file, said)
    yield Case(
        "inspect-sharded", "index: of 1 TB", sparse(f"sharded/{INDEX}", 2**40), INDEX, "bytes"
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


def recipes() -> Iterator[Case]:
    """Recipes, which are YAML."""
    head = "merge_method: linear\nmodels: [{model: base}, {model: e1}]\n"
    laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    merged = "a: &a {k: 1}\n" + "".join(
        f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
        for before, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    for name, text, said in (
        ("empty", "", "mapping"),
        ("a list", "- a\n", "mapping"),
        ("a text", "hello", "mapping"),
        ("a tab", "a:\n\t- b", "not YAML"),
        ("an open bracket", "a: [", "not YAML"),
        ("a null character", head + "a: \0", "not YAML"),
        ("a control character", head + "a: \x1b", "not YAML"),
        ("an alias of nothing", head + "a: *b", "not YAML"),
        ("ten to the ninth texts", laughs + head, "values"),
        ("ten to the seventh keys", merged + head, "values"),
        ("itself", "a: &a [*a]\n" + head, "stands for itself"),
        ("itself, deeper", "a: &a {b: {c: [*a]}}\n" + head, "stands for itself"),
        ("nested lists", "a: " + "[" * 5000 + "]" * 5000, "nested deeper"),
        ("nested mappings", "\n".join(" " * place + "a:" for place in range(300)), "nested deeper"),
        ("nested in a line", "a: " + "{a: " * 500 + "}" * 500, "nested deeper"),
        ("100,000 entries", head + "a: [" + "1," * 100_000 + "]", "values"),
        ("30,000 lines", head + "".join(f"k{place}: 1\n" for place in range(30_000)), "values"),
        ("10,000 documents", "a\n---\n" * 10_000, ""),
        ("10,000 digits", head + "seed: " + "9" * 10_000, "characters"),
        ("10,000 digits in hex", head + "seed: 0x" + "f" * 10_000, "characters"),
        ("sixties", head + "seed: 1" + ":1" * 10_000, "characters"),
        ("a Python object", "!!python/object/apply:os.system ['id']", "not YAML"),
        ("a wrong truth", head + "align: !!bool maybe", "not YAML"),
        ("a wrong number", head + "seed: !!int x", "not YAML"),
        ("an empty number", head + "seed: !!int ''", "not YAML"),
        ("a wrong date", head + "seed: !!timestamp 2000-99-99", ""),
        ("bytes", head + "seed: !!binary '====='", ""),
        ("a set", head + "parameters: !!set {weight, b}", ""),
        ("a list for a key", head + "? [a, b]\n: c", "not text"),
        ("a mapping for a key", head + "? {a: b}\n: c", ""),
        ("a number for a key", head + "1: c", ""),
        ("a truth for a key", head + "yes: c", "not text"),
        ("nothing for a key", head + "parameters: {~: 1}", "not text"),
        ("a key that forges", json.dumps({"merge_method": "linear", EVIL: 1}), ""),
        ("a method that forges", json.dumps({"merge_method": EVIL, "models": []}), "unknown value"),
        ("a method of 1 MB", "merge_method: " + "a" * 10**6, "unknown value"),
        ("a method that is a list", head.replace("linear", "[linear]"), ""),
        ("models that are text", "merge_method: linear\nmodels: base", ""),
        ("a model that is a number", "merge_method: linear\nmodels: [{model: 1}]", ""),
        ("a weight for ever", head + "parameters: {weight: .inf}", "weight"),
        ("a seed too large", head + "seed: 99999999999999999999999999", "seed"),
        ("other bytes", b"\xff\xfe\x00m\x00e", "UTF-8"),
    ):
        yield Case("recipe", f"recipe: {name}", put("recipe.yaml", text), "recipe.yaml", said)
    for name, model, said in (
        ("of a user that is none", "~nosuchuser/model", "no such folder"),
        ("too long", "a" * 5000, "no such folder"),
        ("too long in part", "base/x/" + "a" * 300, "no such folder"),
        ("too long for the Hub", "base/" + "a" * 300, ""),
        ("with a null", "base\0x", "no such folder"),
        ("of a thousand adapters", "+".join(["base"] * 1000), "adapters"),
        ("that is empty", "", ""),
        ("of the file system", "/", ""),
        ("of the processes", "/proc/self", ""),
        ("a device", "/dev/zero", "not a regular file"),
        ("that forges", EVIL, "no such folder"),
        ("with a half of a pair", "base\ud800", ""),
    ):
        text = json.dumps({"merge_method": "linear", "models": [{"model": "e1"}, {"model": model}]})
        yield Case("recipe", f"recipe: a model {name}", put("recipe.yaml", text), "", said)
    slices = [{"sources": [{"model": "e1", "layer_range": [0, 10**12]}]}]
    text = json.dumps({"merge_method": "passthrough", "slices": slices})
    yield Case("recipe", "recipe: a slice of 10^12 layers", put("recipe.yaml", text), "", "layer")
    yield Case("recipe", "recipe: of 1 TB", sparse("recipe.yaml", 2**40), "recipe.yaml", "bytes")


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


def calibrations() -> Iterator[Case]:
    """Files of measurements."""
    head = {"format": "sensmerge-calibration", "version": 1}
    for name, text, said in (
        ("empty", "", "JSON"),
        ("a list", "[]", "format"),
        ("another file", "{}", "format"),
        ("another version", json.dumps(head | {"version": 2}), "version"),
        ("a version that forges", json.dumps(head | {"version": EVIL}), "version"),
        ("half of it", json.dumps(head), "is missing"),
        ("a key that forges", json.dumps(head | {EVIL: 1}), ""),
        ("no experts", json.dumps(head | {"experts": []}), ""),
        ("experts that are none", json.dumps(head | {"experts": [None, 1, "a"]}), ""),
        ("nested", json.dumps(head)[:-1] + ',"notes":' + "[" * 100_000, "JSON"),
        ("nested 500 deep", json.dumps(head)[:-1] + ',"options":' + "[" * 500 + "]" * 500 + "}",
         "nested deeper"),
        ("10,000 digits", json.dumps(head)[:-1] + ',"base":' + "9" * 10_000 + "}", "digits"),
        ("2 million lists", json.dumps(head)[:-1] + ',"notes":[' + "[]," * 10**6 + "[]]}",
         "lists and objects"),
        ("no UTF-8", b"\xff{}", "UTF-8"),
        ("infinite", json.dumps(head | {"alignment": [[float("inf")]]}), ""),
    ):  # fmt: skip
        yield Case("calibration", f"calibration: {name}", put("c.json", text), "c.json", said)
    yield Case("calibration", "calibration: a pipe", special("c.json", "pipe"), "c.json", "regular")
    yield Case("calibration", "calibration: a device", special("c.json", "/dev/zero"), "c.json",
               "regular")  # fmt: skip
    yield Case("calibration", "calibration: of 1 TB", sparse("c.json", 2**40), "c.json", "bytes")
    for name, text in (("nested", "[" * 100_000), ("a list", "[]"), ("half", '{"tasks":')):
        yield Case("history", f"history: {name}", put("h.json", text), "h.json", "not a history")
    for name, text in (
        ("nested", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}\n"),
        ("a list", "[]\n"),
        ("a text", "hello\n"),
        ("another journal", '{"op_code": 99}\n'),
        ("an operation that is none", '{"op_code": "x", "study_id": []}\n'),
    ):
        yield Case("study", f"study: {name}", put("s.log", text), "s.log", "not a study")
    yield Case("study", "study: a pipe", special("s.log", "pipe"), "s.log", "regular")


def samples() -> Iterator[Case]:
    """Files of samples."""

    def case(name: str, file: str, content: bytes | str, said: str | None) -> Case:
        return Case("samples", f"samples: {name}", put(file, content), file, said)

    blanks = gzip.compress(b" " * 40_000_000, 9)
    for name, file, content, said in (
        ("empty", "s.jsonl", "", "no samples"),
        ("no JSON", "s.jsonl", "hello\n", "line 1"),
        ("nested", "s.jsonl", "[" * 100_000 + "\n", "line 1"),
        ("nested 500 deep", "s.jsonl", '{"text":' + "[" * 500 + "]" * 500 + "}\n", "nested deeper"),
        ("10,000 digits", "s.jsonl", '{"text":' + "9" * 10_000 + "}\n", "digits"),
        ("no UTF-8", "s.jsonl", b'{"text":"\xff"}\n', "UTF-8"),
        ("a list in lines", "s.jsonl", "[1]\n", "line 1"),
        ("40 MB of blanks, packed", "s.jsonl.gz", blanks, "bytes"),
        ("40 MB of lines, packed", "s.jsonl.gz", gzip.compress(b"\n" * 40_000_000, 9), "bytes"),
        (
            "40 MB in a list, packed",
            "s.json.gz",
            gzip.compress(b"[" + b" " * 40_000_000, 9),
            "bytes",
        ),
        ("half of a gzip file", "s.jsonl.gz", gzip.compress(b'{"text":"a"}\n')[:-9], "gzip"),
        ("no gzip file", "s.jsonl.gz", b"hello", "gzip"),
        ("a list of lists", "s.json", "[[]]", "row 1"),
        ("nested in a list", "s.json", "[" * 100_000, "JSON"),
        ("an ending that is none", "s.pickle", "x", "no kind of file"),
        ("no Parquet", "s.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1", "Parquet"),
        ("a key that forges", "s.jsonl", json.dumps({EVIL: 1}) + "\n", "line 1"),
        ("half of a pair", "s.jsonl", '{"text":"\\ud800"}\n', "surrogate"),
        ("sound", "s.jsonl", '{"text":"a"}\n', None),
        ("sound, packed", "s.jsonl.gz", gzip.compress(b'{"text":"a"}\n'), None),
    ):
        yield case(name, file, content, said)
    for what in ("pipe", "/dev/zero", "folder"):
        yield Case("samples", f"samples are {what}", special("s.jsonl", what), "s.jsonl", "")
    yield Case("samples", "samples of 1 TB", sparse("s.jsonl", 2**40), "s.jsonl", "bytes")
    yield Case("samples", "a line of 100 MB", sparse("s.jsonl", 10**8), "s.jsonl", "a line of it")


def outputs() -> Iterator[Case]:
    """Folders to write to, with lists of what an earlier merge is said to have written."""
    head = '{"sensmerge":"0.1.0","files":'
    for name, text in (
        ("names a folder above", head + '["../secret"]}'),
        ("names a whole path", head + '["/etc/passwd"]}'),
        ("is nested", head + "[" * 9000),
        ("is no JSON", "hello"),
        ("names numbers", head + "[1]}"),
    ):
        build = both(put("out/mine", ""), put("out/sensmerge_output.json", text))
        yield Case(
            "force", f"output: the list {name}", build, "sensmerge_output.json", "not a list"
        )
    yield Case("force", "output: the list is a pipe",
               both(put("out/mine", ""), special("out/sensmerge_output.json", "pipe")),
               "sensmerge_output.json", "regular")  # fmt: skip


def cases() -> list[Case]:
    """The corpus."""
    return [
        case
        for kind in (
            headers, places, indices, configs, adapters, recipes, tokenizers, calibrations,
            samples, outputs,
        )
        for case in kind()
    ]  # fmt: skip
