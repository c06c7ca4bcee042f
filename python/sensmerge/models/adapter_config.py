"""What an adapter's ``adapter_config.json`` says, checked.

Kinds of adapters that are not added to models are refused by name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensmerge.errors import InputError
from sensmerge.reading import object_of

# Keys that change nothing in how stored tensors are to be added to a model.
_WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core",
    "merge_weights", "modules_to_save", "peft_type", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "target_modules", "task_type", "velora_config",
})  # fmt: skip

_READ = frozenset({
    "alpha_pattern", "init_lora_weights", "lora_alpha", "r", "rank_pattern",
    "trainable_token_indices", "use_dora", "use_rslora",
})  # fmt: skip

# Kinds of LoRA that are not added, by the key that turns them on.
_REFUSED = {
    "alora_invocation_tokens": "an activated LoRA, which changes only the tokens after its "
    "invocation and cannot be part of the weights",
    "arrow_config": "an Arrow router over several adapters, which cannot be part of the weights",
    "enable_lora": "a LoRA of parts of a layer, as early versions of PEFT had it",
    "ensure_weight_tying": "a LoRA with tied adapters",
    "kasa_config": "a KaSA adapter, which changes the model's own weights too",
    "layer_replication": "a LoRA for a model with repeated layers",
    "lora_bias": "a LoRA with biases",
    "megatron_config": "a LoRA of Megatron's parallel layers",
    "monteclora_config": "a MonteCLoRA adapter",
    "target_parameters": "a LoRA of parameters that belong to no linear layer",
    "use_bdlora": "a block-diagonal LoRA",
    "use_qalora": "a QALoRA adapter",
}

# Initialisations that leave the model's weights as they are.
_HARMLESS_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")

# Patterns come with the adapter: what repeats in one, and how often and how long it may be.
_REPETITIONS = re.compile(r"[*+]|\{\d*,?\d*\}")
_MOST_REPETITIONS = 3
_LONGEST_PATTERN = 1000
# The longest name of a module.
_LONGEST_NAME = 500

_MERGE_FIRST = "merge it into its model first (PEFT's merge_and_unload)"


@dataclass(frozen=True)
class AdapterConfig:
    """What is needed of an adapter's config.

    Attributes:
        path: The file.
        base: The model that it was made for, as the config names it; empty if it does not.
        use_dora: Whether norms of outputs were trained too.
        use_rslora: Whether the scale is α/√r rather than α/r.
        data: The whole config.
    """

    path: Path
    base: str
    use_dora: bool
    use_rslora: bool
    data: dict[str, Any]

    def rank(self, module: str) -> int:
        """The rank of a module's change."""
        return int(self._by_module("rank_pattern", "r", module))

    def scale(self, module: str) -> float:
        """The number that a module's change is multiplied with."""
        alpha = float(self._by_module("alpha_pattern", "lora_alpha", module))
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def token_places(self, module: str) -> list[int] | None:
        """The rows of a module's embedding that were trained; None if the config names none."""
        said = self.data.get("trainable_token_indices")
        if isinstance(said, dict):
            last = [key for key in said if module == key or module.endswith(f".{key}")]
            said = said[last[0]] if last else None
        if not isinstance(said, list) or not all(_is_count(place) for place in said):
            return None
        return said

    def _by_module(self, patterns: str, otherwise: str, module: str) -> Any:
        """A number for a module: that of the first pattern which matches the end of its name."""
        said = self.data.get(patterns) or {}
        if said and len(module) > _LONGEST_NAME:
            raise InputError(f"{self.path}: the name of the module '{module}' is too long")
        for pattern, number in said.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return number
        return self.data[otherwise]


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read an ``adapter_config.json``.

    Args:
        path: The file.

    Raises:
        InputError: It is no config of an adapter, or of one of a kind that is not added to models.
        OSError: It cannot be read.
    """
    data = object_of(path)
    kind = data.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{path}: is of an adapter of type {kind}; only LORA is added to models; "
                         f"{_MERGE_FIRST}, if its type can be merged")  # fmt: skip
    _check_kind(path, data)
    _check_numbers(path, data)
    base = data.get("base_model_name_or_path")
    return AdapterConfig(
        path=path,
        base=base if isinstance(base, str) else "",
        use_dora=bool(data.get("use_dora")),
        use_rslora=bool(data.get("use_rslora")),
        data=data,
    )


def _check_kind(path: Path, data: dict[str, Any]) -> None:
    """Refuse a kind of LoRA that is not added."""
    for key, value in data.items():
        if not value or key in _WITHOUT_EFFECT or key in _READ:
            continue
        if key in _REFUSED:
            raise InputError(f"{path}: {key}: it is {_REFUSED[key]}; {_MERGE_FIRST}, if PEFT can")
        raise InputError(
            f"{path}: {key}: is not known here and may change what the adapter means; if it does "
            f"not, take it out, otherwise {_MERGE_FIRST}"
        )
    start = data.get("init_lora_weights")
    if isinstance(start, dict | list) or start not in _HARMLESS_INITIALISATIONS:
        raise InputError(
            f"{path}: init_lora_weights: '{start}' changes the model's own weights before "
            "training, so that the adapter does not fit the model that it names: convert it to a "
            "plain LoRA (PEFT's save_pretrained with path_initial_model_for_weight_conversion), "
            "or, if the model is the changed one, write true there"
        )


def _check_numbers(path: Path, data: dict[str, Any]) -> None:
    """Refuse ranks and scales that are none."""
    for key, single, holds, words in (
        ("rank_pattern", "r", _is_rank, "a whole number above 0"),
        ("alpha_pattern", "lora_alpha", _is_number, "a number"),
    ):
        if not holds(data.get(single)):
            raise InputError(f"{path}: {single}: expected {words}, not {data.get(single)!r}")
        patterns = data.get(key) or {}
        if not isinstance(patterns, dict):
            raise InputError(f"{path}: {key}: expected a mapping")
        for pattern, number in patterns.items():
            if not holds(number):
                raise InputError(f"{path}: {key}: expected {words} for '{pattern}', not {number!r}")
            _check_pattern(path, key, pattern)


def _check_pattern(path: Path, key: str, pattern: str) -> None:
    """Refuse what is no pattern, and one that may take for ever to match.

    A pattern that repeats what repeats tries more ways than there are atoms; one with a few
    repetitions tries at most a power of the name's length.
    """
    plain = re.sub(r"\\.", "", pattern)
    many = len(_REPETITIONS.findall(plain)) > _MOST_REPETITIONS or len(pattern) > _LONGEST_PATTERN
    if many or re.search(r"\)(?:[*+]|\{)", plain) or re.search(r"\\[1-9]|\(\?P=", pattern):
        raise InputError(
            f"{path}: {key}: '{pattern}' is too long, repeats a group, refers back to one, or has "
            f"more than {_MOST_REPETITIONS} repetitions; write the modules' names"
        )
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"{path}: {key}: '{pattern}' is no pattern: {error}") from None


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        # A whole number that is larger than any float.
        return False


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_rank(value: Any) -> bool:
    return _is_count(value) and value > 0
