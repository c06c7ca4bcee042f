"""The farm file: a recipe, what of it varies, how candidates are scored, and what is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from sensmerge.errors import InputError
from sensmerge.farm.evaluators.registry import Evaluate
from sensmerge.merging.plan import parse_size
from sensmerge.recipe import Recipe
from sensmerge.recipe.fields import Strict
from sensmerge.recipe.schema import recipe_schema
from sensmerge.recipe.yaml import read_yaml
from sensmerge.refusals import refusal

# More candidates than anybody merges.
MOST = 100_000


def _size(value: Any) -> Any:
    try:
        return None if value is None else parse_size(value, "size")
    except InputError as error:
        raise ValueError(str(error).removeprefix("size: ")) from None


def _values(value: list[Any]) -> list[Any]:
    twice = next((each for place, each in enumerate(value) if each in value[:place]), None)
    if twice is not None:
        raise ValueError(f"has {twice} twice")
    return value


def _recipe(value: Any) -> Any:
    if not isinstance(value, str | dict):
        raise ValueError("expected a recipe, or the path of one")
    return value


Values = Annotated[list[Any], Field(min_length=1), AfterValidator(_values)]


class Range(Strict):
    """An interval in which a study looks for a number.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        log: Whether it is searched on a logarithmic scale.
        whole: Whether only whole numbers are meant.
    """

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False
    whole: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low, {self.low:g}, is not below high, {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic scale needs numbers above 0")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("whole numbers lie between whole numbers")
        return self


class Choice(Strict):
    """Values that a study chooses from, written as a list."""

    values: Values

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        kinds = str | int | float | None
        if not all(isinstance(each, kinds) for each in value):
            raise ValueError("a study chooses among single values")
        return {"values": value}


# How pydantic calls the two in the places of faults.
_RANGE, _CHOICE = "range", "choice"
Interval = Annotated[
    Annotated[Range, Tag(_RANGE)] | Annotated[Choice, Tag(_CHOICE)],
    Discriminator(lambda value: _CHOICE if isinstance(value, list | Choice) else _RANGE),
]


class StudySettings(Strict):
    """A study by Optuna.

    Attributes:
        ranges: For every place that varies an interval, a list of values, or nothing: then it is
            searched where the method's schema says.
        trials: Candidates in all.
        sampler: What proposes candidates.
        seed: Its seed.
    """

    ranges: Annotated[dict[str, Interval | None], Field(min_length=1)]
    trials: int = Field(default=50, ge=1, le=MOST)
    sampler: Literal["tpe", "cmaes", "random"] = "tpe"
    seed: int = Field(default=0, ge=0, lt=2**31)


class FarmFile(Strict):
    """A farm.

    Attributes:
        recipe: The recipe of which candidates are made, or the path of its file.
        grid: For every place that varies its values; each combination is a candidate.
        study: Ranges, in which Optuna looks for candidates.
        evaluate: How candidates are scored.
        keep: How many of the best models stay on the disk.
        disk: What the farm's folder may take, in bytes; None is no bound.
        calibration: A calibration that was measured before; None measures what is needed.
    """

    recipe: Annotated[Any, AfterValidator(_recipe)]
    grid: Annotated[dict[str, Values], Field(min_length=1)] | None = None
    study: StudySettings | None = None
    evaluate: Evaluate
    keep: int = Field(default=3, ge=0)
    disk: Annotated[int | None, BeforeValidator(_size)] = None
    calibration: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> FarmFile:
        if (self.grid is None) == (self.study is None):
            raise ValueError("give a grid or a study, one of them")
        combinations = math.prod(len(values) for values in (self.grid or {}).values())
        if combinations > MOST:
            raise ValueError(f"the grid has {combinations} combinations; {MOST} are the most")
        return self

    @classmethod
    def load(cls, path: Path) -> FarmFile:
        """Read a farm file.

        Raises:
            InputError: It cannot be read, or is none; a line for each key that is wrong.
        """
        read = read_yaml(path)
        if len(read.documents) != 1 or not isinstance(read.documents[0], dict):
            raise InputError(
                f"{path}: a farm is a mapping with recipe, grid or study, and evaluate"
            )
        wrong = [f"{path}: {said}" for said in read.twice]
        try:
            found = cls.model_validate(read.documents[0])
        except ValidationError as error:
            wrong += [f"{path}: {_said(each)}" for each in error.errors()]
        if wrong:
            raise InputError(wrong)
        return found

    def template(self, path: Path) -> Recipe:
        """Its recipe, as it is without any value of the grid or the study.

        Args:
            path: The farm file, from whose folder paths start.

        Raises:
            InputError: It is no recipe; a line for each key that is wrong.
        """
        if isinstance(self.recipe, str):
            return Recipe.load(path.parent / self.recipe)
        try:
            return Recipe.from_dict(self.recipe, folder=path.parent)
        except InputError as error:
            raise InputError([f"{path}: recipe: {line}" for line in error.lines]) from None


def _said(found: Any) -> str:
    said = refusal(found, FarmFile)
    if not said.location:
        return said.reason
    own = {_RANGE, _CHOICE, "values"} if said.location[:2] == ("study", "ranges") else set()
    location = tuple(part for part in said.location if part not in own)
    return str(type(said)(location, said.reason))


def farm_schema() -> dict[str, Any]:
    """A JSON Schema of farm files, for editors."""
    schema = FarmFile.model_json_schema()
    recipe = recipe_schema()
    schema["$defs"] |= recipe.pop("$defs")
    recipe.pop("$schema")
    schema["$defs"]["Recipe"] = recipe
    path = {"type": "string", "description": "the path of a recipe"}
    schema["properties"]["recipe"] = {"anyOf": [path, {"$ref": "#/$defs/Recipe"}]}
    size = {"type": ["string", "integer", "null"], "description": "such as 200GB"}
    schema["properties"]["disk"] = size
    listed = {"type": "array", "items": {"type": ["string", "number", "boolean", "null"]}}
    ranges = schema["$defs"]["StudySettings"]["properties"]["ranges"]
    ranges["additionalProperties"] = {
        "anyOf": [{"$ref": "#/$defs/Range"}, listed, {"type": "null"}]
    }
    schema["$defs"].pop("Choice", None)
    evaluate = schema["properties"]["evaluate"]
    names = list(schema["$defs"]["Evaluate"]["properties"])
    schema["properties"]["evaluate"] = {"anyOf": [evaluate, {"enum": names}]}
    run = schema["$defs"]["CommandSettings"]["properties"]["run"]
    schema["$defs"]["CommandSettings"]["properties"]["run"] = {
        "anyOf": [run, {"type": "string"}],
        "description": "the command; the model's folder stands in the place of {model}",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Merge farm",
        "oneOf": [{"required": ["grid"]}, {"required": ["study"]}],
    }
