"""A JSON Schema of recipes, for editors that complete and check while a recipe is typed."""

from __future__ import annotations

from typing import Any

from sensmerge.recipe import mergekit, methods
from sensmerge.recipe.methods import Method, Parameter
from sensmerge.recipe.parameters import AUTO, SCALE
from sensmerge.recipe.recipe import Recipe
from sensmerge.recipe.tables import values

_TEXT = {"type": "string"}
_SETTING = {"$ref": "#/$defs/Setting"}


def recipe_schema() -> dict[str, Any]:
    """The schema: sections as pydantic describes them, methods and parameters as the core does."""
    schema = Recipe.model_json_schema(by_alias=True)
    sections = schema["$defs"]
    sections["Number"] = {"type": ["number", "string"], "description": "1e-3 may be text in YAML"}
    sections["Setting"] = _setting()
    sections["Parameters"] = _parameters("parameters of all models and of the merge", None)
    sections["ModelParameters"] = _parameters("a model's own parameters", "model")
    sections["ModelName"] = _model_name()
    for place in (sections["Model"], sections["Source"], sections["Slice"], schema):
        place["properties"] |= {
            key: {"$ref": "#/$defs/ModelName"}
            for key in ("model", "base_model", "tokenizer_source")
            if key in place["properties"]
        }
    samples: dict[str, Any] = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}
    sections["Task"]["properties"]["path"] = samples
    task = {
        "description": "the samples: a file, several, or a mapping",
        "anyOf": [*samples["anyOf"], {"$ref": "#/$defs/Task"}],
    }
    for name in ("Model", "Source"):
        sections[name]["properties"] |= {
            "parameters": _or_empty("ModelParameters"),
            "calibration": task,
        }
    sections["Aim"]["properties"]["calibration"] = task
    sections["Aim"]["properties"]["omega"] |= {"minimum": 0, "maximum": 1}
    sections["Slice"]["properties"]["parameters"] = _or_empty("Parameters")
    sections["Sensitivity"]["properties"]["temperature"] = {
        "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"const": AUTO}],
        "default": sections["Sensitivity"]["properties"]["temperature"]["default"],
    }
    schema["properties"]["name"] |= {
        "description": "of a stage, in a file of several recipes with --- between them"
    }
    schema["properties"]["align"] |= {
        "description": "permutation: the neurons and attention heads of every model are brought "
        "into the base's order before the merge"
    }
    schema["properties"]["modules"] = _modules(schema["properties"])
    schema["properties"]["parameters"] = _or_empty("Parameters")
    schema["properties"]["sensitivity"] = _or_empty("Sensitivity")
    schema["properties"]["aim"] = _or_empty("Aim")
    schema["properties"]["merge_method"] = {
        "oneOf": [
            {"const": method.name, "title": method.title, "description": method.summary}
            for method in methods.every()
        ]
    }
    schema["allOf"] = [rule for method in methods.every() if (rule := _needs(method))]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Recipe of a merge",
        "required": ["merge_method"],
        "anyOf": [{"required": [key]} for key in ("models", "slices", "modules")],
    }


def _modules(recipe: dict[str, Any]) -> dict[str, Any]:
    """Modules by their names, with the keys that a module may have of a recipe's."""
    keys = ("models", "slices", "base_model")
    module = {
        "type": "object",
        "properties": {key: recipe[key] for key in keys} | {"parameters": _or_empty("Parameters")},
        "additionalProperties": False,
    }
    return {
        "type": ["object", "null"],
        "minProperties": 1,
        "additionalProperties": module,
    }


def _setting() -> dict[str, Any]:
    number = {"$ref": "#/$defs/Number"}
    gradient = {"type": "array", "items": number, "minItems": 1}
    condition = {
        "type": "object",
        "properties": {
            "filter": {"type": ["string", "null"], "description": "a part of tensors' names"},
            "value": _SETTING,
        },
        "required": ["value"],
        "additionalProperties": False,
    }
    return {
        "description": "a number, a gradient over the depth of the model, or conditions by name",
        "anyOf": [number, gradient, condition, gradient | {"items": condition}],
    }


def _parameters(description: str, owner: Any) -> dict[str, Any]:
    properties = {name: _parameter(name) for name in methods.parameter_names(owner)}
    for name in sorted(mergekit.OTHER_PARAMETERS):
        properties.setdefault(name, {"description": "mergekit's; not used", "deprecated": True})
    return {
        "description": description,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _parameter(name: str) -> dict[str, Any]:
    """A parameter as any method accepts it; with a range if all methods have the same."""
    by_method: dict[str, list[str]] = {}
    for method in methods.every():
        parameter = method.parameter(name)
        if parameter is not None:
            by_method.setdefault(values(parameter), []).append(method.name)
    known = methods.parameters_named(name)
    described = [f"{', '.join(each)}: {said}" for said, each in by_method.items()]
    schema: dict[str, Any] = {"description": "; ".join([known[0].summary, *described])}
    if known[0].kind == "switch":
        return schema | {"type": ["boolean", "null"]}
    choices: list[dict[str, Any]] = [_SETTING]
    if name == SCALE:
        choices.append({"const": AUTO})
    bounds = _bounds(known)
    if bounds:
        schema |= {"if": {"type": "number"}, "then": bounds}
    return schema | {"anyOf": choices}


def _bounds(parameters: list[Parameter]) -> dict[str, float]:
    """The bounds of a number that all methods share."""
    if len({parameter.range for parameter in parameters}) > 1:
        return {}
    found = parameters[0].range
    named = {
        "exclusiveMinimum": found.above, "minimum": found.least, "maximum": found.most,
    }  # fmt: skip
    return {key: bound for key, bound in named.items() if bound is not None}


def _model_name() -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    path = {
        "type": "object",
        "properties": {"path": text, "revision": {"type": ["string", "null"]}},
        "required": ["path"],
        "additionalProperties": False,
    }
    model = {
        "type": "object",
        "properties": {
            "model": {"anyOf": [text, path]},
            "lora": {"anyOf": [text, path, {"type": "null"}]},
            "override_architecture": {"type": ["string", "null"], "description": "not used"},
        },
        "required": ["model"],
        "additionalProperties": False,
    }
    return {
        "description": "a path, relative to the recipe, or a Hub id such as org/name@revision",
        "anyOf": [text, path, model, {"type": "null"}],
    }


def _or_empty(section: str) -> dict[str, Any]:
    return {"anyOf": [{"$ref": f"#/$defs/{section}"}, {"type": "null"}]}


def _needs(method: Method) -> dict[str, Any]:
    """The keys that a method requires, as a rule of the schema; empty if it requires none."""
    then: dict[str, Any] = {}
    if method.base == "needed":
        then["required"] = ["base_model"]
    missing = [
        parameter.name
        for parameter in method.parameters
        if parameter.owner == "merge" and parameter.default is None
    ]
    if missing:
        then.setdefault("required", []).append("parameters")
        then["properties"] = {"parameters": {"required": missing}}
    if not then:
        return {}
    return {"if": {"properties": {"merge_method": {"const": method.name}}}, "then": then}
