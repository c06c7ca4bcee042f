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
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from sensmerge.errors import InputError, first_line
from sensmerge.reading import DEEPEST, text

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
# The most values, keys included, that a file can have: 100 experts with a number for each of 90
# layers have 9,000.
_MOST_NODES = 20_000
# A number of more characters is none that anybody wrote.
_LONGEST_NUMBER = 100
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
        InputError: It cannot be read, is not YAML, or holds more than a recipe can.
    """
    try:
        return parse_yaml(text(path), path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def parse_yaml(written: str, path: Path) -> Documents:
    """The documents in a file's text.

    Args:
        written: The text.
        path: The file, for messages.

    Raises:
        InputError: It is not YAML, or holds more than a recipe can.
    """
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.Resolver, yaml.Composer, yaml.Constructor = _Resolver, _Composer, _Constructor
        documents = list(yaml.load_all(written))
        # A last line of --- begins a document without content.
        documents = [each for each in documents if each is not None]
        return Documents(documents, list(yaml.constructor.twice))
    except MarkedYAMLError as error:
        raise _not_yaml(path, error) from None
    except Exception as error:
        # Values that do not fit the tags before them raise whatever their conversion does.
        raise InputError(f"{path}: not YAML: {first_line(error)}") from None


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
    written = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Representer = _WritingResolver, _Representer
    yaml.default_flow_style = flow
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    if width is not None:
        yaml.width = width
    yaml.dump(data, written)
    return written.getvalue()


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


class _Composer(Composer):
    """Makes nodes of a file's text, as many as a recipe can have."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.warn_double_anchors = False
        self._count = self._depth = 0
        # How many nodes each node stands for, those that aliases in it repeat included.
        self._sizes: dict[int, int] = {}

    def compose_document(self) -> Any:
        """The root of a document; see ruamel.yaml."""
        self._sizes = {}
        return super().compose_document()

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node; see ruamel.yaml."""
        event = self.parser.peek_event()
        before = self._count
        self._count += 1
        self._depth += 1
        self._check(self._depth > DEEPEST, f"it is nested deeper than {DEEPEST}", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, AliasEvent):
            size = self._sizes.get(id(node))
            self._check(size is None, f"'*{event.anchor}' stands for itself", event)
            self._count += size or 0
        else:
            self._sizes[id(node)] = self._count - before
        many = f"it holds more than {_MOST_NODES} values, those that aliases repeat included"
        self._check(self._count > _MOST_NODES, many, event)
        return node

    def _check(self, wrong: bool, reason: str, event: Any) -> None:
        if wrong:
            raise MarkedYAMLError(problem=reason, problem_mark=event.start_mark)


class _Constructor(SafeConstructor):
    """Builds mappings of the last value of each key."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.twice: list[str] = []

    def construct_yaml_int(self, node: Any) -> Any:
        """A whole number; see ruamel.yaml."""
        if len(node.value) > _LONGEST_NUMBER:
            reason = f"a number of {len(node.value)} characters"
            raise MarkedYAMLError(problem=reason, problem_mark=node.start_mark)
        return super().construct_yaml_int(node)

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


_Constructor.add_constructor("tag:yaml.org,2002:int", _Constructor.construct_yaml_int)


# Characters that YAML 1.1 takes for ends of lines, and YAML 1.2 does not.
_ENDS = re.compile("[\x85\u2028\u2029]")


class _Representer(SafeRepresenter):
    """Writes what YAML 1.1 takes for what it is."""

    def represent_str(self, data: Any) -> Any:
        """A text; what may end lines is escaped, as double quotes do."""
        style = '"' if _ENDS.search(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def represent_float(self, data: Any) -> Any:
        """A number; 1e-05 needs a point."""
        node = super().represent_float(data)
        if "." not in node.value:
            node.value = node.value.replace("e", ".0e", 1)
        return node


_Representer.add_representer(float, _Representer.represent_float)
_Representer.add_representer(str, _Representer.represent_str)
