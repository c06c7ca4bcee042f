"""Checks of a recipe as a whole, beyond those of single keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sensmerge.recipe import methods, slices
from sensmerge.recipe.fields import model_name
from sensmerge.recipe.findings import Findings
from sensmerge.recipe.methods import DEFAULT_SEMANTICS, SEMANTICS, Method, Parameter, Semantics
from sensmerge.recipe.places import place_of
from sensmerge.recipe.tables import no_method
from sensmerge.recipe.tokenizer import unknown_source
from sensmerge.refusals import Location, key_of

if TYPE_CHECKING:
    from sensmerge.recipe.recipe import Recipe
    from sensmerge.recipe.slices import Slice


def keys_that_are_no_text(part: Any, at: Location = ()) -> Iterator[str]:
    """What is wrong with keys such as null, yes or [a], which are no names."""
    if isinstance(part, dict):
        for key, value in part.items():
            if isinstance(key, str | int) and not isinstance(key, bool):
                yield from keys_that_are_no_text(value, (*at, key))
            else:
                yield f"{key_of(at)}: the key {key!r} is not text; write it in quotes"
    elif isinstance(part, list):
        for place, value in enumerate(part):
            yield from keys_that_are_no_text(value, (*at, place))


def method(data: dict[str, Any], found: Findings) -> Method | None:
    """The method that a recipe names; None, with a refusal, if there is none of that name."""
    at, given = ("merge_method",), data.get("merge_method")
    if given is None:
        found.refuse(at, f"is missing; known: {', '.join(methods.names())}")
        return None
    method = methods.find(given, _semantics(data)) if isinstance(given, str) else None
    if method is None:
        found.refuse(at, no_method(given))
    return method


def _semantics(data: dict[str, Any]) -> Semantics:
    given = data.get("semantics")
    return next((each for each in SEMANTICS if each == given), DEFAULT_SEMANTICS)


def _named(data: dict[str, Any]) -> Iterator[tuple[Location, Any]]:
    """Whatever a recipe names as a model, and where: also in parts that are not supported."""
    if data.get("base_model") is not None:
        yield ("base_model",), data["base_model"]
    parts: list[tuple[Location, Any]] = [
        ((key,), data.get(key)) for key in ("models", "slices", "modules")
    ]
    while parts:
        location, part = parts.pop(0)
        if isinstance(part, list):
            parts += [((*location, place), each) for place, each in enumerate(part)]
        elif isinstance(part, dict) and "model" in part:
            yield (*location, "model"), part["model"]
        elif isinstance(part, dict):
            parts += [((*location, str(key)), each) for key, each in part.items()]


def whole(recipe: Recipe, method: Method | None, found: Findings) -> None:
    """Check a recipe as a whole, except where that needs a key that could not be read."""
    listed = not found.refused("slices", "modules") and found.read("models", "slices")
    if found.read("models", "base_model", "tokenizer_source", "tokenizer"):
        _tokenizer(recipe, found)
    if method is None:
        return
    if method.base == "needed" and recipe.base_model is None and found.read("base_model"):
        found.refuse(
            ("base_model",),
            f"{method.name} adds task vectors to a base; name the model that the experts were "
            "tuned from",
        )
    if listed and found.read("base_model"):
        _models(recipe, method, found)
        _required(recipe, method, found)
    if recipe.aim is not None and listed and found.read("base_model"):
        _aim(recipe, method, found)
    on = recipe.sensitivity is not None and recipe.sensitivity.mode != "off"
    if on and recipe.slices is not None:
        found.refuse(
            ("sensitivity",),
            "coefficients are measured for whole models and not for slices; list the models under "
            "'models', or remove the section",
        )
    if recipe.auto and recipe.slices is not None:
        found.refuse(("slices",), "auto searches for values of whole models; write numbers")
    if on and recipe.slices is None and listed and found.read("base_model"):
        _measured(recipe, method, found)
    if on and not method.coefficients:
        found.refuse(
            ("sensitivity",),
            f"{method.name} has no weights that coefficients can scale; remove the section",
        )


def _aim(recipe: Recipe, method: Method, found: Findings) -> None:
    """Refuse damping where there are no task vectors, or of another base than the measured one."""
    if method.base not in ("needed", "optional") or recipe.base_model is None:
        found.refuse(
            ("aim",),
            f"{method.name} merges no task vectors here, so that none can be damped; remove the "
            "section, or take a method with a base_model",
        )
        return
    ours = place_of(recipe.base_model, recipe.places)
    for part in recipe.parts:
        if place_of(str(recipe.base_of(part)), recipe.places) != ours:
            found.refuse(
                ("aim",),
                f"{part.key} has the base {recipe.base_of(part)}, and activations are measured in "
                f"{recipe.base_model} alone; remove the section",
            )


def _measured(recipe: Recipe, method: Method, found: Findings) -> None:
    """Refuse a base that cannot be measured as an expert, and a τ for other models."""
    asked = recipe.sensitivity
    assert asked is not None
    if asked.base == "expert":
        if method.base not in ("needed", "optional") or recipe.base_model is None:
            found.refuse(
                ("sensitivity", "base"),
                f"{method.name} has no base beside the merged models here; remove the key",
            )
            return
        if len(recipe.measured) == len(recipe.experts):
            found.refuse(
                ("sensitivity", "base"),
                f"the base is to be measured like an expert; list {recipe.base_model} among the "
                "models, with 'calibration: FILE.jsonl'",
            )
            return
    count = len(recipe.measured)
    if asked.tau is not None and len(asked.tau) != count:
        first = ", the base first" if asked.base == "expert" else ""
        found.refuse(
            ("sensitivity", "tau"),
            f"has {len(asked.tau)} numbers for {count} measured models{first}",
        )


def _models(recipe: Recipe, method: Method, found: Findings) -> None:
    if recipe.slices is not None:
        if recipe.models:
            found.refuse(("models",), "stands beside 'slices'; keep one of the two")
        slices.check(recipe.slices, recipe.places, found)
        for place, part in enumerate(recipe.slices):
            _count(recipe, method, part, ("slices", place, "sources"), found)
        return
    if not recipe.models:
        found.refuse(("models",), "is missing; list the models to merge")
    else:
        _count(recipe, method, recipe.parts[0], ("models",), found)
    _same(recipe, found)
    for place, model in enumerate(recipe.models):
        if model.parameters.root and not any(model is expert for expert in recipe.experts):
            found.note(f"models[{place}].parameters: not used, since this is the base")


def _count(recipe: Recipe, method: Method, part: Slice, at: Location, found: Findings) -> None:
    """Refuse a number of models that the method does not merge."""
    count = len(recipe.experts_of(part))
    base = recipe.base_of(part)
    if count == 0:
        found.refuse(at, "there is no expert to merge; list models besides the base")
    elif count == 1 and method.base != "merged" and base is not None and _is_base(recipe, part):
        found.note(f"{base} is merged with no other model: the output is the model itself")
    elif count < method.least or (method.most is not None and count > method.most):
        beside = {"needed": " besides the base", "merged": ", the base among them"}
        beside["optional"] = beside["needed"]
        where = beside.get(method.base, "") if recipe.base_of(part) is not None else ""
        found.refuse(at, f"{method.name} merges {method.count()}{where}, not {count}")


def _is_base(recipe: Recipe, part: Slice) -> bool:
    """Whether the only expert of a slice is its base."""
    named = (str(recipe.base_of(part)), recipe.experts_of(part)[0].model)
    return len({place_of(name, recipe.places) for name in named}) == 1


def _same(recipe: Recipe, found: Findings) -> None:
    """Note models that are listed twice."""
    places = [place_of(model.model, recipe.places) for model in recipe.models]
    for place, same in enumerate(places):
        first = places.index(same)
        if first < place:
            found.note(f"models[{place}]: is the same model as models[{first}]")


def _tokenizer(recipe: Recipe, found: Findings) -> None:
    """Refuse a tokenizer that is said twice, or comes from somewhere that is not known."""
    names = []
    for _, value in _named(recipe.source):
        with suppress(ValueError):
            names.append(model_name(value))
    known = {place_of(name, recipe.places) for name in names}
    at: Location = ("tokenizer_source",)
    if recipe.tokenizer is not None:
        if recipe.tokenizer_source is not None:
            found.refuse(at, "stands beside 'tokenizer'; keep one of the two")
        at = ("tokenizer", "source")
    wanted = recipe.wanted_tokenizer
    reason = unknown_source(wanted.source, known, recipe.places)
    if reason is not None:
        found.refuse(at, reason)
    for name in wanted.names():
        if place_of(name, recipe.places) not in known:
            found.refuse(
                ("tokenizer", "tokens"),
                f"'{name}' is not a model of the recipe, so it has no row to take",
            )


def _required(recipe: Recipe, method: Method, found: Findings) -> None:
    """Refuse a recipe that does not give a parameter without a default."""
    if found.refused("parameters"):
        return
    for parameter in method.parameters:
        if parameter.default is None:
            for at in _lacking(recipe, parameter):
                found.refuse((*at, "parameters", parameter.name), _missing(parameter, method))


def _lacking(recipe: Recipe, parameter: Parameter) -> Iterator[Location]:
    """Where a value of a parameter belongs that no setting gives."""
    if recipe.parameters.get(parameter.name) is not None:
        return
    for place, part in enumerate(recipe.parts):
        whole = recipe.slices is None
        location: Location = () if whole else ("slices", place)
        if part.parameters.get(parameter.name) is not None:
            continue
        if parameter.owner == "merge":
            yield location
            continue
        merged = recipe.experts_of(part)
        for at, model in enumerate(part.sources):
            own = model.parameters.get(parameter.name)
            if own is None and any(model is expert for expert in merged):
                yield (*location, "models" if whole else "sources", at)


def _missing(parameter: Parameter, method: Method) -> str:
    return f"is missing; {method.name} needs it ({parameter.summary})"
