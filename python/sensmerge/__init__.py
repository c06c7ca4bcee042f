"""Sensitivity-guided merging of fine-tuned LLM checkpoints.

The whole path in four calls::

    import sensmerge

    recipe = sensmerge.Recipe.load("recipe.yaml")
    calibration = sensmerge.calibrate(recipe)  # needs sensmerge[calibrate]
    print(sensmerge.coefficients(calibration, recipe).table())
    sensmerge.merge(recipe, "merged", calibration=calibration)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sensmerge.errors import InputError, MethodError, WaitingError

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration, calibrate
    from sensmerge.comparison.differences import diff
    from sensmerge.distributed.plan import PlannedMerge
    from sensmerge.evaluation import evaluate
    from sensmerge.lora.extraction import extract_lora
    from sensmerge.lora.merging import merge_lora
    from sensmerge.merging.conversion import convert
    from sensmerge.merging.disk import MergeResult
    from sensmerge.merging.memory import merge_into, merge_tensors
    from sensmerge.models import Models, open_models
    from sensmerge.recipe import Recipe
    from sensmerge.recipe.extension import Parameter, method
    from sensmerge.scaling.sigma import Coefficients, coefficients
    from sensmerge.search.descent import learn
    from sensmerge.search.soup import soup
    from sensmerge.search.trials import tune
    from sensmerge.workflow import merge, plan_merge

    __version__: str

__all__ = [
    "Calibration",
    "Coefficients",
    "InputError",
    "MergeResult",
    "MethodError",
    "Models",
    "Parameter",
    "PlannedMerge",
    "Recipe",
    "WaitingError",
    "calibrate",
    "coefficients",
    "convert",
    "diff",
    "evaluate",
    "extract_lora",
    "learn",
    "merge",
    "merge_into",
    "merge_lora",
    "merge_tensors",
    "method",
    "open_models",
    "plan_merge",
    "soup",
    "tune",
]

_HOMES = {
    "Calibration": "sensmerge.calibration",
    "Coefficients": "sensmerge.scaling.sigma",
    "MergeResult": "sensmerge.merging.disk",
    "Models": "sensmerge.models",
    "Parameter": "sensmerge.recipe.extension",
    "PlannedMerge": "sensmerge.distributed.plan",
    "Recipe": "sensmerge.recipe",
    "calibrate": "sensmerge.calibration",
    "coefficients": "sensmerge.scaling.sigma",
    "convert": "sensmerge.merging.conversion",
    "diff": "sensmerge.comparison.differences",
    "evaluate": "sensmerge.evaluation",
    "extract_lora": "sensmerge.lora.extraction",
    "learn": "sensmerge.search.descent",
    "merge": "sensmerge.workflow",
    "merge_into": "sensmerge.merging.memory",
    "merge_lora": "sensmerge.lora.merging",
    "merge_tensors": "sensmerge.merging.memory",
    "method": "sensmerge.recipe.extension",
    "open_models": "sensmerge.models",
    "plan_merge": "sensmerge.workflow",
    "soup": "sensmerge.search.soup",
    "tune": "sensmerge.search.trials",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import sensmerge` costs neither NumPy nor pydantic nor torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("sensmerge")
    raise AttributeError(f"module 'sensmerge' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
