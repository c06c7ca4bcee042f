"""What two merged models of one recipe have in common, and what not."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from parity.interpolation import tensors

_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")

# Conversations that templates are compared by.
_USER = {"role": "user", "content": "How many moons has Mars?"}
_ASSISTANT = {"role": "assistant", "content": "Two."}
_SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS = (
    [_USER],
    [_USER, _ASSISTANT],
    [_USER, _ASSISTANT, _USER],
    [_SYSTEM, _USER],
    [_SYSTEM, _USER, _ASSISTANT, _USER, _ASSISTANT],
)


@dataclass(frozen=True)
class Comparison:
    """How two outputs compare.

    Attributes:
        said: It in words.
        good: Whether that is parity.
        differ: How many entries differ.
        entries: How many were compared.
    """

    said: str
    good: bool
    differ: int = 0
    entries: int = 0


def outputs(folder: Path, base: Path | None) -> Comparison:
    """Compare the two merged models of a recipe's folder.

    Args:
        folder: Has the outputs in ``ours`` and ``theirs``, and their inputs in ``models``.
        base: The base, for methods that draw at random.
    """
    ours, theirs = folder / "ours", folder / "theirs"
    extra = added_by_mergekit(folder)
    faults = [*configs(ours, theirs, len(extra)), *tokenizers(ours, theirs, extra)]
    one, other = tensors(ours), tensors(theirs)
    faults += [f"only in {where}: {name}" for name, where in differing(one, other)]
    rows = rows_by_token(ours, theirs)
    pairs = []
    for name in sorted(set(one) & set(other)):
        a, b = one[name], other[name]
        if rows is not None and name.endswith(_EMBEDDINGS):
            a, b = a[rows[0]], b[rows[1]]
        if a.shape != b.shape or a.dtype != b.dtype:
            faults.append(f"{name}: {a.dtype} {list(a.shape)}, {b.dtype} {list(b.shape)}")
        else:
            pairs.append((name, a.double(), b.double(), torch.finfo(a.dtype)))
    if faults:
        return Comparison(f"differs: {'; '.join(faults[:3])}", False)
    if base is not None:
        return distribution(tensors(base), [pair[:3] for pair in pairs])
    units = [in_units(a, b, dtype) for _, a, b, dtype in pairs]
    differ, entries = sum(int((each > 1).sum()) for each in units), sum(map(len, units))
    if differ:
        worst = max(float(each.max()) for each in units if len(each))
        said = f"{differ} of {entries} entries differ by up to {worst:.3g} units"
        return Comparison(said, False, differ, entries)
    remarks = [f"its tokenizer library adds `{token}`" for token in extra]
    if prompts(template(ours)) != prompts(template(theirs)):
        remarks.append("its chat template sets other line breaks")
    said = f" ({'; '.join(remarks)})" if remarks else ""
    return Comparison(f"equal to mergekit{said}", True)


def in_units(x: torch.Tensor, y: torch.Tensor, dtype: torch.finfo) -> torch.Tensor:
    """The distance of two tensors in units in the last place of their dtype, less a millionth of
    the largest entry; infinite where one of them is not a number."""
    largest = torch.maximum(x.abs(), y.abs())
    unit = dtype.eps * torch.exp2(torch.floor(torch.log2(largest.clamp(min=dtype.tiny))))
    slack = 1e-6 * float(largest.max()) if largest.numel() else 0.0
    units = ((x - y).abs() - slack).clamp(min=0) / unit
    return torch.where(x.isnan() & y.isnan(), 0.0, units.nan_to_num(nan=torch.inf)).flatten()


def distribution(
    base: dict[str, torch.Tensor], merged: list[tuple[str, torch.Tensor, torch.Tensor]]
) -> Comparison:
    """Compare what two random merges add to the base: its mean and its spread."""
    moved = []
    for place in range(2):
        flat = [
            (pair[place] - base[name].double()).flatten()
            for name, *pair in merged
            if name in base and pair[place].shape == base[name].shape
        ]
        moved.append(torch.cat(flat))
    (a, b), n = moved, len(moved[0])
    spread = float(a.std() / b.std())
    error = math.sqrt(float(a.var() + b.var()) / n)
    shift = abs(float(a.mean() - b.mean())) / max(error, 1e-12)
    said = f"equal in distribution (spread {spread:.3f} of mergekit's)"
    return Comparison(said, abs(spread - 1) < 0.03 and shift < 5)


def configs(ours: Path, theirs: Path, extra: int) -> list[str]:
    """What the two configs say differently of depth and vocabulary."""
    one, other = (json.loads((path / "config.json").read_text()) for path in (ours, theirs))
    if extra and "vocab_size" in other:
        other["vocab_size"] -= extra
    keys = ("num_hidden_layers", "vocab_size", "model_type", "architectures", "layer_types")
    return [
        f"config.json: {key} {one.get(key)} and {other.get(key)}"
        for key in keys
        if one.get(key) is not None and one.get(key) != other.get(key)
    ]


def added_by_mergekit(folder: Path) -> list[str]:
    """Tokens of mergekit's output that no model has.

    transformers gives a tokenizer the special tokens that its class has by default, and mergekit
    writes what transformers made.
    """
    theirs = vocabulary(folder / "theirs")
    known = set().union(*(vocabulary(path) or {} for path in (folder / "models").iterdir()))
    known |= set(vocabulary(folder / "ours") or {})
    return sorted(set(theirs or {}) - known)


def tokenizers(ours: Path, theirs: Path, extra: list[str]) -> list[str]:
    """Tokens that only one of the tokenizers has, and templates that make other prompts."""
    one, other = vocabulary(ours), vocabulary(theirs)
    faults = []
    if one is not None and other is not None:
        here, there = len(set(one) - set(other)), len(set(other) - set(one) - set(extra))
        if here or there:
            faults.append(f"tokens: {here} only here, {there} only there")
    if other is not None and _dense(template(ours)) != _dense(template(theirs)):
        faults.append("chat templates differ")
    return faults


def _dense(template: str | None) -> list[str]:
    """The prompts that a template makes, without white space."""
    return ["".join(prompt.split()) for prompt in prompts(template)]


def prompts(template: str | None) -> list[str]:
    """What a chat template makes of some conversations."""
    if template is None:
        return []
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    made = []
    for messages in CONVERSATIONS:
        for opened in (False, True):
            values = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": opened}
            try:
                made.append(environment.from_string(template).render(messages=messages, **values))
            except TemplateError as error:
                made.append(f"refused: {type(error).__name__}")
    return made


def _refuse(said: str) -> None:
    raise TemplateError(said)


def vocabulary(folder: Path) -> dict[str, int] | None:
    """The ids of a tokenizer's tokens."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    data = json.loads(path.read_text())
    added = {token["content"]: token["id"] for token in data.get("added_tokens", [])}
    return dict(data["model"]["vocab"]) | added


def template(folder: Path) -> str | None:
    """The chat template of a model."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text()
    config = folder / "tokenizer_config.json"
    said = json.loads(config.read_text()).get("chat_template") if config.exists() else None
    return None if said is None else str(said)


def rows_by_token(ours: Path, theirs: Path) -> tuple[list[int], list[int]] | None:
    """Indices of the rows of every token in two models; None where the ids are the same."""
    one, other = vocabulary(ours), vocabulary(theirs)
    if one is None or other is None or one == other:
        return None
    shared = sorted(set(one) & set(other))
    return [one[token] for token in shared], [other[token] for token in shared]


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, str]]:
    """Names that only one of two models has."""
    here = [(name, "sensmerge's") for name in sorted(set(one) - set(other))]
    return here + [(name, "mergekit's") for name in sorted(set(other) - set(one))]
