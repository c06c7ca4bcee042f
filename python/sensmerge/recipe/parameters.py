"""The parameters of a recipe, read according to the description of its method."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, RootModel

from sensmerge.recipe import mergekit, methods
from sensmerge.recipe.findings import Findings
from sensmerge.recipe.leniency import stray
from sensmerge.recipe.methods import Method, Parameter
from sensmerge.recipe.numbers import numbers
from sensmerge.refusals import Location

# The scale of the merged task vector. For a method without it, a value other than 1 is refused
# rather than ignored, since ignoring it would change the result by that factor.
SCALE = "lambda"

# The value of a parameter that a search over the calibration samples is to find.
AUTO = "auto"


class Parameters(RootModel[dict[str, Any]]):
    """Settings for all models and for the merge as a whole, by parameter.

    Only parameters of the method are kept, in the form that :mod:`sensmerge.recipe.numbers`
    resolves.
    """

    def get(self, name: str) -> Any:
        """The setting of a parameter; None if there is none."""
        return self.root.get(name)

    @classmethod
    def known_keys(cls) -> list[str]:
        """The names of all methods' parameters."""
        return methods.parameter_names()

    def __getattr__(self, name: str) -> Any:
        known = name.removesuffix("_")
        if not name.startswith("_") and known in self.known_keys():
            return self.root.get(known)
        raise AttributeError(f"no method has a parameter '{name}'")


class ModelParameters(Parameters):
    """One model's own settings; for others, the recipe's settings for all models count."""

    @classmethod
    def known_keys(cls) -> list[str]:
        """The names of all methods' parameters of which a model can have its own."""
        return methods.parameter_names("model")


def read_all(
    data: dict[str, Any], method: Method | None, root: type[BaseModel], found: Findings
) -> dict[str, Any]:
    """The recipe's keys and values with every parameter read, without those that are not used.

    Args:
        data: The recipe's keys and values.
        method: Its method; None if that is unknown.
        root: The pydantic model of recipes, to say where an unknown key belongs.
        found: Collects faults and unused keys.
    """
    result = copy.deepcopy(data)
    for location, section in _sections(data):
        read: dict[str, Any] = {}
        for key, value in section.items():
            at = (*location, key)
            parameter = _lookup(key, method, own=_is_models_own(location))
            if parameter is None and key in mergekit.OTHER_PARAMETERS:
                found.unused(at, method)
            elif parameter is None:
                stray(at, root, method, found)
            else:
                _read(at, value, parameter, method, read, found)
        _put(result, location, read)
    return result


def _sections(data: dict[str, Any]) -> Iterator[tuple[Location, dict[Any, Any]]]:
    """Every ``parameters`` section that is a mapping; others are refused when fields are read."""
    places: list[tuple[Location, Any]] = [((), data), *_listed(data, (), "models")]
    for location, each in _listed(data, (), "slices"):
        places += [(location, each), *_listed(each, location, "sources")]
    for location, part in places:
        if isinstance(part.get("parameters"), dict):
            yield (*location, "parameters"), part["parameters"]


def _listed(
    data: dict[str, Any], location: Location, key: str
) -> list[tuple[Location, dict[str, Any]]]:
    """The mappings in a list, each with its location."""
    listed = data.get(key)
    each = enumerate(listed if isinstance(listed, list) else [])
    return [((*location, key, place), part) for place, part in each if isinstance(part, dict)]


def _put(data: dict[str, Any], location: Location, value: Any) -> None:
    *place, key = location
    part: Any = data
    for step in place:
        part = part[step]
    part[key] = value


def _is_models_own(location: Location) -> bool:
    """Whether a section of parameters belongs to one model."""
    return any(key in location for key in ("models", "sources"))


def _lookup(key: Any, method: Method | None, *, own: bool) -> Parameter | None:
    """The method's parameter of this name or, if it has none, another method's.

    Args:
        key: The parameter's name.
        method: The recipe's method.
        own: Whether the key is among a model's own parameters.
    """
    parameter = method.parameter(key) if method is not None else None
    known = [parameter] if parameter is not None else methods.parameters_named(key)
    return next((each for each in known if not own or each.owner == "model"), None)


def _read(
    at: Location,
    value: Any,
    parameter: Parameter,
    method: Method | None,
    read: dict[str, Any],
    found: Findings,
) -> None:
    """Read one parameter's value into ``read``, if the method uses it."""
    if parameter.kind == "switch" and value is None:
        return
    used = method is None or method.parameter(parameter.name) is not None
    if value == AUTO and parameter.name == SCALE:
        if used:
            read[parameter.name] = AUTO
        elif method is not None:
            found.refuse(at, f"auto: {method.name} has no {SCALE} to search for; remove the key")
        return
    try:
        setting = parameter.read(value)
    except ValueError as error:
        found.refuse(at, str(error))
        return
    if method is None:
        return
    if used and not parameter.by_tensor and isinstance(setting, list):
        found.refuse(at, _one_number(parameter, method))
    elif used:
        read[parameter.name] = setting
    elif parameter.name == SCALE and any(number != 1 for number in numbers(setting)):
        found.refuse(at, f"{method.name} has no {SCALE}; remove the key")
    elif method.semantics == "original" and setting is True:
        # mergekit ignores parameters of other methods, so that with its semantics this is a note.
        found.refuse(
            at, f"{method.name} with semantics: original has no {parameter.name}; remove the key"
        )
    else:
        found.unused(at, method)


def _one_number(parameter: Parameter, method: Method) -> str:
    said = f"{method.name} with semantics: {method.semantics}"
    reason = f"{said} takes one number for the whole model"
    for other in methods.SEMANTICS:
        twin = methods.find(method.name, other)
        same = None if twin is None else twin.parameter(parameter.name)
        if same is not None and same.by_tensor:
            return f"{reason}; give one, or use semantics: {other} for numbers by layer"
    return f"{reason}; give one"
