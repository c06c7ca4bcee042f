"""Chooses λ and T for a recipe with ``lambda: auto`` or ``temperature: auto``.

Both are searched for on the calibration samples, λ first, then T at that λ. The start, 1/K or the
default temperature, is kept unless another value is better by more than two standard errors: of
many values that are alike, the best on few samples is often better by one.
Sensitivity was measured on the same samples; ``tune`` validates on others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from sensmerge.calibration.surroundings import quiet_transformers, torch_threads
from sensmerge.progress import bar
from sensmerge.recipe import DEFAULT_TEMPERATURE
from sensmerge.recipe.parameters import SCALE
from sensmerge.search.choice import difference
from sensmerge.search.judge import Judge, Objective
from sensmerge.search.lines import EVALUATIONS, minimise
from sensmerge.search.settings import TEMPERATURES, Settings, searched
from sensmerge.search.trials import bounds

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.recipe import Recipe

# Standard errors by which a value has to be better than the start.
ERRORS = 2


def choose(
    recipe: Recipe,
    calibration: Calibration | None,
    *,
    device: str = "cpu",
    threads: int | None,
    progress: bool,
) -> tuple[Recipe, list[str]]:
    """Replace a recipe's ``auto`` values by numbers.

    Args:
        recipe: The recipe. Its experts name their samples.
        calibration: A calibration of its experts, if it has a ``sensitivity`` section.
        device: The torch device that candidates run on, such as ``cuda``.
        threads: Threads to use; all cores by default.
        progress: Show a progress bar.

    Returns:
        The recipe, and the choices in plain words.

    Raises:
        InputError: Models or samples cannot be used as they are.
    """
    share = 1 / len(recipe.experts)
    asked = recipe.auto
    provisional = recipe.chosen(share, DEFAULT_TEMPERATURE)
    scale, temperature = share, DEFAULT_TEMPERATURE
    notes = []
    with quiet_transformers(), torch_threads(threads):
        judge = Judge(
            provisional, calibration=calibration, validation=0.0, device=device, threads=threads
        )
        samples = sum(len(task.search) for task in judge.tasks)
        with bar(
            len(asked) * EVALUATIONS * samples, "choosing", "samples", enabled=progress
        ) as advance:
            objective = Objective()

            def loss(candidate: Recipe) -> float:
                return objective.of(judge.losses(Settings.of(candidate), advance=advance))

            def search(
                name: str, make: Callable[[float], Recipe], low: float, high: float, start: float
            ) -> float:
                seen: dict[float, float] = {}

                def at(place: float) -> float:
                    seen[place] = loss(make(place))
                    return seen[place]

                best = minimise(at, low, high, start=start)
                ours, its = (judge.by_sample(Settings.of(make(one))) for one in (best, start))
                gain = difference(ours, its, objective)
                if best != start and not gain.exceeds(ERRORS):
                    told = (
                        f"no more than {ERRORS} standard errors of {gain.error:.4f}"
                        if math.isfinite(gain.error)
                        else "of which one sample a task tells nothing"
                    )
                    notes.append(
                        f"{name}: auto keeps {start:.4g}, mean loss {seen[start]:.4f} on the "
                        f"calibration samples; at {best:.4g} it is {gain.mean:.4f} lower, {told}"
                    )
                    return start
                notes.append(
                    f"{name}: auto chose {best:.4g}: mean loss on the calibration samples "
                    f"{seen[best]:.4f}, at {start:.4g} {seen[start]:.4f}"
                )
                return best

            scaled = searched(recipe.method, SCALE)
            if f"parameters.{SCALE}" in asked and scaled is not None:
                scale = search(
                    SCALE,
                    lambda place: recipe.chosen(place, temperature),
                    *bounds(scaled, len(recipe.experts)),
                    share,
                )
            if "sensitivity.temperature" in asked:
                temperature = search(
                    "temperature",
                    lambda place: recipe.chosen(scale, place),
                    *TEMPERATURES,
                    DEFAULT_TEMPERATURE,
                )
    return recipe.chosen(scale, temperature), notes
