"""Configs and tokenizers as transformers gets them: as data, and nothing that reaches further.

A config can name a kernel for transformers to download and run, packages to import for a
quantisation, code beside the weights, and files anywhere; and it can describe a model that fits no
memory. Whatever transformers reads of a model's folder, it reads by way of this module.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from sensmerge.calibration.surroundings import panics_as_errors, quiet_transformers
from sensmerge.errors import InputError, first_line
from sensmerge.models.folders import read_config
from sensmerge.models.layers import DEPTHS, kinds, text_config
from sensmerge.reading import LARGE, object_of, opened, own_file

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# Keys that say by which code a part of a model is computed end like this.
_IMPLEMENTATIONS = ("_implementation", "_implementation_internal")

# Keys that make transformers import packages, run or fetch something, or read other files; that
# change what models return; and those of classifiers, of which a list is made for each label.
_DROPPED = frozenset({
    "_name_or_path", "attribute_map", "auto_map", "base_config_key", "compression_config",
    "custom_pipelines", "distributed_config", "extra_files", "fusion_config", "gguf_file",
    "id2label", "kernel_config", "label2id", "name_or_path", "num_labels", "output_attentions",
    "output_hidden_states", "quantization_config", "return_dict", "sub_configs",
    "sub_configs_defaults", "transformers_weights", "use_kernels", "use_pretrained_backbone",
})  # fmt: skip

# Keys of a tokenizer's config that name code or files; so do all that end in _file.
_DROPPED_OF_TOKENIZERS = ("auto_map", "custom_pipelines", "name_or_path")

# Files that tokenizers are made of end like this.
_ENDINGS = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".spm", ".bpe", ".codes")
_MORE_TEMPLATES = "additional_chat_templates"

# Layers of a part that the weights need not hold, such as a vision tower, and experts of a layer.
_MOST_LAYERS = 256
_MOST_EXPERTS = 4096

# Entries that a model may have beside twice those of its weights: tables that it computes.
_SPARE = 2**24


def config_of(path: Path, tensors: Iterable[str]) -> PretrainedConfig:
    """A model's config, for transformers.

    Args:
        path: The model's folder.
        tensors: The names of its weights.

    Raises:
        InputError: transformers cannot read it, it names a kernel, or it has more layers than the
            weights.
        OSError: It cannot be read.
    """
    said = read_config(path)
    check_depth(path, said, tensors)
    with _copied(path, {"config.json": _safe(path, said)}) as folder:
        return _config(path, folder)


def tokenizer_of(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder.

    Raises:
        InputError: transformers cannot load it, or one of its files is a link that leads outside
            the folder, not a regular file, or too large.
        OSError: A file cannot be read.
    """
    written = {"config.json": _safe(path, read_config(path))}
    said = own_file(path, "tokenizer_config.json")
    if said is not None:
        written[said.name] = {
            key: value
            for key, value in object_of(said, LARGE).items()
            if key not in _DROPPED_OF_TOKENIZERS and not key.endswith("_file")
        }
    with _copied(path, written, _tokenizer_files(path)) as folder, quiet_transformers():
        try:
            with panics_as_errors():
                tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
        except Exception as error:
            reason = first_line(error).replace(str(folder), str(path))
            raise InputError(f"{path}: its tokenizer cannot be loaded: {reason}") from None
    tokenizer.name_or_path = str(path)
    return tokenizer


def implementation(architecture: Any) -> str:
    """By which of transformers' own code attention is computed: what it takes where it may choose.

    Args:
        architecture: The model's class.
    """
    return "sdpa" if getattr(architecture, "_supports_sdpa", False) else "eager"


