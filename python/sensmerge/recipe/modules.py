"""Modules of a recipe: parts of a model, such as its vision tower, each with its own settings.

They are read as slices. A recipe with a single module that stands for the whole model is read as
if the module's keys were the recipe's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sensmerge.recipe.leniency import stray

if TYPE_CHECKING:
    from pydantic import BaseModel

    from sensmerge.recipe.findings import Findings
    from sensmerge.recipe.methods import Method

# mergekit's names for a model's only module, and for the one that holds the language model: all
# tensors that are in no other module of the recipe.
REST = ("default", "text_decoder")

_LISTS = ("models", "slices")
_KEYS = (*_LISTS, "parameters", "base_model")


def hoisted(
    data: dict[str, Any], root: type[BaseModel], method: Method | None, found: Findings
) -> tuple[dict[str, Any], list[str]]:
    """The recipe with slices, or the keys of its only module, in place of ``modules``.

    A module's parameters come before the recipe's and after a slice's; its base replaces the
    recipe's.

    Args:
        data: The recipe's keys and values.
        root: The pydantic model of recipes.
        method: The recipe's method; None if that is unknown.
        found: Collects faults and notes.

    Returns:
        The keys and values, and the name of every slice's module; no names where the recipe has no
        modules, or a single one.
    """
    rest = {key: value for key, value in data.items() if key != "modules"}
    given = data.get("modules")
    if given is None:
        return rest, []
    if not isinstance(given, dict) or not given or not all(map(_is_module, given.values())):
        found.refuse(("modules",), "expected a mapping of modules, each with models or slices")
        return rest, []
    if _misplaced(given, rest, found):
        return rest, []
    for name, module in given.items():
        for key in module:
            if key not in _KEYS:
                stray(("modules", name, key), root, method, found)
    [(first, module), *others] = given.items()
    if not others and first in REST:
        return _only(first, module, rest, found), []
    slices: list[Any] = []
    names: list[str] = []
    for name, module in given.items():
        of_module = _slices(name, module, len(slices), found)
        slices += of_module
        names += [name] * len(of_module)
    return rest | {"slices": slices}, names


def _is_module(value: Any) -> bool:
    return isinstance(value, dict) and any(value.get(key) for key in _LISTS)


def _misplaced(given: dict[str, Any], recipe: dict[str, Any], found: Findings) -> bool:
    """Refuse lists that stand beside each other, and two names for the same module."""
    wrong = [key for key in _LISTS if recipe.get(key) is not None]
    for key in wrong:
        found.refuse((key,), "stands beside 'modules'; keep one of the two")
    for name, module in given.items():
        if all(module.get(key) is not None for key in _LISTS):
            found.refuse(("modules", name, "models"), "stands beside 'slices'; keep one of the two")
            wrong.append(name)
    if all(name in given for name in REST):
        found.refuse(("modules", REST[0]), f"stands for the same module as {REST[1]}; keep one")
        wrong.append(REST[0])
    return bool(wrong)


def _only(
    name: str, module: dict[str, Any], recipe: dict[str, Any], found: Findings
) -> dict[str, Any]:
    """The recipe with the keys of its only module."""
    result = dict(recipe)
    parameters = module.get("parameters")
    if isinstance(parameters, dict) and isinstance(result.get("parameters"), dict | None):
        result["parameters"] = (result.get("parameters") or {}) | parameters
    for key in (*_LISTS, "base_model"):
        if module.get(key) is not None:
            result[key] = module[key]
            found.moved((key,), ("modules", name, key))
    return result


def _slices(name: str, module: dict[str, Any], place: int, found: Findings) -> list[Any]:
    """A module as slices, of which the first is the recipe's slice of number ``place``."""
    at = ("modules", name)
    if module.get("slices") is None:
        for key, written in (("sources", "models"), ("parameters", "parameters")):
            found.moved(("slices", place, key), (*at, written))
        found.moved(("slices", place), at)
        slices: list[Any] = [{"sources": module["models"]}]
    else:
        slices = list(module["slices"])
        for number in range(len(slices)):
            found.moved(("slices", place + number), (*at, "slices", number))
    return [_inherited(each, module) if isinstance(each, dict) else each for each in slices]


def _inherited(part: dict[str, Any], module: dict[str, Any]) -> dict[str, Any]:
    """A slice with its module's settings behind its own."""
    result = {key: module[key] for key in ("base_model", "parameters") if key in module} | part
    own, shared = part.get("parameters"), module.get("parameters")
    if isinstance(own, dict) and isinstance(shared, dict):
        result["parameters"] = shared | {
            key: _behind(value, shared[key]) if key in shared else value
            for key, value in own.items()
        }
    return result


def _behind(own: Any, shared: Any) -> Any:
    """A setting whose filters, where none matches, leave a tensor to another setting."""
    if not (isinstance(own, list) and own and isinstance(own[0], dict)):
        return own
    if isinstance(shared, list) and shared and isinstance(shared[0], dict):
        return [*own, *shared]
    return [*own, {"value": shared}]
