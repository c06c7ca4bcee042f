"""The merge methods as text: for the terminal, and for the documentation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sensmerge.errors import InputError
from sensmerge.recipe import methods
from sensmerge.recipe.methods import DEFAULT_SEMANTICS, SEMANTICS, Method, Parameter, Semantics
from sensmerge.refusals import unknown_value

_BASE = {
    "needed": "needed: task vectors are differences from it",
    "optional": "optional: with one, task vectors are merged; without, the models themselves",
    "merged": "where there is one, the first of the models that are merged",
    "unused": "not needed, and merged only if it is listed among the models",
}

_ALIGNED = "write align: permutation beside a method such as linear, which matches units by weights"

# What is published under a name and is not a method here.
_NOT_METHODS = {
    "zipit": "ZipIt! also merges units within a model, which blends features of one model with "
    f"each other and needs activations; {_ALIGNED}",
    "git_rebasin": _ALIGNED,
    "aim": "AIM is a step after a method that merges task vectors: name that method, and write an "
    "aim section beside it, such as aim: {omega: 0.4}; see docs/methods/aim.md",
    "rebasin": _ALIGNED,
}


def listed(semantics: Semantics = DEFAULT_SEMANTICS) -> str:
    """A table of all methods, with one row per method."""
    head = ("method", "models", "base", "parameters (defaults)")
    rows = [
        (method.name, method.count(), method.base, ", ".join(map(_brief, method.parameters)))
        for method in methods.every(semantics)
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    others = [method for method in methods.every(semantics) if method.package is not None]
    notes = [f"{method.name} comes with {method.package}" for method in others]
    notes += [f"cannot be loaded: {fault}" for fault in methods.faults()]
    return "\n".join([*lines, "", *notes] if notes else lines)


def as_dict(name: str | None, semantics: Semantics = DEFAULT_SEMANTICS) -> dict[str, Any]:
    """All methods, or one, as keys and values; see docs/json.md.

    Raises:
        InputError: There is no method of this name.
    """
    found = methods.every(semantics) if name is None else [_found(name, semantics)]
    faults = methods.faults() if name is None else []
    return {
        "semantics": semantics,
        "methods": {method.name: asdict(method) for method in found},
        "notes": [f"cannot be loaded: {fault}" for fault in faults],
    }


def _found(name: str, semantics: Semantics) -> Method:
    method = methods.find(name, semantics)
    if method is None:
        raise InputError(f"method: {no_method(name)}")
    return method


def described(name: str, semantics: Semantics = DEFAULT_SEMANTICS) -> str:
    """One method in full.

    Raises:
        InputError: There is no method of this name.
    """
    method = _found(name, semantics)
    lines = [
        f"{method.name}: {method.title} ({method.source})",
        f"  {method.summary}",
        *([] if method.package is None else [f"  comes with {method.package}"]),
        "",
        f"models: {method.count()}",
        f"base: {_BASE[method.base]}",
        f"sensitivity: {'scales its weights' if method.coefficients else 'cannot be used'}",
        f"learn: {'finds its weights' if method.learnable else 'cannot be used'}",
        "",
        f"parameters, with semantics: {semantics}",
    ]
    width = max((len(parameter.name) for parameter in method.parameters), default=0)
    for parameter in method.parameters:
        lines.append(f"  {parameter.name:<{width}}  {parameter.summary}")
        lines.append(f"  {'':<{width}}  {values(parameter)}; {_where(parameter)}")
    if not method.parameters:
        lines.append("  none")
    return "\n".join(lines)


def no_method(name: object) -> str:
    """That there is no method of this name, and which are there or what to write instead."""
    if isinstance(name, str) and name in _NOT_METHODS:
        return f"'{name}': {_NOT_METHODS[name]}"
    return unknown_value(name, methods.names())


def as_markdown() -> str:
    """Our methods as a Markdown table, which names differences between the semantics."""
    lines = ["| method | models | base | parameters (defaults) | source |", "|---|---|---|---|---|"]
    for method in methods.every():
        if method.package is not None:
            continue
        brief = ", ".join(f"`{name}` ({value})" for name, value in _defaults(method))
        lines.append(
            f"| `{method.name}`: {method.summary} | {method.count()} | {method.base} | {brief} "
            f"| {method.source} |"
        )
    return "\n".join(lines) + "\n"


def _defaults(method: Method) -> list[tuple[str, str]]:
    """Parameters and their defaults; by semantics if these differ."""
    found: dict[str, dict[Semantics, str]] = {}
    for semantics in SEMANTICS:
        other = methods.find(method.name, semantics)
        for parameter in () if other is None else other.parameters:
            found.setdefault(parameter.name, {})[semantics] = _default(parameter)
    defaults = []
    for name, said in found.items():
        same = len(said) == len(SEMANTICS) and len(set(said.values())) == 1
        each = [value if same else f"{semantics}: {value}" for semantics, value in said.items()]
        defaults.append((name, "; ".join(dict.fromkeys(each))))
    return defaults


def _brief(parameter: Parameter) -> str:
    return f"{parameter.name} ({_default(parameter)})"


def _default(parameter: Parameter) -> str:
    if parameter.default is None:
        return "must be given"
    if isinstance(parameter.default, bool):
        return "true" if parameter.default else "false"
    return f"{parameter.default:g}"


def values(parameter: Parameter) -> str:
    """The values of a parameter and its default, in words."""
    if parameter.kind == "switch":
        return f"true or false; {_default(parameter)} by default"
    bounds = parameter.range.words()
    kind = "a number" if not bounds else f"a number {bounds}"
    by_tensor = "" if parameter.by_tensor else ", one for the whole model"
    default = _default(parameter)
    return f"{kind}{by_tensor}; {default}{'' if parameter.default is None else ' by default'}"


def _where(parameter: Parameter) -> str:
    if parameter.owner == "merge":
        return "under parameters"
    return "under a model's parameters, or under parameters for all"
