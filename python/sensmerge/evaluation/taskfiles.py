"""Task files of the user's own: what in them would run code, which is refused unless trusted.

A task file is data as long as it names no function, metric, dataset or option of generation that
is somebody's code, and its templates are kept from Python's own objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lm_eval.api import metrics as _metrics  # noqa: F401  (registers the metrics)
from lm_eval.api.registry import metric_registry

from sensmerge.errors import InputError, first_line
from sensmerge.reading import is_folder, text

# The readers of the library `datasets` that read data alone.
FORMATS = ("arrow", "csv", "json", "parquet", "text")

# Options of generation that are numbers, words and switches.
_GENERATION = (
    "do_sample", "length_penalty", "max_gen_toks", "max_length", "max_new_tokens",
    "min_new_tokens", "no_repeat_ngram_size", "num_beams", "repetition_penalty", "temperature",
    "top_k", "top_p", "until",
)  # fmt: skip


def files(folder: Path) -> list[Path]:
    """The task files in a folder, and in those within it.

    Raises:
        InputError: It is no folder.
    """
    if not is_folder(folder):
        raise InputError(f"{folder}: there is no such folder of task files")
    return sorted(folder.rglob("*.yaml"))


def check(folder: Path) -> None:
    """Refuse task files that would run code.

    Args:
        folder: The folder.

    Raises:
        InputError: One does, or cannot be read; a line for each.
        OSError: One cannot be read.
    """
    wrong = [fault for path in files(folder) for fault in _faults(path, folder)]
    if wrong:
        raise InputError(wrong, option="trust_tasks")


def _faults(path: Path, folder: Path) -> Iterator[str]:
    try:
        said = yaml.load(text(path), Loader=_Loader)
    except _FunctionError as error:
        yield f"{path}: !function {error}: is Python that would be run"
        return
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: is not YAML: {first_line(error)}") from None
    if not isinstance(said, dict):
        return
    for included in _listed(said.get("include")):
        place = (path.parent / str(included)).resolve()
        if not place.is_relative_to(folder.resolve()):
            yield f"{path}: include: '{included}' lies outside {folder}"
        elif place.suffix != ".yaml":
            yield from _faults(place, folder)
    dataset = said.get("dataset_path")
    if dataset is not None and "/" not in str(dataset) and dataset not in FORMATS:
        yield f"{path}: dataset_path: '{dataset}' is none of {', '.join(FORMATS)}"
    for metric in _listed(said.get("metric_list")):
        name = metric.get("metric") if isinstance(metric, dict) else metric
        own = name not in metric_registry or metric.get("hf_evaluate")
        if own and said.get("process_results") is None:
            yield f"{path}: metric: '{name}' is none of the harness's own"
    for key in said.get("generation_kwargs") or {}:
        if key not in _GENERATION:
            yield f"{path}: generation_kwargs.{key}: is no plain option of generation"
    for key in ("use_prompt", "class", "custom_dataset"):
        if said.get(key) is not None:
            yield f"{path}: {key}: would read or run other files"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


class _FunctionError(Exception):
    """A task file names a function."""


def _refuse(loader: Any, node: Any) -> Any:
    raise _FunctionError(loader.construct_scalar(node))


# YAML as the harness reads it, by the same library, in which a function is an error.
_Loader: Any = type("_Loader", (yaml.SafeLoader,), {})
_Loader.add_constructor("!function", _refuse)