def check_depth(path: Path, config: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Refuse a config that describes more layers than there are weights for.

    Args:
        path: The model's folder.
        config: Its config.
        tensors: The names of its weights.

    Raises:
        InputError: It does; the message names the key.
    """
    stored = max((kind.count for kind in kinds(tensors)), default=0)
    main = [config, text_config(dict(config))]
    for part in _parts(config):
        most = stored if any(part is each for each in main) else max(stored, _MOST_LAYERS)
        for key, value in part.items():
            if not isinstance(value, int):
                continue
            if key in DEPTHS and value > most:
                raise InputError(
                    f"{path / 'config.json'}: {key}: is {value}, and the weights have {stored} "
                    "layers; config.json and weights do not belong together"
                )
            if "expert" in key and value > _MOST_EXPERTS:
                raise InputError(
                    f"{path / 'config.json'}: {key}: is {value}; at most {_MOST_EXPERTS} are built"
                )


def check_size(
    path: Path, architecture: Any, config: PretrainedConfig, weights: Mapping[str, torch.Tensor]
) -> None:
    """Refuse a config that describes a far larger model than there are weights for.

    The model is built without memory for its parameters, which are then counted.

    Args:
        path: The model's folder.
        architecture: The model's class.
        config: Its config.
        weights: Its weights.

    Raises:
        InputError: It does.
    """
    with torch.device("meta"):
        model = architecture(copy.deepcopy(config))
    described = sum(part.numel() for part in (*model.parameters(), *model.buffers()))
    stored = sum(weight.numel() for weight in weights.values())
    if described > 2 * stored + _SPARE:
        raise InputError(
            f"{path / 'config.json'}: describes a model of {described} numbers, and the weights "
            f"are {stored}; config.json and weights do not belong together"
        )


def _config(path: Path, folder: Path) -> PretrainedConfig:
    with quiet_transformers():
        try:
            config: PretrainedConfig = transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            reason = first_line(error).replace(str(folder), str(path))
            raise InputError(f"{path}: cannot be loaded: {reason}") from None
    config.name_or_path = str(path)
    return config


def _safe(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A config without what transformers would do more for than describe a model."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if key.endswith(_IMPLEMENTATIONS):
            named = next((name for name in _texts(value) if "/" in name), None)
            if named is not None:
                raise InputError(
                    f"{path / 'config.json'}: {key}: '{named}' names code to download and run; "
                    "no such code is run, so the expert cannot be measured; take the key out, or "
                    "merge it without sensitivity"
                )
        elif not (key in _DROPPED or key.startswith("__") or _is_method(key)):
            kept[key] = _safe(path, value) if isinstance(value, dict) else value
    return kept


def _is_method(key: str) -> bool:
    return callable(getattr(transformers.PretrainedConfig, key, None))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A config, and those in it."""
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _parts(value)


def _tokenizer_files(path: Path) -> list[str]:
    """The files in a folder that a tokenizer may be made of, each looked at."""
    more = path / _MORE_TEMPLATES
    names = [each.name for each in path.iterdir()]
    names += [f"{more.name}/{each.name}" for each in more.iterdir()] if more.is_dir() else []
    found = [name for name in sorted(names) if name.endswith(_ENDINGS)]
    for name in found:
        file = own_file(path, name)
        if file is not None:
            with opened(file, LARGE):
                pass
    return found


@contextmanager
def _copied(path: Path, written: Mapping[str, Any], linked: Iterable[str] = ()) -> Iterator[Path]:
    """A temporary folder with some of a model's files, and others as they are to be read."""
    with tempfile.TemporaryDirectory(prefix="sensmerge-") as name:
        folder = Path(name)
        for file in linked:
            if file not in written:
                (folder / file).parent.mkdir(exist_ok=True)
                _link((path / file).resolve(), folder / file)
        for file, data in written.items():
            (folder / file).write_text(json.dumps(data), encoding="utf-8")
        yield folder


def _link(file: Path, place: Path) -> None:
    try:
        os.symlink(file, place)  # noqa: PTH211
    except OSError:
        # Not every system lets everybody make links.
        shutil.copyfile(file, place)
