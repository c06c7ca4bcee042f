"""A recipe's settings, in mergekit's forms, resolved to one number per tensor.

A setting is a number; a list of numbers, a *gradient* that is interpolated over the depth of the
model; or a list of conditions ``{filter, value}``. The first condition whose filter is part of the
tensor's name counts; no filter, or ``*``, matches every name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Condition = Mapping[str, Any]
Setting = float | Sequence[float] | Condition | Sequence[Condition]

_FORMS = "a number, a list of numbers, or a list of {filter, value}"


def read(value: Any) -> Any:
    """A setting with its numbers as floats and a single condition as a list of one.

    Raises:
        ValueError: The value is not a setting, or a number in it is not finite.
    """
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return [_condition(part) for part in value]
    if isinstance(value, dict):
        return read([value])
    if isinstance(value, list) and value:
        return [read_number(part) for part in value]
    return read_number(value)


def read_number(value: Any, expected: str = _FORMS) -> float:
    """A finite number; text is converted, since 1e-3 is text in YAML 1.1.

    Raises:
        ValueError: The value is not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected {expected}")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"expected {expected}, not '{value}'") from None
    except OverflowError:
        raise ValueError("the number is too large") from None
    if not math.isfinite(number):
        raise ValueError(f"{value} is not a finite number")
    return number


def _condition(part: dict[str, Any]) -> dict[str, Any]:
    if "value" not in part or not set(part) <= {"filter", "value"}:
        raise ValueError("each condition needs a value and, unless it is for all tensors, a filter")
    if not isinstance(part.get("filter"), str | None):
        raise ValueError(
            f"filter: {part['filter']} is not text; a filter is part of a tensor's name"
        )
    return part | {"value": read(part["value"])}


def resolve(setting: Setting | None, tensor: str, position: float, default: float) -> float:
    """The number of a setting for a tensor.

    Args:
        setting: The setting; None if there is none.
        tensor: The tensor's name.
        position: The tensor's position in the model's depth: 0 for the first block, 1 for the last,
            0 outside.
        default: The number if there is no setting or none of its conditions matches.
    """
    return resolve_first([setting], tensor, position, default)


def resolve_first(
    settings: Iterable[Setting | None], tensor: str, position: float, default: float
) -> float:
    """The number for a tensor of the first of several settings that has one for it.

    As in mergekit, if none of a model's own conditions matches, the setting for all models counts.

    Args:
        settings: Settings in order of precedence; None stands for no setting.
        tensor: The tensor's name.
        position: The tensor's position in the model's depth: 0 for the first block, 1 for the last,
            0 outside.
        default: The number if no setting has one for the tensor.
    """
    for setting in settings:
        number = _evaluate(setting, tensor, position)
        if number is not None:
            return number
    return default


def _evaluate(setting: Setting | None, tensor: str, position: float) -> float | None:
    if setting is None:
        return None
    if isinstance(setting, int | float):
        return float(setting)
    parts: Sequence[Any] = [setting] if isinstance(setting, Mapping) else setting
    if not (parts and isinstance(parts[0], Mapping)):
        return _interpolate([float(value) for value in parts], position)
    for condition in parts:
        wanted = condition.get("filter")
        if wanted is None or wanted == "*" or wanted in tensor:
            return _evaluate(condition["value"], tensor, position)
    return None


def numbers(setting: Setting | None) -> Iterator[float]:
    """Every number in a setting."""
    if setting is None:
        return
    if isinstance(setting, int | float):
        yield float(setting)
        return
    parts: Sequence[Any] = [setting] if isinstance(setting, Mapping) else setting
    for part in parts:
        yield from numbers(part["value"] if isinstance(part, Mapping) else part)


def _interpolate(values: list[float], position: float) -> float:
    scaled = position * (len(values) - 1)
    low = int(scaled)
    high = min(len(values) - 1, low + 1)
    share = scaled - low
    return (1 - share) * values[low] + share * values[high]


def said_of(numbers: Mapping[str, float], part_of: Callable[[str], str]) -> Any:
    """Numbers of tensors as a recipe's setting: one number for all, or conditions.

    A part of the model whose tensors all have the same number gets one condition; a part whose
    tensors differ gets one per tensor. If these filters would match wrong tensors, every tensor
    gets a condition of its own.

    Args:
        numbers: The number of every tensor, by its name.
        part_of: Gives the part of the model to which a tensor belongs, from its name.
    """
    values = set(numbers.values())
    if len(values) == 1:
        return next(iter(values))
    by_part: dict[str, set[float]] = {}
    for name, number in numbers.items():
        by_part.setdefault(part_of(name), set()).add(number)
    conditions = {
        f"{part_of(name)}." if len(by_part[part_of(name)]) == 1 else name: number
        for name, number in numbers.items()
    }
    found = by_name(conditions)
    if any(resolve(found, name, 0.0, math.nan) != number for name, number in numbers.items()):
        # The name of a part occurs in the name of a tensor of another part.
        found = by_name(numbers)
    return found


def by_name(conditions: Mapping[str, float]) -> list[dict[str, Any]]:
    """A condition for each name of a tensor or part.

    A name that contains another one comes before it, since the first matching condition counts.
    """
    contained = [
        name for name in conditions if any(name != other and name in other for other in conditions)
    ]
    first = [name for name in conditions if name not in contained]
    names = [*first, *sorted(contained, key=len, reverse=True)]
    return [{"filter": name, "value": conditions[name]} for name in names]
