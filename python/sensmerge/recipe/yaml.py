"""Recipes as YAML: read as YAML 1.2 without duplicate keys, written in the keys' order."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import ComposerError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sensmerge.errors import InputError


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        InputError: The file cannot be read, is not YAML, or holds several documents.
    """
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except ComposerError as error:
        if error.problem != "but found another document":
            raise _not_yaml(path, error) from None
        raise InputError(
            f"{path}: holds several documents (stages, with --- between them), which are not "
            "supported; write each into a file of its own and merge them one by one"
        ) from None
    except MarkedYAMLError as error:
        raise _not_yaml(path, error) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


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
