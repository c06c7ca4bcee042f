"""From a calibration to coefficients: Eq. 3, 5 and 6 of Sens-Merging, in NumPy.

α is the relative importance of a layer for its expert, τ the alignment of an expert with the
others' tasks, and σ the share of each expert in each layer of the merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sensmerge import markup
from sensmerge.document import Documented
from sensmerge.errors import InputError
from sensmerge.terminal import plain

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.recipe import Recipe, Sensitivity

Matrix = NDArray[np.float64]

# If every K·σ is nearer to 1 than this, the merge is reported to be almost the plain one.
NEAR_UNIFORM = 0.02


@dataclass(frozen=True)
class Coefficients(Documented):
    """Coefficients of K experts and L layers.

    Attributes:
        experts: Names, in the recipe's order; if the base counts as one of them, it is the first.
        layers: The decoder blocks; with ``outside_blocks: own`` every layer, in the model's order.
        alpha: [K, L], α of Eq. 3.
        tau: [K], τ of Eq. 5.
        sigma: [K, L], σ of Eq. 6; every column sums to 1.
        outside: [K], σ of all layers that are not in ``layers``.
        mode: The sensitivity mode: ``full``, ``task``, ``cross`` or ``off``.
        temperature: T of Eq. 6.
        cross_task: The form of Eq. 5: ``transfer`` or ``distance``.
        outside_blocks: The rule for tensors outside the blocks: ``uniform``, ``cross`` or ``own``.
        base: Whether the base counts as an expert. It has no task vector: its share σ is what the
            others leave to it, and their weights are multiplied by σ alone.
    """

    experts: list[str]
    layers: list[str]
    alpha: Matrix
    tau: Matrix
    sigma: Matrix
    outside: Matrix
    mode: str
    temperature: float
    cross_task: str
    outside_blocks: str
    base: bool = False

    @property
    def scale(self) -> Matrix:
        """K · σ, [K, L]: the factors of the weights (Eq. 7); σ if the base counts as an expert."""
        return self.sigma if self.base else len(self.experts) * self.sigma

    @property
    def symbol(self) -> str:
        """What ``scale`` is."""
        return "σ" if self.base else "K·σ"

    @property
    def even(self) -> float:
        """What ``scale`` is where all experts have the same share."""
        return 1 / len(self.experts) if self.base else 1.0

    def scale_of(self, layer: str) -> Matrix:
        """The factors of one layer's weights: a number for every merged expert."""
        known = layer in self.layers
        sigma = self.sigma[:, self.layers.index(layer)] if known else self.outside
        if self.base:
            return sigma[1:]
        # A uniform σ must leave weights as they are, but in floats K · (1/K) is not 1 for every K.
        uniform = sigma == 1 / len(self.experts)
        return np.where(uniform, 1.0, len(self.experts) * sigma)

    @property
    def near_uniform(self) -> bool:
        """Whether every ``|K · σ − 1|`` is below 0.02, outside the blocks too."""
        every = np.column_stack([self.sigma, self.outside])
        return bool(np.all(np.abs(len(self.experts) * every - 1) < NEAR_UNIFORM))

    def notes(self) -> list[str]:
        """A note if the coefficients are nearly uniform."""
        if not self.near_uniform or self.mode == "off" or len(self.experts) == 1:
            return []
        return [
            "the coefficients are nearly uniform, so the result is almost the plain "
            f"{'mean' if self.base else 'merge'}; lower sensitivity.temperature "
            f"(now {self.temperature:g})"
        ]

    def sentences(self) -> list[str]:
        """The coefficients in words."""
        low, high = float(self.scale.min()), float(self.scale.max())
        said = [
            f"{self.symbol} lies between {low:.4f} and {high:.4f} over {len(self.experts)} experts "
            f"and {len(self.layers)} layers (mode {self.mode}, T = {self.temperature:g}, "
            f"{self.cross_task} form of τ)"
        ]
        return said + self.notes()

    def __repr__(self) -> str:
        return (
            f"Coefficients(experts={self.experts}, layers={len(self.layers)}, mode={self.mode!r}, "
            f"temperature={self.temperature:g})"
        )

    def _repr_html_(self) -> str:
        head = ["layer", *(f"{self.symbol} {name}" for name in self.experts)]
        head += [f"α {name}" for name in self.experts]
        rows: list[list[str]] = [
            [layer, *(f"{value:.4f}" for value in [*scale, *alpha])]
            for layer, scale, alpha in zip(self.layers, self.scale.T, self.alpha.T, strict=True)
        ]
        count = len(self.experts)
        rows.append(["others", *(f"{value:.4f}" for value in self.outside_scale), *[""] * count])
        tau = [[name, f"{value:.4f}"] for name, value in zip(self.experts, self.tau, strict=True)]
        return markup.shown(
            "Coefficients",
            markup.paragraphs(f"{sentence}." for sentence in self.sentences()),
            markup.table(["expert", "τ"], tau),
            markup.table(head, rows),
        )

    @property
    def outside_scale(self) -> Matrix:
        """What ``scale`` is for all layers that are not in ``layers``, [K]."""
        return self.outside if self.base else len(self.experts) * self.outside

    def as_dict(self) -> dict[str, Any]:
        """The coefficients as keys and values, with rows in the order of ``experts``."""
        return {
            "experts": self.experts,
            "layers": self.layers,
            "alpha": self.alpha.tolist(),
            "tau": self.tau.tolist(),
            "sigma": self.sigma.tolist(),
            "scale": self.scale.tolist(),
            "outside": self.outside.tolist(),
            "outside_scale": self.outside_scale.tolist(),
            "mode": self.mode,
            "temperature": self.temperature,
            "cross_task": self.cross_task,
            "outside_blocks": self.outside_blocks,
            "base": "expert" if self.base else "origin",
            "notes": self.notes(),
        }

    def table(self) -> str:
        """The coefficients as text: a row per layer with factor and α of every expert, then τ."""
        layers = [plain(layer) for layer in self.layers]
        width = max([len("layer"), *map(len, layers)])
        names = [f"{place + 1}" for place in range(len(self.experts))]
        lines = [
            f"{name}: {plain(expert)}" for name, expert in zip(names, self.experts, strict=True)
        ]
        header = "  ".join(f"{self.symbol:>3} {name:<4} α {name:<4}" for name in names)
        lines += ["", f"{'layer':<{width}}  {header}"]
        for place, layer in enumerate(layers):
            cells = "  ".join(
                f"{self.scale[row, place]:8.4f} {self.alpha[row, place]:6.4f}"
                for row in range(len(self.experts))
            )
            lines.append(f"{layer:<{width}}  {cells}")
        outside = "  ".join(f"{scale:8.4f}       " for scale in self.outside_scale)
        lines.append(f"{'others':<{width}}  {outside}".rstrip())
        lines += ["", "τ  " + "  ".join(f"{tau:.4f}" for tau in self.tau)]
        return "\n".join([*lines, *(plain(f"{sentence}.") for sentence in self.sentences())])


