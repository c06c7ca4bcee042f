"""Recipes as YAML: numbers and words as in YAML 1.1, which mergekit reads; written likewise.

A key that stands twice in one mapping is reported, and its last value counts, as in mergekit.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from sensmerge.errors import InputError

# What a plain scalar stands for, by YAML 1.1 as PyYAML understands it. 1e-9 without a point is
# text, which whoever expects a number converts. Dates stay text: a model may have such a name.
_SCALARS = {
    "bool": "(?i:yes|no|true|false|on|off)",
    "float": r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    r"|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "int": r"[-+]?0b[01][01_]*|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+"
    r"|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+",
    "merge": "<<",
    "null": "~|null|Null|NULL|",
}
_PATTERNS = [
    (f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$"))
    for kind, pattern in _SCALARS.items()
]
# PyYAML takes these plain scalars for something else than text; they are written in quotes.
_QUOTED = ("tag:yaml.org,2002:value", re.compile(r"(?:=|[0-9]{4}-[0-9][0-9]?-[0-9][0-9]?.*)$"))
# A word in mixed case, such as tRue, is text.
_CASED = re.compile("[a-z]+|[A-Z]+|[A-Z][a-z]+")


@dataclass(frozen=True)
class Documents:
    """What a file of YAML holds.

    Attributes:
        documents: Its documents, in their order.
        twice: A sentence for each key that stands twice in one mapping.
    """

    documents: list[Any]
    twice: list[str]


def read_yaml(path: Path) -> Documents:
    """The documents that a file holds.

    Raises:
        InputError: It cannot be read, or is not YAML.
    """
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.Resolver, yaml.Constructor = _Resolver, _Constructor
        documents = list(yaml.load_all(path.read_text(encoding="utf-8")))
        # A last line of --- begins a document without content.
        documents = [each for each in documents if each is not None]
        return Documents(documents, list(yaml.constructor.twice))
    except MarkedYAMLError as error:
        raise _not_yaml(path, error) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: {error.reason}; save it as UTF-8") from None
    except (YAMLError, RecursionError) as error:
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
    yaml.Resolver, yaml.Representer = _WritingResolver, _Representer
    yaml.default_flow_style = flow
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    if width is not None:
        yaml.width = width
    yaml.dump(data, text)
    return text.getvalue()


class _Resolver(VersionedResolver):
    """The kinds of plain scalars, whatever version a document claims to have."""

    patterns: ClassVar = _PATTERNS

    @property
    def processing_version(self) -> Any:
        return (1, 1)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            for tag, pattern in self.patterns:
                if pattern.match(value) and (tag[-4:] != "bool" or _CASED.fullmatch(value)):
                    return Tag(suffix=tag)
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)


class _WritingResolver(_Resolver):
    """The same, with those that only PyYAML takes for something else than text."""

    patterns: ClassVar = [*_PATTERNS, _QUOTED]


class _Constructor(SafeConstructor):
    """Builds mappings of the last value of each key."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.twice: list[str] = []

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping; see ruamel.yaml."""
        if isinstance(node, MappingNode):
            last: dict[Any, Any] = {}
            for key, value in node.value:
                name = (str(key.tag), key.value) if isinstance(key, ScalarNode) else id(key)
                if name in last:
                    self.twice.append(_twice(last[name][0], key))
                last[name] = (key, value)
            node.value = list(last.values())
        return super().construct_mapping(node, deep=deep)


def _twice(first: Any, second: Any) -> str:
    one, two = first.start_mark.line + 1, second.start_mark.line + 1
    return f"line {two}: '{second.value}' stands a second time, after line {one}; the last counts"


class _Representer(SafeRepresenter):
    """Writes numbers so that YAML 1.1 takes them for numbers."""

    def represent_float(self, data: Any) -> Any:
        """A number; 1e-05 needs a point."""
        node = super().represent_float(data)
        if "." not in node.value:
            node.value = node.value.replace("e", ".0e", 1)
        return node


_Representer.add_representer(float, _Representer.represent_float)
