"""Methods of other packages: how they are written, found and loaded.

A package offers a method by an entry point in the group ``sensmerge.methods``, whose name is the
method's and whose value is what :func:`method` made of a function. Nothing is imported before a
recipe or a list of all methods asks for it, and nothing but installed packages' entry points can be
named.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from sensmerge import _core
from sensmerge.errors import InputError, first_line

GROUP = "sensmerge.methods"


@dataclass(frozen=True)
class Parameter:
    """A number that a method takes from recipes.

    Attributes:
        name: Its name in recipes, and that of the function's argument.
        default: Its value if the recipe gives none; None if the recipe must give one.
        summary: A short description.
        owner: ``merge``: there is one value, and the function gets a float; ``model``: each model
            has its own, and the function gets an array of shape ``[models]`` in the rows' dtype.
        above: It must be larger than this.
        least: It must be this or larger.
        most: It must be this or smaller.
        search: The interval that ``tune`` searches; None if it is not searched for.
    """

    name: str
    default: float | None = None
    summary: str = ""
    owner: Literal["merge", "model"] = "merge"
    above: float | None = None
    least: float | None = None
    most: float | None = None
    search: tuple[float, float] | None = None

    def described(self) -> dict[str, Any]:
        """What the core registers."""
        search = None
        if self.search is not None:
            low, high = self.search
            shape = {"log": False, "low_is_shared": False, "start": None}
            search = {"low": low, "high": high} | shape
        bounds = {"above": self.above, "least": self.least, "most": self.most}
        return {
            "name": self.name,
            "summary": self.summary,
            "owner": self.owner,
            "default": self.default,
            "range": bounds,
            "search": search,
        }


@cache
def _shared(name: str) -> dict[str, Any]:
    """A parameter as the first of our own methods has it."""
    schemas = json.loads(_core.methods())["mergekit"]
    found = (each for schema in schemas for each in schema["parameters"] if each["name"] == name)
    known = next(found)
    keys = ("name", "summary", "owner", "default", "range", "search")
    return {key: known[key] for key in keys}


@dataclass(frozen=True)
class Definition:
    """A method as its package defines it; calling it calls the function.

    The attributes are the arguments of :func:`method`.
    """

    function: Callable[..., Any]
    base: Literal["needed", "optional", "merged", "unused"]
    models: tuple[int, int | None]
    parameters: tuple[Parameter, ...]
    weights: bool
    whole: bool
    title: str | None
    summary: str
    source: str

    def __call__(self, *arguments: Any, **numbers: Any) -> Any:
        """Call the function."""
        return self.function(*arguments, **numbers)

    def described(self, name: str, package: str, version: str) -> dict[str, Any]:
        """What the core registers under a name."""
        scaled = self.base in ("needed", "optional")
        parameters = [
            *([_shared("weight")] if self.weights else []),
            *(parameter.described() for parameter in self.parameters),
            *([_shared("lambda")] if scaled else []),
        ]
        least, most = self.models
        return {
            "name": name,
            "title": self.title or name,
            "summary": self.summary,
            "source": self.source or f"{package} {version}",
            "base": self.base,
            "models": {"least": least, "most": most},
            "parameters": parameters,
            "coefficients": self.weights,
            "whole": self.whole,
            "package": {"name": package, "version": version},
        }


def method(
    *,
    base: Literal["needed", "optional", "merged", "unused"] = "needed",
    models: tuple[int, int | None] = (1, None),
    parameters: Sequence[Parameter] = (),
    weights: bool = False,
    whole: bool = False,
    title: str | None = None,
    summary: str = "",
    source: str = "",
) -> Callable[[Callable[..., Any]], Definition]:
    """Make a merge method of a function.

    The function is called with the rows, an array of shape ``[models, entries]`` in float32
    (float64 where an input is float64), and by keyword with the method's parameters; with ``base``
    (shape ``[entries]``, or None) and ``tensor`` (the tensor's name) if its signature has them. It
    returns the merged row, of shape ``[entries]`` and the rows' dtype. It may overwrite the rows.
    Several threads call it under the interpreter's lock.

    A C function that ``ctypes`` found in a library is called without that lock; docs/extending.md
    has what it is called with.

    Args:
        base: ``needed``: rows are differences from the base, to which the merged row is added,
            times the recipe's ``lambda``; ``optional``: so with a base, and without one the models
            themselves; ``merged``: a base is the first of the merged models; ``unused``: it is
            merged only if it is listed.
        models: The least and the greatest number of models; None is no bound.
        parameters: The numbers that recipes give.
        weights: Whether it takes ``weight``, an array of shape ``[models]``; sensitivity can then
            scale the weights.
        whole: Whether it gets whole tensors, ``[models, *shape]``. Otherwise it gets a part of a
            tensor at a time, flat, and each merged entry must depend on the same entry of the
            models alone.
        title: The name that people use; the method's name by default.
        summary: A short description.
        source: The publication; the package by default.
    """
    least, _ = models
    if least < 1:
        raise InputError(f"method: models: the least number is {least}, and must be 1 or more")

    def define(function: Callable[..., Any]) -> Definition:
        return Definition(
            function, base, models, tuple(parameters), weights, whole, title, summary, source
        )

    return define


class FunctionError(Exception):
    """What the core says of a function that failed; caused by the function's own exception."""


@dataclass(frozen=True)
class Caller:
    """Calls a method's function with arrays, for the core."""

    definition: Definition
    extra: frozenset[str]

    @classmethod
    def of(cls, definition: Definition) -> Caller:
        """The caller of a definition's function."""
        names = set(inspect.signature(definition.function).parameters)
        return cls(definition, frozenset(names & {"base", "tensor"}))

    def __call__(
        self,
        tensor: str,
        shape: list[int],
        models: int,
        double: bool,
        rows: bytearray,
        base: bytearray | None,
        numbers: dict[str, float | list[float]],
    ) -> bytes:
        """Bytes of the merged entries."""
        import numpy as np

        dtype = np.dtype(np.float64 if double else np.float32)
        wanted: tuple[int, ...] = tuple(shape) if self.definition.whole else (-1,)
        given = np.frombuffer(rows, dtype).reshape(models, -1)
        entries: tuple[int, ...] = given.shape[1:]
        if self.definition.whole:
            given, entries = given.reshape(models, *wanted), wanted
        said: dict[str, Any] = {
            name: np.array(number, dtype) if isinstance(number, list) else number
            for name, number in numbers.items()
            if name != "lambda"
        }
        if "base" in self.extra:
            said["base"] = None if base is None else np.frombuffer(base, dtype).reshape(wanted)
        if "tensor" in self.extra:
            said["tensor"] = tensor
        try:
            merged = self.definition.function(given, **said)
        except Exception as error:
            import traceback

            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{frame.filename}, line {frame.lineno}"
            raise FunctionError(f"{type(error).__name__}: {first_line(error)} ({place})") from error
        if not isinstance(merged, np.ndarray):
            raise FunctionError(f"returned {type(merged).__name__} instead of an array")
        if merged.shape != entries or merged.dtype != dtype:
            raise FunctionError(
                f"returned {merged.dtype} of shape {merged.shape} "
                f"instead of {dtype} of shape {entries}"
            )
        return merged.tobytes()


@cache
def _installed() -> dict[str, list[EntryPoint]]:
    """The entry points of all installed packages, by the method's name."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    return found


def names() -> list[str]:
    """The names of the methods that installed packages offer."""
    return sorted(_installed())


def package(name: str) -> str:
    """The packages, with their versions, that offer a method."""
    return " and ".join(" ".join(_package(entry)) for entry in _installed().get(name, []))


def _package(entry: EntryPoint) -> tuple[str, str]:
    assert entry.dist is not None, "entry points of installed packages have one"
    return entry.dist.name, entry.dist.version


def load(name: str) -> bool:
    """Import and register the method of an installed package; False if none offers it.

    Raises:
        InputError: It cannot be imported or registered, or two packages offer it.
    """
    offered = _installed().get(name, [])
    if not offered:
        return False
    at = f"method '{name}' of {package(name)}"
    if len(offered) > 1:
        raise InputError(f"{at}: both offer it; uninstall one of them")
    try:
        definition = offered[0].load()
    except Exception as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{at}: cannot be imported: {why}") from error
    if not isinstance(definition, Definition):
        kind = type(definition).__name__
        raise InputError(f"{at}: '{offered[0].value}' is a {kind}, not made by sensmerge.method")
    described = json.dumps(definition.described(name, *_package(offered[0])))
    address = _address(definition.function)
    if address is not None:
        _core.register_native(described, address)
    else:
        _core.register_function(described, Caller.of(definition))
    return True


def _address(function: object) -> int | None:
    """Where a C function that ``ctypes`` found in a library lies; None for a Python function."""
    import ctypes

    # What all functions are that ctypes finds.
    known: type = ctypes.CFUNCTYPE(None).__mro__[1]
    if not isinstance(function, known):
        return None
    found: Any = function
    return ctypes.cast(found, ctypes.c_void_p).value or 0