def coefficients(calibration: Calibration, recipe: Recipe | Sensitivity) -> Coefficients:
    """Compute α, τ and σ (Sens-Merging, Eq. 3, 5 and 6).

    Args:
        calibration: The calibration.
        recipe: The recipe, whose order of experts the rows have; or its ``sensitivity`` section
            alone, then rows have the calibration's order.

    Raises:
        InputError: The recipe has no sensitivity section, one of its experts is not in the
            calibration, that was measured with another ``sensitivity.measure``, or an expert's
            sensitivities are all zero or not finite.
    """
    from sensmerge.recipe import Recipe

    if isinstance(recipe, Recipe):
        recipe.require_numbers()
    options = recipe.sensitivity if isinstance(recipe, Recipe) else recipe
    if options is None:
        raise InputError("sensitivity: the recipe has no such section; add 'sensitivity: {}'")
    calibration.require_measure(options.measure)
    if options.base == "expert" and not calibration.has_base:
        raise InputError(
            "sensitivity.base: the base was not measured; calibrate again with base: expert"
        )
    experts = [expert.model for expert in calibration.experts]
    if isinstance(recipe, Recipe) and experts != [expert.model for expert in recipe.measured]:
        # Names or order differ: match the rows by the experts' weights.
        from sensmerge.scaling.matching import matching

        calibration = matching(recipe, calibration)
        experts = [expert.model for expert in recipe.measured]
    layers, sensitivity = calibration.layers, calibration.sensitivity
    if options.outside_blocks == "own":
        layers, sensitivity = _every_layer(calibration)
    alpha = task_specific(sensitivity, experts)
    tau = _tau(calibration, options)
    sigma = combine(alpha, tau, options.mode, options.temperature)
    count = len(experts)
    outside = np.full(count, 1 / count)
    if options.outside_blocks == "cross" and options.mode != "off":
        outside = softmax(tau[:, None] / options.temperature)[:, 0]
    return Coefficients(
        experts=experts,
        layers=list(layers),
        alpha=alpha,
        tau=tau,
        sigma=sigma,
        outside=outside,
        mode=options.mode,
        temperature=options.temperature,
        cross_task=options.cross_task,
        outside_blocks=options.outside_blocks,
        base=options.base == "expert",
    )


