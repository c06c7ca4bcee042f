"""Hostile cases: weight files, indices, and what is no file at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from hostile_files import (
    EVIL,
    INDEX,
    NAME,
    Case,
    Json,
    both,
    entry,
    framed,
    held,
    put,
    sparse,
    special,
)


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
