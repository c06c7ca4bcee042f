"""The merge methods, as the compiled core describes them.

Names, parameters, ranges and defaults are stated once, in the core; Python does not repeat them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from sensmerge import _core
from sensmerge.errors import InputError
from sensmerge.recipe import extension, numbers

Semantics = Literal["mergekit", "original"]
SEMANTICS: tuple[Semantics, ...] = ("mergekit", "original")
DEFAULT_SEMANTICS = SEMANTICS[0]

# Values of switches, including those of YAML 1.1, which mergekit reads.
_SWITCHES = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip


@dataclass(frozen=True)
class Range:
    """Bounds of a number; None is no bound.

    Attributes:
        above: The number is larger than this.
        least: The number is this or larger.
        most: The number is this or smaller.
    """

    above: float | None = None
    least: float | None = None
    most: float | None = None

    def admits(self, number: float) -> bool:
        """Whether a number lies within the bounds."""
        return (
            (self.above is None or number > self.above)
            and (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
        )

    def words(self) -> str:
        """The bounds in words, such as ``above 0 and at most 1``; empty if there are none."""
        bounds = (("above", self.above), ("at least", self.least), ("at most", self.most))
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


@dataclass(frozen=True)
class Search:
    """The interval in which searches look for a number.

    Attributes:
        low: The lower end.
        high: The upper end.
        log: Whether the interval is searched on a logarithmic scale.
        low_is_shared: Whether the lower end is ``low`` divided by the number of models.
        start: The start if the recipe gives no value; None starts at the default.
    """

    low: float
    high: float
    log: bool
    low_is_shared: bool
    start: float | None

    def bounds(self, models: int) -> tuple[float, float]:
        """The interval for a merge of this many models."""
        return self.low / models if self.low_is_shared else self.low, self.high


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method: a number, or a switch.

    Attributes:
        name: Its name in recipes.
        summary: A short description.
        owner: ``model``: each model has its own value, and one under ``parameters`` is for all;
            ``merge``: there is one value.
        kind: ``number`` or ``switch``.
        default: Its value if the recipe gives none; None if the recipe must give one.
        range: A number's bounds.
        by_tensor: Whether a number may differ from tensor to tensor.
        search: The interval for searches; None if it is not searched for.
    """

    name: str
    summary: str
    owner: Literal["model", "merge"]
    kind: Literal["number", "switch"]
    default: float | bool | None
    range: Range = Range()
    by_tensor: bool = False
    search: Search | None = None

    def read(self, value: Any) -> Any:
        """A recipe's value for it, in the form that :mod:`sensmerge.recipe.numbers` resolves.

        Raises:
            ValueError: The value cannot be used; the message says why, and what can be.
        """
        if self.kind == "switch":
            return _switch(value)
        setting = numbers.read(value)
        for number in numbers.numbers(setting):
            if not self.range.admits(number):
                raise ValueError(f"{number:g} is not {self.range.words()}")
        return setting


