"""Recipes as YAML: read as YAML 1.2 without duplicate keys, written in the keys' order."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sensmerge.errors import InputError


def read_yaml(path: Path) -> tuple[list[Any], list[str]]:
    """The documents that a file holds, one after the other, and what is wrong with it as a file.

    What is wrong is a second value for a key, or a second document: the rest can be looked at all
    the same, so that one run names everything.

    Raises:
        InputError: It cannot be read, or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        wrong = []
        try:
            documents = _documents(text)
        except DuplicateKeyError as error:
            wrong.append(_twice(path, error))
            documents = _documents(text, duplicates=True)
    except MarkedYAMLError as error:
        raise _not_yaml(path, error) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: {error.reason}; save it as UTF-8") from None
    except YAMLError as error:
        raise InputError(f"{path}: not YAML: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if len(documents) > 1:
        wrong.append(
            f"{path}: holds several documents (stages, with --- between them), which are not "
            "supported; write each into a recipe of its own, merge them in turn, and where a later "
            "one names a stage, name the folder that it was written to"
        )
    return documents, wrong


def _documents(text: str, *, duplicates: bool = False) -> list[Any]:
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = duplicates
    return list(yaml.load_all(text))


def _twice(path: Path, error: DuplicateKeyError) -> str:
    mark = error.problem_mark
    line = f", line {mark.line + 1}" if mark is not None else ""
    found = re.search(r'duplicate key "(.*?)" with value', str(error.problem))
    key = "a key" if found is None else f"'{found.group(1)}'"
    return f"{path}{line}: {key} stands here a second time; keep one of the two"


def _not_yaml(path: Path, error: MarkedYAMLError) -> InputError:
    mark = error.problem_mark
    line = f", line {mark.line + 1}" if mark is not None else ""
    return InputError(f"{path}{line}: not YAML: {error.problem}")


def to_yaml(data: dict[str, Any], *, flow: bool | None = False, width: int | None = None) -> str:
    """A recipe's keys and values as YAML, in their order.

    Args:
        data: Keys and values.
        flow: Whether lists and mappings are written in brackets; None: only those without others
            inside are.
        width: Longest line, in characters.
    """
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = flow
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    if width is not None:
        yaml.width = width
    yaml.dump(data, text)
    return text.getvalue()
