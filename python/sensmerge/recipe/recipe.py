"""Recipes: mergekit's keys, and the settings of sensitivity.

Every refusal names the key and says what would be right; one run reports all of them.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError
from pydantic_core import ErrorDetails

from sensmerge.errors import InputError
from sensmerge.recipe import checks, mergekit, methods, parameters
from sensmerge.recipe.fields import Dtype, Model, ModelName, OutDtype, Sensitivity, Strict, section
from sensmerge.recipe.findings import Findings
from sensmerge.recipe.methods import DEFAULT_SEMANTICS, Method, Semantics
from sensmerge.recipe.parameters import AUTO, SCALE, Parameters
from sensmerge.recipe.places import place_of
from sensmerge.recipe.slices import Slice, hoisted, whole
from sensmerge.recipe.yaml import read_yaml, to_yaml
from sensmerge.refusals import Location, refusal

# pydantic's name for the error of an unknown key.
_STRAY = "extra_forbidden"


class Recipe(Strict):
    """A merge as the user wrote it. Paths are relative to ``folder``."""

    # Required keys have defaults too, so that the rest of a recipe that lacks one is checked as
    # well.
    merge_method: str = ""
    models: list[Model] = Field(default_factory=list, min_length=1)
    slices: list[Slice] | None = Field(default=None, min_length=1)
    base_model: ModelName | None = None
    parameters: Annotated[Parameters, BeforeValidator(section)] = Parameters({})
    dtype: Dtype | None = None
    out_dtype: OutDtype | None = None
    tokenizer_source: ModelName | None = None
    chat_template: Literal["auto"] | None = None
    sensitivity: Annotated[Sensitivity | None, BeforeValidator(section)] = None
    semantics: Semantics = DEFAULT_SEMANTICS
    seed: int = Field(default=0, ge=0, lt=2**64)

    _source: dict[str, Any] = PrivateAttr(default_factory=dict)
    _folder: Path = PrivateAttr(default_factory=Path)
    _path: Path | None = PrivateAttr(default=None)
    _slices: list[Slice] = PrivateAttr(default_factory=list)
    _experts: list[Model] = PrivateAttr(default_factory=list)
    _notes: list[str] = PrivateAttr(default_factory=list)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a YAML file.

        Raises:
            InputError: The file cannot be read, is not YAML, or is not a recipe; a line for each
                key that is wrong.
        """
        path = Path(path)
        documents, wrong = read_yaml(path)
        recipe = None
        for place, data in enumerate(documents or [None], start=1):
            stage = f"document {place}: " if len(documents) > 1 else ""
            try:
                recipe = cls.from_dict(data, folder=path.parent)
            except InputError as error:
                wrong += [f"{path}: {stage}{line}" for line in str(error).splitlines()]
        if wrong or recipe is None:
            raise InputError("\n".join(wrong))
        recipe._path = path
        return recipe

    @classmethod
    def from_dict(cls, data: Any, folder: str | Path = ".") -> Recipe:
        """Check a recipe that is already parsed.

        Args:
            data: The recipe's keys and values.
            folder: The folder that relative paths start from.

        Raises:
            InputError: It is not a recipe; the message has a line for each key that is wrong.
        """
        if not isinstance(data, dict):
            raise InputError("a recipe is a mapping with merge_method and models")
        found = Findings()
        method = checks.method(data, found)
        known = checks.supported(data, found)
        checks.adapters(data, Path(folder), found)
        known = hoisted(known, found)
        known = parameters.read_all(known, method, cls, found)
        recipe = cls._read(known, method, found)
        recipe._source = copy.deepcopy(data)
        recipe._folder = Path(folder)
        recipe._slices = recipe.slices or [whole(recipe.models)]
        recipe._experts = [] if method is None else recipe._all_merged(method)
        checks.whole(recipe, method, found)
        found.check(map(str, data))
        recipe._notes = found.notes
        return recipe

    @classmethod
    def _read(cls, data: dict[str, Any], method: Method | None, found: Findings) -> Recipe:
        """Read all keys of a recipe that can be read; the others are refused and left out."""
        data = copy.deepcopy(data)
        if found.refused("merge_method"):
            data.pop("merge_method", None)
        while True:
            try:
                return cls.model_validate(data)
            except ValidationError as error:
                # Unknown keys first: any other error takes the whole section out.
                errors = sorted(error.errors(), key=lambda each: each["type"] != _STRAY)
                for wrong in errors:
                    cls._leave_out(wrong, data, method, found)

    @classmethod
    def _leave_out(
        cls, wrong: ErrorDetails, data: dict[Any, Any], method: Method | None, found: Findings
    ) -> None:
        location: Location = wrong["loc"]
        stray = wrong["type"] == _STRAY
        if stray and mergekit.ignores(location, cls, method):
            found.unused(location, method, "unknown key, not used")
        else:
            said = refusal(wrong, cls)
            found.refuse(said.location, said.reason)
        if not stray:
            data.pop(location[0], None)
            found.leave_out(str(location[0]))
            return
        place: Any = data
        for part in location[:-1]:
            place = place[part]
        del place[location[-1]]

    @classmethod
    def of(cls, recipe: Recipe | str | Path) -> Recipe:
        """A recipe, read if it is a path.

        Raises:
            InputError: As :meth:`load`.
        """
        return recipe if isinstance(recipe, Recipe) else cls.load(recipe)

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self._folder

    @property
    def path(self) -> Path | None:
        """The file it was read from; None if it was not read from a file."""
        return self._path

    @property
    def source(self) -> dict[str, Any]:
        """The keys and values that the user wrote."""
        return self._source

    @property
    def notes(self) -> list[str]:
        """Notes for the user: keys without effect, models that are listed twice."""
        return list(self._notes)

    @property
    def method(self) -> Method:
        """The description of the method, in the recipe's semantics."""
        method = methods.find(self.merge_method, self.semantics)
        assert method is not None, "a recipe's method is looked up when it is read"
        return method

    @property
    def parts(self) -> list[Slice]:
        """The slices; for a recipe that lists models, one of all their layers."""
        return self._slices

    @property
    def experts(self) -> list[Model]:
        """The merged models, in the recipe's order; those of slices, each once.

        All models but the base; if the method merges the base too, the base is the first.
        """
        return self._experts

    def base_of(self, part: Slice) -> str | None:
        """The base of a slice."""
        return self.base_model if part.base_model is None else part.base_model

    def experts_of(self, part: Slice) -> list[Model]:
        """The merged models of a slice, as :attr:`experts`."""
        return self._merged(self.method, part)

    def _all_merged(self, method: Method) -> list[Model]:
        if self.slices is None:
            return self._merged(method, self._slices[0])
        found: dict[str, Model] = {}
        for part in self._slices:
            for model in self._merged(method, part):
                found.setdefault(place_of(model.model, self._folder), model)
        return list(found.values())

    def _merged(self, method: Method, part: Slice) -> list[Model]:
        named, sources = self.base_of(part), list(part.sources)
        if method.base == "unused" or named is None:
            return list[Model](sources)
        base = place_of(named, self._folder)
        listed: list[Model] = []
        others: list[Model] = []
        for model in sources:
            same = place_of(model.model, self._folder) == base
            (listed if same else others).append(model)
        if method.base != "merged":
            return others
        return [*(listed[:1] or [Model(model=named)]), *others]

    def settings(self, expert: Model, name: str, part: Slice | None = None) -> list[Any]:
        """The settings of a parameter in order of precedence: the model's own, then that for all.

        Each in the form that :mod:`sensmerge.recipe.numbers` resolves; None if there is none.

        Args:
            expert: The model.
            name: The parameter.
            part: The slice that it is a source of; None if the recipe lists models.
        """
        of_slice = [] if part is None else [part.parameters.get(name)]
        return [expert.parameters.get(name), *of_slice, self.parameters.get(name)]

    def value(self, name: str) -> Any:
        """The value of a parameter for the whole merge: the recipe's, or the default."""
        said = self.parameters.get(name)
        return self.default(name) if said is None else said

    def default(self, name: str) -> Any:
        """The method's default of a parameter; None if there is no default or no such parameter."""
        parameter = self.method.parameter(name)
        return None if parameter is None else parameter.default

    @property
    def auto(self) -> list[str]:
        """The keys with the value ``auto``, which a search is to find."""
        found = []
        if self.parameters.get(SCALE) == AUTO:
            found.append(f"parameters.{SCALE}")
        on = self.sensitivity is not None and self.sensitivity.mode != "off"
        if on and self.sensitivity is not None and self.sensitivity.temperature == AUTO:
            found.append("sensitivity.temperature")
        return found

    def require_numbers(self) -> None:
        """Refuse a recipe with ``auto`` values.

        Raises:
            InputError: The recipe has such values; the message names their keys.
        """
        if self.auto:
            raise InputError(
                f"{' and '.join(self.auto)}: only `sensmerge merge` searches for auto; write a "
                "number here, such as the one that it recorded beside the merged model"
            )

    def chosen(self, scale: float, temperature: float) -> Recipe:
        """The recipe with numbers in place of ``auto``.

        Args:
            scale: λ.
            temperature: T.
        """
        data = copy.deepcopy(self._source)
        for part, key, value in (
            ("parameters", SCALE, scale),
            ("sensitivity", "temperature", temperature),
        ):
            if isinstance(data.get(part), dict) and data[part].get(key) == AUTO:
                data[part][key] = value
        recipe = Recipe.from_dict(data, folder=self._folder)
        recipe._path = self._path
        return recipe

    def to_yaml(self) -> str:
        """The recipe as YAML, with the keys that the user wrote."""
        return to_yaml(self._source)
