"""The parts of a recipe beside its numbers: models, samples, and how sensitivity is measured."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from sensmerge.recipe.numbers import read_number
from sensmerge.recipe.parameters import AUTO, ModelParameters

Dtype = Literal["bfloat16", "float16", "float32", "float64"]

DEFAULT_TEMPERATURE = 0.05

_A_MODEL = "expected a path, a Hub id, or {model: {path, revision}}"


def model_name(value: Any) -> str:
    """A model's name; mergekit also takes a mapping: {model: {path, revision}, lora: {path}}.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, dict) or "model" not in value:
        return _path(value)
    if not set(value) <= {"model", "lora"}:
        raise ValueError(_A_MODEL)
    adapter = value.get("lora")
    return _path(value["model"]) + ("" if adapter is None else f"+{_path(adapter)}")


def _path(value: Any) -> str:
    if isinstance(value, dict) and set(value) <= {"path", "revision"}:
        path, revision = value.get("path"), value.get("revision")
        value = path if revision is None else f"{path}@{revision}"
        value = value if isinstance(path, str) else None
    if not isinstance(value, str):
        raise ValueError(_A_MODEL)
    return value


def section(value: Any) -> Any:
    """A key with nothing under it asks for the defaults."""
    return {} if value is None else value


def _temperature(value: Any) -> Any:
    if value == AUTO:
        return AUTO
    number = read_number(value, "a number above 0, or auto")
    if number <= 0:
        raise ValueError(f"{value} is not above 0")
    return number


def _mode(value: Any) -> Any:
    # YAML 1.1 reads a bare `off` as false.
    return "off" if value is False else value


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


ModelName = Annotated[str, BeforeValidator(model_name), Field(min_length=1)]


class Strict(BaseModel):
    """A section whose keys are all known."""

    model_config = ConfigDict(extra="forbid")


class Task(Strict):
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


class Model(Strict):
    """An expert, or the base listed among the models."""

    model: ModelName
    parameters: Annotated[ModelParameters, BeforeValidator(section)] = ModelParameters({})
    calibration: Annotated[Task | None, BeforeValidator(_task)] = None


class Sensitivity(Strict):
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
    temperature: Annotated[Any, AfterValidator(_temperature)] = DEFAULT_TEMPERATURE
    cross_task: Literal["transfer", "distance"] = "transfer"
    positions: Literal["completion", "all"] = "completion"
    distance: Literal["token", "sequence"] = "token"
    outside_blocks: Literal["uniform", "cross", "own"] = "uniform"
    dtype: Literal["stored", "float32"] = "stored"
    samples: int = Field(default=10, ge=1)
    max_length: int = Field(default=512, ge=2)
    seed: int = 0
