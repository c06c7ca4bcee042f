"""Experts as torch models: loaded from safetensors alone, in the dtype they are stored in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from sensmerge import _core
from sensmerge.calibration import vetted
from sensmerge.calibration.adapted import Adapted, Late
from sensmerge.calibration.mapped import mapped
from sensmerge.calibration.surroundings import quiet_transformers
from sensmerge.calibration.vocabularies import Vocabulary
from sensmerge.errors import InputError, first_line
from sensmerge.models.dtypes import STORED, is_float
from sensmerge.models.folders import read_config, tokenizer_files
from sensmerge.models.layers import layer_of, text_config
from sensmerge.models.quantised import refusal
from sensmerge.reading import is_folder, mode_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sensmerge.models import Model

# One of these holds a tokenizer's vocabulary.
_VOCABULARY_FILES = {
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
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
        model: The expert, opened; needed if adapters are added to it.
    """

    name: str
    path: Path
    tokenizer: PreTrainedTokenizerBase
    borrowed: bool
    model: Model | None = None

    def fingerprint(self) -> str:
        """A short digest of its weights, adapters included."""
        if self.model is None:
            return _core.Checkpoint(str(self.path)).fingerprint()
        return self.model.fingerprint()

    @property
    def vocabulary(self) -> int | None:
        """The size of its vocabulary, where its adapters change it."""
        if self.model is None or not self.model.changes:
            return None
        size = text_config(self.model.config).get("vocab_size")
        return size if isinstance(size, int) else None


def open_source(name: str, path: Path, base: Path | None, model: Model | None = None) -> Source:
    """Find an expert's files and load its tokenizer.

    Args:
        name: What the recipe calls it.
        path: Its folder.
        base: The folder of the base, whose tokenizer it takes if it has none.
        model: The expert, opened; needed if adapters are added to it.

    Raises:
        InputError: It is no model folder, or neither it nor the base has a tokenizer.
        OSError: A file of it cannot be looked at.
    """
    if not is_folder(path):
        raise InputError(f"expert '{name}': calibration needs the model's folder, not {path}")
    if mode_of(path / "config.json") is None:
        raise InputError(f"{path}: has no config.json, so the expert cannot be run")
    if mode_of(path / "adapter_config.json") is not None and find_spec("peft"):
        raise InputError(
            f"{path}: transformers would apply the adapter of its adapter_config.json when running "
            "the expert, and a merge would not; move that file elsewhere"
        )
    config = read_config(path)
    quantised = refusal(path, _core.Checkpoint(str(path)))
    if quantised is not None:
        raise InputError(quantised)
    kind = config.get("model_type")
    if "auto_map" in config and kind not in transformers.CONFIG_MAPPING:
        raise InputError(
            f"{path}: its config.json has model_type '{kind}', which transformers knows only by "
            "the code in that folder (auto_map); no such code is run, so the expert cannot be "
            "measured; merge it without sensitivity"
        )
    home, borrowed = path, False
    if not _has_tokenizer(path):
        if base is None or not _has_tokenizer(base):
            raise InputError(
                f"{path}: has no tokenizer files, and there is no base to take them from"
            )
        home, borrowed = base, True
    return Source(name, path, vetted.tokenizer_of(home), borrowed, model)


def load(source: Source, dtype: str) -> PreTrainedModel:
    """Load an expert for running: dropout off, no cache.

    Weights that are stored in the dtype they are run in are views of the mapped files: they are
    not read yet, and must not be written to.

    Args:
        source: The expert.
        dtype: ``stored``, or ``float32``.

    Raises:
        InputError: transformers cannot load it, or its weights do not fit its config.
    """
    return _load(source, dtype, streamed=False)[0]


def load_streamed(source: Source) -> tuple[PreTrainedModel, Late]:
    """Load an expert for running it block by block, in the stored dtype.

    Returns:
        The model, and the parameters whose weights are to be written into memory while they are
        needed: those that adapters change.

    Raises:
        InputError: As :func:`load`.
    """
    return _load(source, "stored", streamed=True)


