"""What the user wrote: mergekit's keys, and how sensitivity is measured and used.

Every refusal names the key and says what would be right.
"""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sensmerge.errors import InputError
from sensmerge.recipe.numbers import numbers
from sensmerge.refusals import explain

MethodName = Literal["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"]
Dtype = Literal["bfloat16", "float16", "float32", "float64"]

DEFAULT_TEMPERATURE = 0.05

# What a search over the calibration samples is to find.
AUTO = "auto"

_NUMBER_OR_LIST = "a number, a list of numbers, or a list of {filter, value}"


def _setting(value: Any) -> Any:
    """Refuse what is no setting, and numbers that are not finite."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return [_condition(part) for part in value]
    if isinstance(value, dict):
        return _setting([value])
    if isinstance(value, list) and value:
        return [_number(part) for part in value]
    return _number(value)


def _condition(part: dict[str, Any]) -> dict[str, Any]:
    if "value" not in part or not set(part) <= {"filter", "value"}:
        raise ValueError("each condition has a value and, if not for all, a filter")
    if not isinstance(part.get("filter"), str | None):
        raise ValueError(
            f"filter: {part['filter']} is no text; a filter is part of a tensor's name"
        )
    return part | {"value": _setting(part["value"])}


def _number(value: Any) -> float:
    # YAML 1.1 files write 1e-3, which is a string there; a boolean is no number.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected {_NUMBER_OR_LIST}")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"expected {_NUMBER_OR_LIST}, not '{value}'") from None
    except OverflowError:
        raise ValueError("the number is too large") from None
    if not math.isfinite(number):
        raise ValueError(f"{value} is not a finite number")
    return number


def _density(value: Any) -> Any:
    checked = _setting(value)
    for number in numbers(checked):
        if not 0 < number <= 1:
            raise ValueError(f"{number:g} is not a fraction of entries to keep, in (0, 1]")
    return checked


def _scale(value: Any) -> Any:
    return AUTO if value == AUTO else _setting(value)


def _temperature(value: Any) -> Any:
    if value == AUTO:
        return AUTO
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("expected a number above 0, or auto")
    number = _number(value)
    if number <= 0:
        raise ValueError(f"{value} is not above 0")
    return number


def _name(value: Any) -> Any:
    """mergekit also takes a model as a mapping: {model: {path, revision}, lora: {path}}."""
    if not isinstance(value, dict):
        return value
    if "model" not in value:
        return _path(value)
    if not set(value) <= {"model", "lora"}:
        raise ValueError("expected a path, a Hub id, or {model: {path, revision}}")
    adapter = value.get("lora")
    return _path(value["model"]) + ("" if adapter is None else f"+{_path(adapter)}")


def _path(value: Any) -> str:
    if isinstance(value, dict) and set(value) <= {"path", "revision"}:
        path, revision = value.get("path"), value.get("revision")
        value = path if revision is None else f"{path}@{revision}"
        value = value if isinstance(path, str) else None
    if not isinstance(value, str):
        raise ValueError("expected a path, a Hub id, or {model: {path, revision}}")
    return value


def _mode(value: Any) -> Any:
    # YAML 1.1 reads a bare `off` as false.
    return "off" if value is False else value


def _section(value: Any) -> Any:
    # A key with nothing under it asks for the defaults.
    return {} if value is None else value


def _task(value: Any) -> Any:
    return {"path": value} if isinstance(value, str | list) else value


def _files(value: Any) -> list[str]:
    files = value if isinstance(value, list) else [value]
    if not files or not all(isinstance(file, str) and file for file in files):
        raise ValueError("expected a file of samples, or a list of them")
    twice = next((file for place, file in enumerate(files) if file in files[:place]), None)
    if twice is not None:
        raise ValueError(f"names '{twice}' twice")
    return files


SettingField = Annotated[Any, AfterValidator(_setting)]
ScaleField = Annotated[Any, AfterValidator(_scale)]
TemperatureField = Annotated[Any, AfterValidator(_temperature)]
DensityField = Annotated[Any, AfterValidator(_density)]
ModelName = Annotated[str, BeforeValidator(_name), Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Task(_Strict):
    """Where an expert's calibration samples are.

    Attributes:
        files: Files of samples, relative to the recipe; their rows are drawn together.
        samples: How many to draw; None takes the recipe's number.
        max_length: Longest sample in tokens; None takes the recipe's.
    """

    files: Annotated[list[str], BeforeValidator(_files)] = Field(alias="path")
    samples: int | None = Field(default=None, ge=1)
    max_length: int | None = Field(default=None, ge=2)

    @property
    def path(self) -> str:
        """The file; several with a comma between them."""
        return ", ".join(self.files)


class ModelParameters(_Strict):
    """One model's own settings; what is None is the recipe's."""

    weight: SettingField = None
    density: DensityField = None
    ties_density: DensityField = None
    # mergekit's; it saves memory there and changes nothing here.
    int8_mask: bool | None = None


class Parameters(ModelParameters):
    """Settings for all models, and of the merge as a whole."""

    lambda_: ScaleField = Field(default=None, alias="lambda")
    normalize: bool | None = None
    rescale: bool | None = None


class Model(_Strict):
    """An expert, or the base listed among the models."""

    model: ModelName
    parameters: Annotated[ModelParameters, BeforeValidator(_section)] = Field(
        default_factory=ModelParameters
    )
    calibration: Annotated[Task | None, BeforeValidator(_task)] = None


class Sensitivity(_Strict):
    """How sensitivity is measured and turned into coefficients.

    Attributes:
        mode: ``full``; ``task`` drops τ and ``cross`` drops α (the paper's ablation); ``off`` is
            the plain method.
        temperature: T of Eq. 6, or ``auto``.
        cross_task: Eq. 5 of the camera-ready paper (``transfer``) or of the preprint
            (``distance``).
        positions: Which tokens the loss and the logit distance look at.
        distance: Mean of the per-position L2 norms, or the norm of the whole sequence.
        outside_blocks: What tensors outside the decoder blocks get.
        dtype: In which dtype models run.
        samples: Samples an expert.
        max_length: Longest sample in tokens.
        seed: Seed of the draw.
    """

    mode: Annotated[Literal["full", "task", "cross", "off"], BeforeValidator(_mode)] = "full"
    temperature: TemperatureField = DEFAULT_TEMPERATURE
    cross_task: Literal["transfer", "distance"] = "transfer"
    positions: Literal["completion", "all"] = "completion"
    distance: Literal["token", "sequence"] = "token"
    outside_blocks: Literal["uniform", "cross", "own"] = "uniform"
    dtype: Literal["stored", "float32"] = "stored"
    samples: int = Field(default=10, ge=1)
    max_length: int = Field(default=512, ge=2)
    seed: int = 0


class Recipe(_Strict):
    """A merge as the user wrote it. Paths are relative to ``folder``."""

    merge_method: MethodName
    models: list[Model] = Field(min_length=1)
    base_model: ModelName | None = None
    parameters: Annotated[Parameters, BeforeValidator(_section)] = Field(default_factory=Parameters)
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: ModelName | None = None
    chat_template: Literal["auto"] | None = None
    sensitivity: Annotated[Sensitivity | None, BeforeValidator(_section)] = None
    semantics: Literal["mergekit", "original"] = "mergekit"
    seed: int = Field(default=0, ge=0, lt=2**64)

    _source: dict[str, Any] = PrivateAttr(default_factory=dict)
    _folder: Path = PrivateAttr(default_factory=Path)
    _path: Path | None = PrivateAttr(default=None)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a YAML file.

        Raises:
            InputError: The file cannot be read, is not YAML, or is not a recipe.
        """
        path = Path(path)
        try:
            data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        except MarkedYAMLError as error:
            mark = error.problem_mark
            line = f", line {mark.line + 1}" if mark is not None else ""
            raise InputError(f"{path}{line}: not YAML: {error.problem}") from None
        except (YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not YAML: {error}") from None
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        try:
            recipe = cls.from_dict(data, folder=path.parent)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        recipe._path = path
        return recipe

    @classmethod
    def from_dict(cls, data: Any, folder: str | Path = ".") -> Recipe:
        """Check a recipe that is already parsed.

        Raises:
            InputError: It is not a recipe; the message names the key.
        """
        if not isinstance(data, dict):
            raise InputError("a recipe is a mapping with merge_method and models")
        _refuse_unsupported(data)
        try:
            recipe = cls.model_validate(
                {k: v for k, v in data.items() if k not in _UNSUPPORTED or v is not None}
            )
        except ValidationError as error:
            raise InputError(explain(error, cls)) from None
        recipe._source = copy.deepcopy(data)
        recipe._folder = Path(folder)
        recipe._check()
        return recipe

    @classmethod
    def of(cls, recipe: Recipe | str | Path) -> Recipe:
        """A recipe, read if it is a path.

        Raises:
            InputError: As :meth:`load`.
        """
        return recipe if isinstance(recipe, Recipe) else cls.load(recipe)

    @property
    def folder(self) -> Path:
        """What paths are relative to."""
        return self._folder

    @property
    def path(self) -> Path | None:
        """The file it was read from."""
        return self._path

    @property
    def source(self) -> dict[str, Any]:
        """The keys and values that the user wrote."""
        return self._source

    @property
    def auto(self) -> list[str]:
        """The keys whose values a search is to find."""
        found = []
        if self.parameters.lambda_ == AUTO:
            found.append("parameters.lambda")
        on = self.sensitivity is not None and self.sensitivity.mode != "off"
        if on and self.sensitivity is not None and self.sensitivity.temperature == AUTO:
            found.append("sensitivity.temperature")
        return found

    def require_numbers(self) -> None:
        """Refuse values that are still to be found.

        Raises:
            InputError: It names the keys.
        """
        if self.auto:
            raise InputError(
                f"{' and '.join(self.auto)}: auto is what `sensmerge merge` searches for; write a "
                "number here, such as the one that it recorded beside the merged model"
            )

    def chosen(self, scale: float, temperature: float) -> Recipe:
        """The recipe with numbers where it says ``auto``.

        Args:
            scale: λ.
            temperature: T.
        """
        data = copy.deepcopy(self._source)
        for section, key, value in (
            ("parameters", "lambda", scale),
            ("sensitivity", "temperature", temperature),
        ):
            if isinstance(data.get(section), dict) and data[section].get(key) == AUTO:
                data[section][key] = value
        recipe = Recipe.from_dict(data, folder=self._folder)
        recipe._path = self._path
        return recipe

    @property
    def experts(self) -> list[Model]:
        """The models that are merged: all but the base, in the recipe's order."""
        if self.merge_method == "linear":
            return self.models
        return [model for model in self.models if model.model != self.base_model]

    def settings(
        self, expert: Model, key: Literal["weight", "density", "ties_density"]
    ) -> list[Any]:
        """What the recipe says of a key, the strongest first: the model's own, then all models'."""
        return [getattr(expert.parameters, key), getattr(self.parameters, key)]

    def to_yaml(self) -> str:
        """The recipe as YAML, with the keys that the user wrote."""
        return to_yaml(self._source)

    def _check(self) -> None:
        """Refuse what each key allows but the recipe as a whole does not."""
        if not self.experts:
            raise InputError("models: no expert to merge; list models besides the base")
        if self.merge_method != "linear" and self.base_model is None:
            raise InputError(
                f"base_model: {self.merge_method} adds task vectors to a base; name the model that "
                "the experts were tuned from"
            )
        if self.merge_method == "linear" and self.parameters.lambda_ not in (None, 1.0):
            raise InputError("parameters.lambda: linear has no lambda; remove the key")
        self._check_tokenizer()
        drops = self.merge_method.startswith("dare")
        trims = self.merge_method == "ties" and self.semantics == "mergekit"
        if self.parameters.rescale and not (drops or trims):
            if self.semantics == "original":
                raise InputError(
                    f"parameters.rescale: {self.merge_method} with semantics: original does not "
                    "rescale; remove the key"
                )
            # mergekit takes the key for every method, and for this one does nothing with it.
            self.parameters.rescale = None
        self._check_whole_model_densities()

    def _check_tokenizer(self) -> None:
        source = self.tokenizer_source
        known = ["base", self.base_model, *(model.model for model in self.models)]
        if source == "union":
            raise InputError(
                "tokenizer_source: 'union' is not supported; models with one tokenizer are "
                "merged, use 'base'"
            )
        if source is not None and source not in known:
            raise InputError(
                f"tokenizer_source: '{source}' is no model of the recipe; use 'base' or name one"
            )

    def _check_whole_model_densities(self) -> None:
        trimmed_by = {"ties": "density", "dare_ties": "ties_density"}.get(self.merge_method)
        if self.semantics != "original" or trimmed_by is None:
            return
        owners = [("parameters", self.parameters.model_dump())]
        owners += [
            (f"models[{place}].parameters", model.parameters.model_dump())
            for place, model in enumerate(self.models)
        ]
        for key, settings in owners:
            if isinstance(settings[trimmed_by], list):
                raise InputError(
                    f"{key}.{trimmed_by}: the trim of semantics: original is over the whole model "
                    "and takes one number; use semantics: mergekit for densities by layer"
                )


def to_yaml(data: dict[str, Any]) -> str:
    """A recipe's keys and values as YAML, in their order."""
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(data, text)
    return text.getvalue()


_UNSUPPORTED = {
    "slices": "merging slices is not supported; list whole models under 'models'",
    "modules": "merging modules is not supported; list whole models under 'models'",
    "tokenizer": "building a tokenizer is not supported; use tokenizer_source: base",
    "chat_template": "replacing it is not supported; the tokenizer's files are copied as they are",
}


def _refuse_unsupported(data: dict[str, Any]) -> None:
    for key, reason in _UNSUPPORTED.items():
        allowed = (None, "auto") if key == "chat_template" else (None,)
        if data.get(key) not in allowed:
            raise InputError(f"{key}: {reason}")
