"""The models that the tables are about, by a file that names them, and the paper's recipes of them.

A file of models has ``base``, ``experts`` (by name, each with ``model`` and ``calibration``), and
perhaps ``name``, ``tasks`` and ``tasks_dir``. Relative paths in it start from its folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from sensmerge import Calibration, InputError, Recipe, calibrate, refusals
from sensmerge.calibration import forget
from sensmerge.demo.recipes import DENSITIES, METHODS, MODES, PAPER_LAMBDAS
from sensmerge.evaluation.benchmarks import PRESET
from sensmerge.recipe.places import path_of
from sensmerge.recipe.yaml import read_yaml

# Samples of each expert, as in the paper.
SAMPLES = 10


class _Expert(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str
    calibration: str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = ""
    base: str
    experts: dict[str, _Expert]
    tasks: str | list[str] = PRESET
    tasks_dir: str | None = None


@dataclass(frozen=True)
class Experts:
    """A base and its experts.

    Attributes:
        name: The family's name in ``published.yaml``; empty if the paper has none of it.
        base: The base's name or folder.
        models: The experts' names or folders.
        samples: Their files of samples.
        tasks: What they are evaluated on.
        tasks_dir: A folder of task files; None for the harness's own tasks.
        folder: The folder that relative paths start from.
    """

    name: str
    base: str
    models: dict[str, str]
    samples: dict[str, str]
    tasks: str | list[str]
    tasks_dir: Path | None
    folder: Path

    @classmethod
    def load(cls, path: Path) -> Experts:
        """Read a file of models.

        Raises:
            InputError: It cannot be read, or a key of it is wrong.
        """
        (document,) = read_yaml(path).documents
        try:
            said = _File.model_validate(document)
        except ValidationError as error:
            raise InputError(f"{path}: {refusals.explain(error, _File)}") from None
        folder = path.absolute().parent
        return cls(
            name=said.name,
            base=said.base,
            models={name: each.model for name, each in said.experts.items()},
            samples={name: each.calibration for name, each in said.experts.items()},
            tasks=said.tasks,
            tasks_dir=None if said.tasks_dir is None else folder / said.tasks_dir,
            folder=folder,
        )

    def only(self, names: tuple[str, ...]) -> dict[str, str]:
        """Some of the experts, by name."""
        missing = [name for name in names if name not in self.models]
        if missing:
            raise InputError(f"experts: there is no '{missing[0]}'; this table needs {names}")
        return {name: self.models[name] for name in names}

    def single(self) -> dict[str, str]:
        """The models that are not merged, as they are found from anywhere."""
        return {
            name: str(place) if (place := path_of(model, self.folder)).exists() else model
            for name, model in {"Base": self.base, **self.models}.items()
        }

    def recipe(
        self,
        method: str,
        mode: str | None = None,
        *,
        names: tuple[str, ...] | None = None,
        scale: float | None = None,
        samples: int = SAMPLES,
    ) -> Recipe:
        """A recipe of the paper.

        Args:
            method: The method's name.
            mode: The sensitivity mode; None for the plain method.
            names: The experts; None for all.
            scale: λ; None for the paper's.
            samples: Samples of each expert.
        """
        parameters: dict[str, Any] = {"lambda": scale or PAPER_LAMBDAS[method]}
        if method in DENSITIES:
            parameters["density"] = DENSITIES[method]
        data: dict[str, Any] = {
            "merge_method": method,
            "base_model": self.base,
            "models": [
                {"model": model, "calibration": self.samples[name]}
                for name, model in self.only(names or tuple(self.models)).items()
            ],
            "parameters": parameters,
            "semantics": "original",
        }
        if mode is not None:
            data["sensitivity"] = {"mode": mode, "samples": samples}
        return Recipe.from_dict(data, self.folder)

    def measured(self, folder: Path, samples: int = SAMPLES, *, device: str) -> Calibration:
        """The calibration of all experts, measured once and kept in a folder."""
        path = folder / f"calibration-{samples}.json"
        recipe = self.recipe("task_arithmetic", "full", samples=samples)
        calibration = calibrate(recipe, device=device, keep=path)
        calibration.save(path)
        forget(path)
        return calibration


def label(method: str, mode: str | None = None) -> str:
    """A row's name."""
    return f"{METHODS[method]} {MODES[mode]}".strip()
