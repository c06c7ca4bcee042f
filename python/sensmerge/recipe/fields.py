"""The parts of a recipe besides the method's parameters: models, samples, sensitivity."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from sensmerge.recipe.numbers import read_number
from sensmerge.recipe.parameters import AUTO, ModelParameters

Dtype = Literal["bfloat16", "float16", "float32", "float64"]

# Those of an output: matrices are quantised to the last two.
OutDtype = Literal["bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "int4"]

DEFAULT_TEMPERATURE = 0.05

_A_MODEL = "expected a path, a Hub id, or {model: {path, revision}}"


def model_name(value: Any) -> str:
    """A model's name; mergekit also takes a mapping: {model: {path, revision}, lora: {path}}.

    ``override_architecture``, which says after which architecture mergekit looks for tensors, is
    left out.

    Raises:
        ValueError: The value is not a model's name.
    """
    if not isinstance(value, dict) or "model" not in value:
        return _path(value)
    if not set(value) <= {"model", "lora", "override_architecture"}:
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


# Ways to match units that people ask for, and why they are not here.
_OTHER_ALIGNMENTS = {
    "zipit": "ZipIt! also merges units within a model, which blends features of one model with "
    "each other and needs activations; permutation matches the units of two models by weights",
    "activations": "units are matched by their weights alone; write permutation",
    "git_rebasin": "write permutation, which is Git Re-Basin's weight matching",
    "weight_matching": "write permutation, which is Git Re-Basin's weight matching",
    "repair": "REPAIR rescales activations after a merge, by statistics of samples, and is not "
    "here; write permutation",
}


def _alignment(value: Any) -> Any:
    if isinstance(value, str) and value in _OTHER_ALIGNMENTS:
        raise ValueError(f"'{value}': {_OTHER_ALIGNMENTS[value]}")
    return value


def section(value: Any) -> Any:
    """A section's value; a key without a value asks for the defaults."""
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


# How the units of models are matched before the merge.
Align = Annotated[Literal["permutation"], BeforeValidator(_alignment)]


def _share(value: Any) -> float:
    number = read_number(value, "a number of at least 0")
    if number < 0:
        raise ValueError(f"{value} is below 0")
    return number


# A number of at least 0, in any spelling of YAML.
Share = Annotated[float, BeforeValidator(_share)]

ModelName = Annotated[str, BeforeValidator(model_name), Field(min_length=1)]


class Strict(BaseModel):
    """A section in which unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class Task(Strict):
    """An expert's calibration samples.

    Attributes:
        files: Files of samples, relative to the recipe. Samples are drawn from all their rows.
        samples: Number of samples to draw; None takes that of the ``sensitivity`` section.
        max_length: Longest sample in tokens; None takes that of the ``sensitivity`` section.
    """

    files: Annotated[list[str], BeforeValidator(_files)] = Field(alias="path")
    samples: int | None = Field(default=None, ge=1)
    max_length: int | None = Field(default=None, ge=2)

    @property
    def path(self) -> str:
        """The file; several files separated by commas."""
        return ", ".join(self.files)


class Model(Strict):
    """An expert, or the base listed among the models."""

    model: ModelName
    parameters: Annotated[ModelParameters, BeforeValidator(section)] = ModelParameters({})
    calibration: Annotated[Task | None, BeforeValidator(_task)] = None


def _omega(value: Any) -> float:
    number = read_number(value, "a number from 0 to 1")
    if not 0 <= number <= 1:
        raise ValueError(f"{value} is not from 0 to 1")
    return number


class Aim(Strict):
    """Activation-informed merging: task vectors are damped where the base's activations are strong.

    Attributes:
        omega: ω, what is left of the merged task vector at a layer's strongest input channel, from
            0 to 1; 1 changes nothing.
        calibration: Samples for the base; None takes those of all experts together.
    """

    omega: Annotated[float, BeforeValidator(_omega)] = 0.4
    calibration: Annotated[Task | None, BeforeValidator(_task)] = None


class Sensitivity(Strict):
    """The measurement of sensitivity and its conversion to coefficients.

    Attributes:
        mode: ``full``; ``task`` leaves out τ and ``cross`` leaves out α (the paper's ablation);
            ``off`` is the plain method.
        temperature: T of Eq. 6, above 0, or ``auto``.
        measure: What is summed over a layer's parameters: |θ · g|, a first-order Taylor estimate of
            what the loss would lose without them (``taylor``, Eq. 1), or g², the diagonal of the
            empirical Fisher information (``fisher``).
        cross_task: Eq. 5 of the camera-ready paper (``transfer``) or of the preprint
            (``distance``).
        tau: τ itself, a number of at least 0 for every measured model, in their order; None
            computes it from the models' logits (Eq. 5).
        base: The part of the base: the ``origin`` of task vectors, which is not measured, or an
            ``expert``, the first of the measured models, whose share no task vector gets.
        positions: Tokens that count in the loss and the logit distance: those of the completion, or
            all.
        distance: ``token``, the mean over positions of the L2 norm of the difference of logits, or
            ``sequence``, the L2 norm over all positions.
        outside_blocks: Coefficients of tensors outside the decoder blocks: 1 (``uniform``), from τ
            alone (``cross``), or from the sensitivity of their own layers (``own``).
        dtype: Dtype in which models run: as stored, or float32.
        samples: Number of samples per expert.
        max_length: Longest sample in tokens.
        seed: Seed of the draw of samples.
    """

    mode: Annotated[Literal["full", "task", "cross", "off"], BeforeValidator(_mode)] = "full"
    temperature: Annotated[Any, AfterValidator(_temperature)] = DEFAULT_TEMPERATURE
    measure: Literal["taylor", "fisher"] = "taylor"
    cross_task: Literal["transfer", "distance"] = "transfer"
    tau: Annotated[list[Share], Field(min_length=1)] | None = None
    base: Literal["origin", "expert"] = "origin"
    positions: Literal["completion", "all"] = "completion"
    distance: Literal["token", "sequence"] = "token"
    outside_blocks: Literal["uniform", "cross", "own"] = "uniform"
    dtype: Literal["stored", "float32"] = "stored"
    samples: int = Field(default=10, ge=1)
    max_length: int = Field(default=512, ge=2)
    seed: int = 0