def _load(source: Source, dtype: str, *, streamed: bool) -> tuple[PreTrainedModel, Late]:
    kind = stored_dtype(source.path) if dtype == "stored" else torch.float32
    weights = mapped(source.path, on_disk=streamed)
    adapted = Adapted.of(source.model)
    size = source.vocabulary
    if adapted is None:
        return assemble(source.path, weights, kind), {}
    late: Late = {}
    at_once = list(adapted.tensors)
    if streamed:
        resized = [name for name in at_once if adapted.is_resized(name, weights[name])]
        first = weights | {name: adapted.read(name, weights[name]) for name in resized}
        model = assemble(source.path, first, kind, size)
        late = adapted.late(model, weights)
        at_once = adapted.missing(model, weights, late)
        if set(at_once) <= set(resized):
            return model, late
        # Converted when they are loaded, and so to be changed before.
        del model
    weights |= {name: adapted.read(name, weights[name]) for name in at_once}
    model = assemble(source.path, weights, kind, size)
    return model, adapted.late(model, weights) if streamed else {}


def assemble(
    path: Path, weights: dict[str, torch.Tensor], dtype: torch.dtype, rows: int | None = None
) -> PreTrainedModel:
    """Put weights into the model that a folder's config describes: dropout off, no cache.

    Weights that need no conversion are not copied.

    Args:
        path: The folder.
        weights: Every weight, named as in a checkpoint.
        dtype: The dtype to run in.
        rows: The number of tokens; None for that of the config.

    Raises:
        InputError: transformers cannot load it, or the weights do not fit the config.
    """
    config = vetted.config_of(path, weights)
    with quiet_transformers():
        try:
            if rows is not None:
                config.get_text_config().vocab_size = rows
            architecture: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            vetted.check_size(path, architecture, config, weights)
            loaded: Any = architecture.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                dtype=dtype,
                attn_implementation=vetted.implementation(architecture),
                output_loading_info=True,
            )
        except InputError:
            raise
        except KeyError:
            raise InputError(
                f"{path}: transformers has no causal language model for its config"
            ) from None
        except Exception as error:
            raise InputError(f"{path}: cannot be loaded: {first_line(error)}") from None
    model: PreTrainedModel = loaded[0]
    _check_loaded(path, loaded[1])
    model.eval()
    return model


def copied_bytes(model: PreTrainedModel) -> int:
    """Bytes of a model's weights that had to be converted, so that they are no mapped file's."""
    return sum(
        parameter.nbytes
        for parameter in model.parameters()
        # Memory that torch allocated can be resized, a mapped file cannot.
        if parameter.untyped_storage().resizable()
    )


def _check_loaded(path: Path, info: dict[str, Any]) -> None:
    """Refuse a model that lacks weights, and a checkpoint with weights of no use to the model."""
    problems = {
        "missing_keys": "missing keys",
        "mismatched_keys": "keys of another shape",
        "unexpected_keys": "unexpected keys",
        "error_msgs": "errors",
    }
    for problem, words in problems.items():
        names = [str(key[0] if isinstance(key, tuple) else key) for key in info.get(problem, ())]
        names = sorted(name for name in names if not name.endswith(_COMPUTED_BUFFER))
        if names:
            raise InputError(
                f"{path}: {words} when loading: {', '.join(names[:3])}"
                f"{' ...' if len(names) > 3 else ''}; the weights do not fit config.json"
            )


def _has_tokenizer(path: Path) -> bool:
    return any(file.name in _VOCABULARY_FILES for file in tokenizer_files(path))


def stored_dtype(path: Path) -> torch.dtype:
    """The floating-point dtype that holds most of a checkpoint's bytes.

    Raises:
        InputError: It is none of those that are merged.
    """
    return main_dtype(str(path), _core.Checkpoint(str(path)))