def _tau(calibration: Calibration, options: Sensitivity) -> Matrix:
    """τ of every measured model: as it is given, or from their logits."""
    if options.tau is None:
        return cross_task(calibration.alignment, options.cross_task)
    count = len(calibration.experts)
    if len(options.tau) != count:
        raise InputError(
            f"sensitivity.tau: has {len(options.tau)} numbers, and the calibration is of {count} "
            "models"
        )
    return np.array(options.tau, dtype=np.float64)


def task_specific(sensitivity: Matrix, experts: list[str]) -> Matrix:
    """α_i = s_i / ‖s_i‖₂, with the norm over the layers (Eq. 3); [K, L] to [K, L].

    Raises:
        InputError: An expert's sensitivities are all zero, or not finite.
    """
    # Divided by the largest first: squares of very large or small numbers would overflow or vanish.
    largest = np.abs(sensitivity).max(axis=1, keepdims=True)
    for expert, size in zip(experts, largest[:, 0], strict=True):
        if not (np.isfinite(size) and size > 0):
            raise InputError(
                f"expert '{expert}': its largest sensitivity is {size}; calibrate it again with "
                "samples that it has a loss on"
            )
    scaled = sensitivity / largest
    alpha: Matrix = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    return alpha


def cross_task(alignment: Matrix, form: str) -> Matrix:
    """τ from the logit distances g_ij (Eq. 5); [K, K] to [K].

    With τ_i = Σ_{j≠i} g_ij, ``transfer`` is the camera-ready paper's form 1 − τ/‖τ‖₁ and
    ``distance`` the preprint's τ/‖τ‖₁. If all distances are 0, τ/‖τ‖₁ is taken to be 1/K.
    """
    count = len(alignment)
    distances = alignment.sum(axis=1) - np.diagonal(alignment)
    total = distances.sum()
    share = distances / total if total > 0 else np.full(count, 1 / count)
    return 1 - share if form == "transfer" else share


def combine(alpha: Matrix, tau: Matrix, mode: str, temperature: float) -> Matrix:
    """σ^l = softmax over the experts of τ · α^l / T (Eq. 6); [K, L].

    Mode ``task`` replaces τ by 1, ``cross`` replaces α by 1, and ``off`` gives 1/K everywhere.
    """
    if mode == "off":
        return np.full_like(alpha, 1 / len(alpha))
    importance = {
        "full": tau[:, None] * alpha,
        "task": alpha,
        "cross": np.broadcast_to(tau[:, None], alpha.shape),
    }[mode]
    return softmax(importance / temperature)


def softmax(values: Matrix) -> Matrix:
    """Softmax over the first axis."""
    shifted = np.exp(values - values.max(axis=0, keepdims=True))
    result: Matrix = shifted / shifted.sum(axis=0, keepdims=True)
    return result


def _every_layer(calibration: Calibration) -> tuple[list[str], Matrix]:
    """Names and sensitivities [K, L] of blocks and other layers together, in the model's order."""
    names = [*calibration.layers, *calibration.outside_layers]
    columns = np.concatenate([calibration.sensitivity, calibration.outside_sensitivity], axis=1)
    return calibration.order, columns[:, [names.index(layer) for layer in calibration.order]]
