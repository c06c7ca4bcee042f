"""The settings that a search over recipes chooses, and the recipe with such settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sensmerge.errors import InputError
from sensmerge.recipe import Recipe, methods
from sensmerge.recipe.parameters import SCALE

if TYPE_CHECKING:
    from sensmerge.recipe.methods import Method, Parameter

# The parameter that is searched for besides the scale, if the method has it.
DENSITY = "density"

# The interval of T.
TEMPERATURES = (0.005, 1.0)


def method_of(recipe: Recipe, name: str) -> Method:
    """A method by name, in the semantics of a recipe.

    Raises:
        InputError: There is no method of that name.
    """
    found = methods.find(name, recipe.semantics)
    if found is None:
        raise InputError(f"methods: '{name}' is none of {', '.join(methods.names())}")
    return found


def searched(method: Method, name: str) -> Parameter | None:
    """A method's parameter of this name, if it has one that searches look for; otherwise None."""
    parameter = method.parameter(name)
    return parameter if parameter is not None and parameter.search is not None else None


@dataclass(frozen=True)
class Settings:
    """One candidate.

    Attributes:
        method: The merge method.
        scale: λ; None if the method has none, or to keep the recipe's own setting.
        density: Fraction of entries kept; None if the method has none, or to keep the recipe's own
            setting.
        mode: The sensitivity mode; ``off`` is the plain method.
        temperature: T of Eq. 6; None for the plain method.
        cross_task: The form of Eq. 5; None if the mode does not use τ.
    """

    method: str
    scale: float | None
    density: float | None = None
    mode: str = "off"
    temperature: float | None = None
    cross_task: str | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Settings:
        """A recipe's settings; None for λ or density that is not one number for all tensors."""
        scale, density = recipe.value(SCALE), recipe.parameters.get(DENSITY)
        sensitivity = recipe.sensitivity
        on = sensitivity is not None and sensitivity.mode != "off"
        return cls(
            method=recipe.merge_method,
            scale=scale if isinstance(scale, float) else None,
            density=density if isinstance(density, float) else None,
            mode=sensitivity.mode if on and sensitivity else "off",
            temperature=_number(sensitivity.temperature) if on and sensitivity else None,
            cross_task=(
                sensitivity.cross_task
                if on and sensitivity and sensitivity.mode != "task"
                else None
            ),
        )

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with these settings.

        Raises:
            InputError: A recipe with these settings is not valid.
        """
        return recipe.replaced(self.apply(recipe, recipe.source))

    def apply(self, recipe: Recipe, source: dict[str, Any]) -> dict[str, Any]:
        """The keys and values of ``source`` with these settings; ``recipe`` is the one searched."""
        method = method_of(recipe, self.method)
        data = dict(source) | {"merge_method": self.method}
        parameters = dict(data.get("parameters") or {})
        if self.method != recipe.merge_method:
            # Another method may lack the recipe's switches, or have other defaults for them.
            for key in methods.parameter_names():
                if any(each.kind == "switch" for each in methods.parameters_named(key)):
                    parameters.pop(key, None)
        for key, number in ((SCALE, self.scale), (DENSITY, self.density)):
            if number is None and method.parameter(key) is not None:
                continue
            parameters.pop(key, None)
            if methods.parameters_named(key)[0].owner == "model":
                data["models"] = [_without(key, model) for model in data["models"]]
            if number is not None:
                parameters[key] = number
        data.pop("parameters", None)
        if parameters:
            data["parameters"] = parameters
        data["sensitivity"] = self._sensitivity(data.pop("sensitivity", None) or {})
        if self.mode == "off":
            del data["sensitivity"]
        return data

    def _sensitivity(self, said: dict[str, Any]) -> dict[str, Any]:
        chosen = {
            "mode": self.mode, "temperature": self.temperature, "cross_task": self.cross_task,
        }  # fmt: skip
        return said | {key: value for key, value in chosen.items() if value is not None}

    def describe(self) -> str:
        """The settings in words."""
        parts: list[str] = [self.method]
        if self.mode != "off":
            words = {"full": "Sens-Merging", "task": "α alone", "cross": "τ alone"}
            parts.append(f"with {words[self.mode]}")
            parts.append(f"T = {self.temperature:.3g}")
            if self.cross_task is not None:
                parts.append(f"{self.cross_task} form")
        if self.scale is not None:
            parts.append(f"λ = {self.scale:.3g}")
        if self.density is not None:
            parts.append(f"density {self.density:.2g}")
        return ", ".join(parts)

    def numbers(self) -> dict[str, Any]:
        """The settings as columns of a table."""
        return asdict(self)


def _without(key: str, model: dict[str, Any]) -> dict[str, Any]:
    parameters = model.get("parameters")
    if not isinstance(parameters, dict) or key not in parameters:
        return model
    return model | {"parameters": {k: v for k, v in parameters.items() if k != key}}


def _number(temperature: float | str) -> float:
    from sensmerge.recipe import DEFAULT_TEMPERATURE

    return temperature if isinstance(temperature, float) else DEFAULT_TEMPERATURE
