"""mergekit's options: those with a meaning here are mapped to it, the others make one note."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from sensmerge.cli.options import FOLDER
from sensmerge.errors import InputError

_KEY = "sensmerge.without_effect"

_CPU = "merges run on the processor"
_STREAMED = "models are streamed from their files"
_LORA = "adapters are added while merging, and no merged copy is kept"

# Options of mergekit 0.1.5 that change nothing here, and why.
_SWITCHES = {
    "allow-crimes": "models of different architectures are not merged",
    "async-write": _STREAMED,
    "clone-tensors": "every output tensor is written for itself",
    "cuda": _CPU,
    "gpu-rich": _CPU,
    "lazy-unpickle": _STREAMED,
    "low-cpu-memory": _STREAMED,
    "multi-gpu": _CPU,
    "read-to-gpu": _CPU,
    "trust-remote-code": "code that comes with a model is never run",
    "unsafe-truncate-embeddings": "rows are matched by token, whatever their number",
    "verbose": "everything worth knowing is printed",
}
_VALUES = {
    "lora-merge-cache": _LORA,
    "lora-merge-dtype": _LORA,
    "write-threads": "every thread writes",
}

_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}

Command = Callable[..., Any]


def options(command: Command) -> Command:
    """Let a command take mergekit's options beside its own; they are not in its help.

    The command gets ``out_shard_size`` (bytes, None if it is not given), ``copy_tokenizer``,
    ``write_model_card``, ``random_seed``, ``lazy`` and ``out_path``.
    """
    meant: list[tuple[list[str], dict[str, Any]]] = [
        (["--out-shard-size"], {"callback": _shard_size}),
        (["--copy-tokenizer/--no-copy-tokenizer"], {"default": True}),
        (["--write-model-card/--no-write-model-card"], {"default": True}),
        (["--random-seed"], {"type": click.IntRange(0, 2**64 - 1)}),
        (["--out-path"], {"type": FOLDER}),
        (["--lazy/--no-lazy"], {"default": True}),
        (["--transformers-cache"], {"callback": _cache, "expose_value": False}),
    ]
    ignored: list[tuple[list[str], dict[str, Any]]] = [
        (["-v", f"--{name}/--no-{name}"] if name == "verbose" else [f"--{name}/--no-{name}"], {})
        for name in _SWITCHES
    ]
    ignored += [([f"--{name}"], {}) for name in _VALUES]
    ignored.append((["--safe-serialization/--no-safe-serialization"], {"default": True}))
    for names, keywords in meant:
        command = click.option(*names, hidden=True, **keywords)(command)
    for names, keywords in ignored:
        command = click.option(
            *names, hidden=True, expose_value=False, callback=_remember, **keywords
        )(command)
    return command


def note() -> str | None:
    """One sentence on the given options that have no effect; None if there are none."""
    given: dict[str, str] = click.get_current_context().meta.get(_KEY, {})
    if not given:
        return None
    named: dict[str, list[str]] = {}
    for option, why in given.items():
        named.setdefault(why, []).append(option)
    said = "; ".join(f"{', '.join(options)} ({why})" for why, options in named.items())
    return f"without effect here: {said}"


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    name = str(option.name).replace("_", "-")
    if context.get_parameter_source(str(option.name)) is not ParameterSource.COMMANDLINE:
        return
    given = context.meta.setdefault(_KEY, {})
    if name == "safe-serialization":
        if not value:
            given[f"--no-{name}"] = "weights are always written as safetensors"
    elif value or name in _VALUES:
        given[f"--{name}"] = _SWITCHES.get(name) or _VALUES[name]


def _shard_size(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """Bytes, written as mergekit does: 5B are five billion."""
    if value is None:
        return None
    number, unit = (value[:-1], _UNITS.get(value[-1:].upper())) if value else ("", None)
    if unit is None:
        number, unit = value, 1
    if not number.isdecimal() or int(number) == 0:
        raise InputError(f"--out-shard-size: '{value}' is not a size; write it like 5B or 500M")
    return int(number) * unit


def _cache(context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Where models from the Hub are kept; read by huggingface_hub when it is first imported."""
    if value is not None:
        os.environ["HF_HUB_CACHE"] = value
