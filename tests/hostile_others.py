"""Hostile cases: recipes, calibrations, samples, and folders to write to."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

from hostile_files import (
    EVIL,
    Case,
    both,
    put,
    sparse,
    special,
)


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