def main_dtype(name: str, checkpoint: _core.Checkpoint) -> torch.dtype:
    """The floating-point dtype that holds most of a checkpoint's bytes.

    Args:
        name: The model's name, for messages.
        checkpoint: The checkpoint, on disk or in memory.

    Raises:
        InputError: It is none of those that are merged.
    """
    sizes: Counter[str] = Counter()
    for tensor in checkpoint.tensors:
        if is_float(tensor.dtype):
            sizes[tensor.dtype] += tensor.nbytes
    stored = sizes.most_common(1)[0][0] if sizes else "no floating-point dtype"
    known = STORED.get(stored)
    if known is None or not known.merged:
        raise InputError(f"{name}: is stored as {stored}; use sensitivity.dtype: float32")
    dtype: torch.dtype = getattr(torch, known.torch)
    return dtype


@dataclass(frozen=True)
class Layers:
    """The layers that a model's parameters belong to.

    Attributes:
        of: The layer of every parameter, named as in the checkpoint, in the model's order. A
            parameter that layers share is in the one that the checkpoint stores it under.
        tied: For every other layer that shares a parameter: the layer that the parameter is in.
    """

    of: dict[str, str]
    tied: dict[str, str]


def parameter_layers(model: PreTrainedModel, path: Path) -> Layers:
    """Find the layer of every parameter.

    Raises:
        InputError: A parameter has no counterpart in the checkpoint, or one of integers.
    """
    stored = {tensor.name: tensor.dtype for tensor in _core.Checkpoint(str(path)).tensors}
    known = {layer_of(name) for name in stored}
    # A checkpoint may have been saved without the language modelling head around the model.
    prefix = f"{model.base_model_prefix}."
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        bare = name.removeprefix(prefix)
        candidates = (name, bare, *before_renaming(model, name, parameter))
        home = next((one for one in candidates if layer_of(one) in known), name)
        names.setdefault(id(parameter), []).append(home)
    found: dict[str, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        aliases = names[id(parameter)]
        # Experts of a mixture are one parameter, and many tensors of one block in the checkpoint.
        home = next((alias for alias in aliases if alias in stored), aliases[0])
        found[name] = layer_of(home)
        if not is_float(stored.get(home, "F32")):
            raise InputError(
                f"{path}, tensor '{home}': is stored as {stored[home]}, which transformers would "
                "read as if it were the weights; give the expert as it was before quantization"
            )
        if found[name] not in known:
            raise InputError(
                f"{path}: stores no tensor for the layer of parameter '{name}', so its sensitivity "
                "has no place in a merge; this architecture cannot be calibrated"
            )
        tied |= {layer: found[name] for layer in map(layer_of, aliases) if layer != found[name]}
    return Layers(found, tied)


def before_renaming(
    model: PreTrainedModel, name: str, tensor: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint that transformers turns into a parameter when it loads them.

    Args:
        model: The model.
        name: The parameter's name in it.
        tensor: The parameter, or its gradient.
    """
    with suppress(ImportError):
        from transformers.core_model_loading import revert_weight_conversion

        reverted: dict[str, torch.Tensor] = revert_weight_conversion(model, {name: tensor.detach()})
        return reverted
    return {}


def stored_tensors(
    model: PreTrainedModel, name: str, tensor: torch.Tensor, stored: Container[str]
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint that a parameter is made of, by their names there.

    Args:
        model: The model.
        name: The parameter's name in it.
        tensor: The parameter, or what belongs to it entry by entry.
        stored: The names of the checkpoint's tensors, which may lack the prefix of the base model.
    """
    prefix = f"{model.base_model_prefix}."
    found = before_renaming(model, name, tensor) or {name: tensor}
    return {
        next((one for one in (each, each.removeprefix(prefix)) if one in stored), each): part
        for each, part in found.items()
    }


def vocabulary(model: PreTrainedModel) -> int:
    """Number of logits a model gives."""
    head: Any = model.get_output_embeddings()
    return int(head.weight.shape[0])


def known(source: Source) -> Vocabulary:
    """The tokens of an expert, and the number of ids that it has embeddings for, by its config.

    Raises:
        InputError: transformers does not know the config.
    """
    stored = _core.Checkpoint(str(source.path)).tensors
    config = vetted.config_of(source.path, (tensor.name for tensor in stored))
    size = source.vocabulary or int(config.get_text_config().vocab_size)
    return Vocabulary(source.name, source.tokenizer.get_vocab(), size)