@dataclass(frozen=True)
class Method:
    """A merge method, in one of the two semantics.

    Attributes:
        name: Its name in recipes.
        title: Its usual name.
        summary: A short description.
        source: The publication.
        base: The role of the base: ``needed`` (task vectors are differences from it), ``optional``
            (with a base task vectors are merged, without one the models themselves), ``merged`` (a
            base is the first of the merged models) or ``unused`` (a base is merged only if it is
            listed among the models).
        least: The least number of models.
        most: The greatest number of models; None is no bound.
        parameters: Its parameters.
        coefficients: Whether sensitivity's coefficients may scale its weights.
        learnable: Whether its weights can be learned by gradient descent.
        statistic: What it needs to know of every model beside its weights: ``fisher``, ``gram`` or
            None.
        semantics: The variant of the method that this describes.
        in_mergekit: Whether mergekit has the method.
        package: The package that it comes from, with its version; None for sensmerge's own.
    """

    name: str
    title: str
    summary: str
    source: str
    base: Literal["needed", "optional", "merged", "unused"]
    least: int
    most: int | None
    parameters: tuple[Parameter, ...]
    coefficients: bool
    learnable: bool
    statistic: Literal["fisher", "gram"] | None
    semantics: Semantics
    in_mergekit: bool
    package: str | None = None

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of this name; None if there is none."""
        return next((each for each in self.parameters if each.name == name), None)

    def count(self) -> str:
        """The number of models in words, such as ``exactly 2`` or ``at least 1``."""
        if self.most == self.least:
            return f"exactly {self.least}"
        most = "" if self.most is None else f" and at most {self.most}"
        return f"at least {self.least}{most}"


def find(name: str, semantics: Semantics = DEFAULT_SEMANTICS) -> Method | None:
    """The method that recipes call ``name``; None if there is none.

    A method of an installed package is imported when it is first asked for.

    Raises:
        InputError: The package's method cannot be loaded.
    """
    if name not in _registry()[semantics] and extension.load(name):
        _forget()
    return _registry()[semantics].get(name)


def every(semantics: Semantics = DEFAULT_SEMANTICS) -> list[Method]:
    """All methods: ours in the order of the documentation, then those of installed packages.

    Those that cannot be loaded are left out; :func:`faults` says why.
    """
    faults()
    return list(_registry()[semantics].values())


def faults() -> list[str]:
    """Why methods of installed packages cannot be loaded; loads those that can."""
    found = []
    for name in extension.names():
        try:
            if name in own():
                other = extension.package(name)
                raise InputError(f"method '{name}' of {other}: is a name of ours; rename it")
            find(name)
        except InputError as error:
            found.append(str(error))
    return found


def own() -> list[str]:
    """The names of the methods that come with sensmerge."""
    registry = _registry()[DEFAULT_SEMANTICS]
    return [name for name, method in registry.items() if method.package is None]


def names() -> list[str]:
    """The methods' names in recipes; they are the same in both semantics.

    Imports no other package: the names of their methods are in what is known of installed packages.
    """
    return list(dict.fromkeys([*_registry()[DEFAULT_SEMANTICS], *extension.names()]))


def _forget() -> None:
    for cached in (_registry, parameters_named, parameter_names):
        cached.cache_clear()


@cache
def parameters_named(name: str) -> list[Parameter]:
    """The parameters of this name that any method has, in either semantics."""
    return [
        parameter
        for methods in _registry().values()
        for method in methods.values()
        if (parameter := method.parameter(name)) is not None
    ]


@cache
def parameter_names(owner: Literal["model", "merge"] | None = None) -> list[str]:
    """The names of all methods' parameters; only those of one owner, if it is given."""
    return list(
        dict.fromkeys(
            parameter.name
            for methods in _registry().values()
            for method in methods.values()
            for parameter in method.parameters
            if owner in (None, parameter.owner)
        )
    )


@cache
def _registry() -> dict[Semantics, dict[str, Method]]:
    described = json.loads(_core.methods())
    ours, packages = described.pop("outside_mergekit"), described.pop("packages")
    said = {name: f"{each['name']} {each['version']}" for name, each in packages.items()}
    return {
        semantics: {
            schema["name"]: _method(
                schema | {"package": said.get(schema["name"])},
                semantics,
                schema["name"] not in ours,
            )
            for schema in schemas
        }
        for semantics, schemas in described.items()
    }


def _method(schema: dict[str, Any], semantics: Semantics, in_mergekit: bool) -> Method:
    count = schema.pop("models")
    parameters = tuple(_parameter(parameter) for parameter in schema.pop("parameters"))
    return Method(
        **schema,
        least=count["least"],
        most=count["most"],
        parameters=parameters,
        semantics=semantics,
        in_mergekit=in_mergekit,
    )


def _parameter(schema: dict[str, Any]) -> Parameter:
    bounds, search = schema.pop("range", None), schema.pop("search", None)
    return Parameter(
        **schema,
        range=Range(**(bounds or {})),
        search=None if search is None else Search(**search),
    )


def _switch(value: Any) -> bool:
    known = _SWITCHES.get(str(value).lower()) if isinstance(value, bool | int | str) else None
    if known is None:
        raise ValueError(f"expected true or false, not '{value}'")
    return known
