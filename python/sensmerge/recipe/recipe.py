"""Recipes: mergekit's keys, and the settings of sensitivity.

Every refusal names the key and says what would be right; one run reports all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError
from pydantic_core import ErrorDetails

from sensmerge.errors import InputError
from sensmerge.recipe import checks, methods, parameters
from sensmerge.recipe.fields import (
    Aim,
    Align,
    Dtype,
    Model,
    ModelName,
    OutDtype,
    Sensitivity,
    Strict,
    section,
)
from sensmerge.recipe.findings import Findings
from sensmerge.recipe.leniency import DEFAULT_LENIENCY, Leniency, stray
from sensmerge.recipe.methods import DEFAULT_SEMANTICS, Method, Semantics
from sensmerge.recipe.modules import hoisted
from sensmerge.recipe.parameters import AUTO, SCALE, Parameters
from sensmerge.recipe.places import Places, is_from_here, parts_of, place_of
from sensmerge.recipe.references import overrides, references
from sensmerge.recipe.slices import Slice, whole
from sensmerge.recipe.tokenizer import BASE, Tokenizer, TokenizerName, template
from sensmerge.recipe.yaml import Documents, read_yaml, to_yaml
from sensmerge.refusals import Location, key_of, refusal

# pydantic's name for the error of an unknown key.
_STRAY = "extra_forbidden"


@dataclass(frozen=True)
class Others:
    """The documents of a file of recipes around one that is a stage.

    Attributes:
        name: The name of the stage itself.
        before: Documents before it.
        after: Documents after it.
    """

    name: str | None = None
    before: tuple[dict[str, Any], ...] = ()
    after: tuple[dict[str, Any], ...] = ()


class Recipe(Strict):
    """A merge as the user wrote it. Paths are relative to ``folder``."""

    # Required keys have defaults too, so that the rest of a recipe that lacks one is checked as
    # well.
    merge_method: str = ""
    name: str | None = None
    models: list[Model] = Field(default_factory=list, min_length=1)
    slices: list[Slice] | None = Field(default=None, min_length=1)
    base_model: ModelName | None = None
    parameters: Annotated[Parameters, BeforeValidator(section)] = Parameters({})
    dtype: Dtype | None = None
    out_dtype: OutDtype | None = None
    tokenizer_source: TokenizerName | None = None
    tokenizer: Tokenizer | None = None
    chat_template: Annotated[str | None, BeforeValidator(template)] = None
    align: Align | None = None
    missing: Literal["error", "base", "skip"] = "error"
    aim: Annotated[Aim | None, BeforeValidator(section)] = None
    sensitivity: Annotated[Sensitivity | None, BeforeValidator(section)] = None
    semantics: Semantics = DEFAULT_SEMANTICS
    seed: int = Field(default=0, ge=0, lt=2**64)

    _source: dict[str, Any] = PrivateAttr(default_factory=dict)
    _places: Places = PrivateAttr(default=Places(Path()))
    _path: Path | None = PrivateAttr(default=None)
    _leniency: Leniency = PrivateAttr(default=DEFAULT_LENIENCY)
    _others: Others = PrivateAttr(default=Others())
    _slices: list[Slice] = PrivateAttr(default_factory=list)
    _experts: list[Model] = PrivateAttr(default_factory=list)
    _notes: list[str] = PrivateAttr(default_factory=list)

    def __repr__(self) -> str:
        models = [model.model for model in self.experts]
        return f"Recipe({self.merge_method!r}, models={models}, base_model={self.base_model!r})"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        from sensmerge.recipe.notebook import html_of

        return html_of(self)

    @classmethod
    def load(cls, path: str | Path, *, leniency: Leniency = DEFAULT_LENIENCY) -> Recipe:
        """Read a recipe from a YAML file.

        Args:
            path: The file.
            leniency: Which unknown keys are noted and ignored: those that mergekit ignores too and
                that are no slips (``mergekit``), all (``lenient``), or none (``strict``, which also
                refuses a key that stands twice).

        Raises:
            InputError: The file cannot be read, is not YAML, or is not one recipe; a line for each
                key that is wrong.
        """
        return cls.from_documents(read_yaml(Path(path)), Path(path), leniency=leniency)

    @classmethod
    def from_documents(
        cls, read: Documents, path: Path, *, leniency: Leniency = DEFAULT_LENIENCY
    ) -> Recipe:
        """Build a recipe from the one document of a YAML file.

        Args:
            read: What the file holds.
            path: The file.
            leniency: Which unknown keys are noted and ignored; see :meth:`load`.

        Raises:
            InputError: It is not one recipe; a line for each key that is wrong.
        """
        if len(read.documents) > 1:
            raise InputError(
                f"{path}: holds several documents (stages, with --- between them); `sensmerge "
                "merge`, `plan` and `explain` take such a recipe, this takes a single one"
            )
        wrong = read.twice if leniency == "strict" else []
        try:
            recipe = cls.from_dict(
                next(iter(read.documents), None), folder=path.parent, leniency=leniency
            )
        except InputError as error:
            wrong = [*wrong, *error.lines]
        if wrong:
            raise InputError([f"{path}: {line}" for line in wrong])
        recipe._path = path
        recipe._notes = [*read.twice, *recipe._notes]
        return recipe

    @classmethod
    def from_dict(
        cls, data: Any, folder: str | Path = ".", *, leniency: Leniency = DEFAULT_LENIENCY
    ) -> Recipe:
        """Check a recipe that is already parsed.

        Args:
            data: The recipe's keys and values.
            folder: The folder that relative paths start from.
            leniency: Which unknown keys are noted and ignored; see :meth:`load`.

        Raises:
            InputError: It is not a recipe; the message has a line for each key that is wrong.
        """
        if not isinstance(data, dict):
            raise InputError("a recipe is a mapping with merge_method and models")
        if wrong := list(checks.keys_that_are_no_text(data)):
            raise InputError(wrong)
        found = Findings(leniency)
        method = checks.method(data, found)
        for location in overrides(data):
            found.unused(location, method, "not used; tensors are matched by their names")
        for name in dict.fromkeys(name for _, name in references(data)):
            if is_from_here(name, Path(folder)):
                found.note(
                    f"{name}: is taken from the current folder; the recipe's has no such path"
                )
        known, modules = hoisted(data, cls, method, found)
        known = parameters.read_all(known, method, cls, found)
        recipe = cls._read(known, method, found)
        recipe._source = copy.deepcopy(data)
        recipe._places, recipe._leniency = Places(Path(folder)), leniency
        recipe._slices = recipe.slices or [whole(recipe.models)]
        for place, part in enumerate(recipe.slices or []):
            module = modules[place] if modules else None
            part.placed(key_of(found.written(("slices", place))), module)
        recipe._experts = [] if method is None else recipe._all_merged(method)
        checks.whole(recipe, method, found)
        if data.get("name") is not None:
            found.note("name: names a stage in a file of several documents; this is the only one")
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
        unknown = wrong["type"] == _STRAY
        if unknown:
            stray(location, cls, method, found)
        else:
            said = refusal(wrong, cls)
            found.refuse(said.location, said.reason)
        if not unknown:
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
        return self._places.folder

    @property
    def places(self) -> Places:
        """Where its models lie."""
        return self._places

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

    @property
    def measures_experts(self) -> bool:
        """Whether a calibration runs the experts: not where only ``aim`` needs one."""
        on = self.sensitivity is not None and self.sensitivity.mode != "off"
        return on or self.aim is None or self.method.statistic is not None

    @property
    def measured(self) -> list[Model]:
        """The models that are calibrated: the experts, after the base if it counts as one."""
        listed = self._listed_base()
        if self.sensitivity is None or self.sensitivity.base == "origin" or listed is None:
            return self.experts
        return [listed, *self.experts]

    def _listed_base(self) -> Model | None:
        """The base as it is listed among the models; None if it is not."""
        if self.base_model is None:
            return None
        base = place_of(self.base_model, self._places)
        same = (model for model in self.models if place_of(model.model, self._places) == base)
        return next(same, None)

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
                found.setdefault(place_of(model.model, self._places), model)
        return list(found.values())

    def _merged(self, method: Method, part: Slice) -> list[Model]:
        named, sources = self.base_of(part), list(part.sources)
        if method.base == "unused" or named is None:
            return list[Model](sources)
        base = place_of(named, self._places)
        listed: list[Model] = []
        others: list[Model] = []
        for model in sources:
            same = place_of(model.model, self._places) == base
            (listed if same else others).append(model)
        if method.base != "merged":
            # A base with adapters that stands alone is wanted as it is, with the adapters in it.
            return others or (listed[:1] if parts_of(named, self._places)[1] else [])
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
    def wanted_tokenizer(self) -> Tokenizer:
        """The output's tokenizer, in whichever key it is written; the base's where in none."""
        return self.tokenizer or Tokenizer(source=self.tokenizer_source or BASE)

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
        return self.replaced(data)

    def replaced(self, data: dict[str, Any]) -> Recipe:
        """Other keys and values, read in place of this recipe's and as it was read.

        Raises:
            InputError: As :meth:`from_dict`.
        """
        recipe = Recipe.from_dict(data, folder=self.folder, leniency=self._leniency)
        recipe._path, recipe._places, recipe._others = self._path, self._places, self._others
        return recipe

    def seeded(self, seed: int) -> Recipe:
        """The recipe with another seed."""
        return self.replaced(self._source | {"seed": seed})

    def staged(self, stages: Mapping[str, Path], others: Others) -> Recipe:
        """The recipe as one stage of several.

        Args:
            stages: The folders of models that earlier stages wrote, by their names.
            others: The documents around this one.
        """
        recipe = self.model_copy()
        recipe._places, recipe._others = Places(self.folder, stages), others
        return recipe

    def to_yaml(self) -> str:
        """The recipe as YAML, with the keys that the user wrote; a stage with those it needs."""
        own = (
            self._source
            if self._others.name is None
            else {"name": self._others.name, **self._source}
        )
        documents = [*self._others.before, own, *self._others.after]
        return "---\n".join(map(to_yaml, documents))
