"""Experts as torch models: loaded from safetensors alone, in the dtype they are stored in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.layers import layer_of
from sensmerge.sources import tokenizer_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

# Buffers that old checkpoints store and transformers computes.
_COMPUTED_BUFFER = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class Source:
    """An expert's files.

    Attributes:
        name: What the recipe calls it.
        path: Its folder.
        tokenizer: Its tokenizer, or the base's where it has none.
        borrowed: Whether the tokenizer is the base's.
    """

    name: str
    path: Path
    tokenizer: PreTrainedTokenizerBase
    borrowed: bool


def open_source(name: str, path: Path, base: Path | None) -> Source:
    """Find an expert's files and load its tokenizer.

    Raises:
        InputError: It is no model folder, or neither it nor the base has a tokenizer.
    """
    if not path.is_dir():
        raise InputError(f"expert '{name}': calibration needs the model's folder, not {path}")
    if not (path / "config.json").exists():
        raise InputError(f"{path}: has no config.json, so the expert cannot be run")
    home, borrowed = path, False
    if not tokenizer_files(path):
        if base is None or not tokenizer_files(base):
            raise InputError(
                f"{path}: has no tokenizer files, and there is no base to take them from"
            )
        home, borrowed = base, True
    with _quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                home, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise InputError(f"{home}: its tokenizer cannot be loaded: {_first(error)}") from None
    return Source(name, path, tokenizer, borrowed)


def load(source: Source, dtype: str) -> PreTrainedModel:
    """Load an expert for running: dropout off, no cache.

    Args:
        source: The expert.
        dtype: ``stored``, or ``float32``.

    Raises:
        InputError: transformers cannot load it, or its weights do not fit its config.
    """
    kind = stored_dtype(source.path) if dtype == "stored" else torch.float32
    with _quiet():
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                source.path,
                dtype=kind,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        except Exception as error:
            raise InputError(f"{source.path}: cannot be loaded: {_first(error)}") from None
    model: PreTrainedModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = [_name(key) for key in info.get(problem, ())]
        names = sorted(name for name in names if not name.endswith(_COMPUTED_BUFFER))
        if names:
            raise InputError(
                f"{source.path}: {problem.replace('_', ' ')} when loading: {', '.join(names[:3])}"
                f"{' ...' if len(names) > 3 else ''}; the weights do not fit config.json"
            )
    model.eval()
    return model


def stored_dtype(path: Path) -> torch.dtype:
    """The dtype that holds most of a checkpoint's bytes.

    Raises:
        InputError: None of them is one that is merged.
    """
    sizes: Counter[str] = Counter()
    for tensor in _core.Checkpoint(str(path)).tensors:
        sizes[tensor.dtype] += tensor.nbytes
    stored = sizes.most_common(1)[0][0] if sizes else "nothing"
    if stored not in _DTYPES:
        raise InputError(f"{path}: is stored as {stored}; use sensitivity.dtype: float32")
    return _DTYPES[stored]


def parameter_layers(model: PreTrainedModel, path: Path) -> dict[str, str]:
    """The layer of every parameter, named as in the checkpoint, in the model's order.

    Parameters that are tied are one parameter, under its first name.
    """
    stored = {tensor.name for tensor in _core.Checkpoint(str(path)).tensors}
    layers = {}
    for name, _ in model.named_parameters():
        bare = name.removeprefix(f"{model.base_model_prefix}.")
        layers[name] = layer_of(name if name in stored or bare not in stored else bare)
    return layers


def vocabulary(model: PreTrainedModel) -> int:
    """Number of logits a model gives."""
    head: Any = model.get_output_embeddings()
    return int(head.weight.shape[0])


def check_same_tokens(one: Source, other: Source) -> None:
    """Refuse experts whose token ids mean different things.

    Raises:
        InputError: An id that both tokenizers have stands for two tokens.
    """
    first, second = _tokens(one.tokenizer), _tokens(other.tokenizer)
    for place in sorted(first.keys() & second.keys()):
        if first[place] != second[place]:
            raise InputError(
                f"token {place} is {first[place]!r} for '{one.name}' and {second[place]!r} for "
                f"'{other.name}'; only experts that share a tokenizer can be compared"
            )


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {place: token for token, place in tokenizer.get_vocab().items()}


def _name(key: Any) -> str:
    return str(key[0]) if isinstance(key, tuple) else str(key)


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing; what matters is raised."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
