"""The places in a recipe that a farm varies, by the names that a farm file gives them."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sensmerge.errors import InputError
from sensmerge.recipe import Recipe, Sensitivity, methods
from sensmerge.recipe.methods import Method
from sensmerge.refusals import Location, key_of, nearest

METHOD = "merge_method"

# Keys of a recipe as a whole.
_WHOLE = (METHOD, "semantics", "seed", "dtype", "out_dtype", "missing", "align")
_OMEGA = "omega"

_PART = re.compile(r"(\w+)((?:\[\d+\])*)")


@dataclass(frozen=True)
class Place:
    """A place in a recipe.

    Attributes:
        name: Its name in the farm file.
        keys: The keys and list indices that lead to it.
    """

    name: str
    keys: Location

    @property
    def parameter(self) -> str | None:
        """The method's parameter that stands there; None if it is something else."""
        return str(self.keys[-1]) if "parameters" in self.keys else None

    def applies(self, method: Method) -> bool:
        """Whether a recipe with this method has such a place."""
        if self.parameter is not None:
            return method.parameter(self.parameter) is not None
        return self.keys[0] != "sensitivity" or method.coefficients


def find(name: str, template: Recipe) -> Place:
    """The place of a name: a parameter's, or keys as refusals write them.

    Args:
        name: Such as ``lambda``, ``temperature``, ``seed`` or ``models[1].weight``.
        template: The recipe.

    Raises:
        InputError: A recipe has no such place, or this one has not.
    """
    keys = _keys(name)
    found = None if keys is None else _place(keys, template)
    if found is None:
        known = [*_WHOLE, *methods.parameter_names(), *Sensitivity.model_fields, _OMEGA]
        near = nearest(name, known)
        hint = "" if near is None else f"; did you mean '{near}'?"
        raise InputError(
            f"{name}: is no place in a recipe{hint}; name a parameter of `sensmerge methods`, a "
            "key of the sensitivity section, merge_method, seed, dtype, or keys such as "
            "models[0].weight"
        )
    if "parameters" in found:
        _check_there(name, found[: found.index("parameters")], template)
    return Place(name, found)


def _check_there(name: str, keys: Location, template: Recipe) -> None:
    """Refuse the number of a model or slice that the recipe does not have."""
    part: Any = template.source
    for what, place in zip(keys[::2], keys[1::2], strict=True):
        listed = part.get(what) if isinstance(part, dict) else None
        count = len(listed) if isinstance(listed, list) else 0
        if not isinstance(listed, list) or not isinstance(place, int) or place >= count:
            raise InputError(f"{name}: the recipe has {count} {what} there, counted from 0")
        part = listed[place]


def _keys(name: str) -> list[int | str] | None:
    """The keys and indices of a name; None if it is not written like that."""
    keys: list[int | str] = []
    for part in name.split("."):
        read = _PART.fullmatch(part)
        if read is None:
            return None
        keys += [read[1], *map(int, re.findall(r"\d+", read[2]))]
    return keys


def _place(keys: list[int | str], template: Recipe) -> Location | None:
    """The place in a recipe that keys mean; None if there is none."""
    last = str(keys[-1])
    whole = [key for key in keys if key != "parameters"]
    if len(keys) == 1 and last in _WHOLE:
        return (last,)
    if len(whole) == 1 and last in methods.parameter_names():
        return ("parameters", last)
    if keys in (["aim", _OMEGA], [_OMEGA]):
        return ("aim", _OMEGA)
    if keys in (["sensitivity", last], [last]) and last in Sensitivity.model_fields:
        return ("sensitivity", last)
    forms = (["models", int, str], ["slices", int, str], ["slices", int, "sources", int, str])
    if not any(_has_form(whole, form) for form in forms) or keys[-2] in ("models", "slices"):
        return None
    own = "models" in whole or "sources" in whole
    known = methods.parameter_names("model" if own else None)
    return (*whole[:-1], "parameters", last) if last in known else None


def _has_form(keys: Sequence[int | str], form: Sequence[Any]) -> bool:
    return len(keys) == len(form) and all(
        key == wanted or (isinstance(wanted, type) and isinstance(key, wanted))
        for key, wanted in zip(keys, form, strict=True)
    )


def method_of(template: Recipe, chosen: Mapping[str, Any]) -> Method:
    """The method of a recipe with other values, by the places' names.

    Raises:
        InputError: There is no such method.
    """
    name = str(chosen.get(METHOD, template.merge_method))
    semantics = str(chosen.get("semantics", template.semantics))
    if semantics not in methods.SEMANTICS:
        raise InputError(f"semantics: '{semantics}' is none of {', '.join(methods.SEMANTICS)}")
    wanted: Any = semantics
    found = methods.find(name, wanted)
    if found is None:
        raise InputError(f"{METHOD}: '{name}' is none of {', '.join(methods.names())}")
    return found


def filled(
    template: Recipe, places: Sequence[Place], chosen: Mapping[str, Any]
) -> tuple[Recipe, dict[str, Any]]:
    """A candidate: the recipe with a value at every place.

    What another method than the recipe's own lacks is left out, so that candidates which differ in
    nothing else are one.

    Args:
        template: The recipe.
        places: The places.
        chosen: A value for each of them, by its name.

    Returns:
        The candidate, and those of the values that it has.

    Raises:
        InputError: The values do not make a recipe; the message names the keys.
    """
    method = method_of(template, chosen)
    data = copy.deepcopy(template.source)
    if method.name != template.merge_method or method.semantics != template.semantics:
        _leave_out(data, method)
    used = [place for place in places if place.name in chosen and place.applies(method)]
    # For all models first: a model's own value counts before it.
    for place in sorted(used, key=lambda place: len(place.keys)):
        _put(data, place, chosen[place.name])
    recipe = template.replaced(data)
    recipe.require_numbers()
    return recipe, {place.name: chosen[place.name] for place in used}


def _leave_out(data: dict[str, Any], method: Method) -> None:
    """Remove what a method does not have."""
    for part in _parts(data):
        said = part.get("parameters")
        if isinstance(said, dict):
            part["parameters"] = {
                key: value
                for key, value in said.items()
                if method.parameter(key) is not None or not methods.parameters_named(key)
            }
    if not method.coefficients:
        data.pop("sensitivity", None)


def _parts(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipe, and all in it that may have parameters of its own."""
    slices = [each for each in data.get("slices") or [] if isinstance(each, dict)]
    inner = [*(data.get("models") or []), *(part for each in slices for part in each["sources"])]
    return [data, *slices, *(each for each in inner if isinstance(each, dict))]


def _put(data: dict[str, Any], place: Place, value: Any) -> None:
    if place.keys[0] == "parameters":
        # A value for all models; a model's own would come before it.
        for model in _parts(data)[1:]:
            if isinstance(model.get("parameters"), dict):
                model["parameters"].pop(str(place.keys[-1]), None)
    part: Any = data
    for key in place.keys[:-1]:
        if isinstance(part, dict) and part.get(key) is None:
            part[key] = {}
        part = part[key]
    if not isinstance(part, dict):
        raise InputError(f"{key_of(place.keys[:-1])}: expected a mapping of keys to values")
    part[str(place.keys[-1])] = copy.deepcopy(value)
