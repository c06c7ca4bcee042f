"""``soup``: a greedy soup, which takes one expert after the other as long as the loss falls.

Model soups (Wortsman et al. 2022, recipe 1): experts in the order of their own losses, the best
first; each is kept if the merge of those kept so far and it has no higher loss than without it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge import __version__, markup
from sensmerge.calibration.surroundings import quiet_transformers, torch_threads
from sensmerge.document import Documented
from sensmerge.errors import InputError
from sensmerge.files import write_atomically
from sensmerge.progress import bar
from sensmerge.recipe import Recipe, to_yaml
from sensmerge.recipe.tokenizer import UNION
from sensmerge.search.groups import moved
from sensmerge.search.judge import Judge, Objective
from sensmerge.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Step:
    """One expert, in the order in which it was tried.

    Attributes:
        model: Its name in the recipe.
        alone: The objective of the merge of this expert alone.
        together: The objective of the merge of those kept before and this one.
        kept: Whether it was kept.
    """

    model: str
    alone: float
    together: float
    kept: bool


@dataclass(frozen=True)
class Soup(Documented):
    """The outcome.

    Attributes:
        recipe: The recipe with the experts that were kept, as keys and values.
        steps: All experts, in the order in which they were tried.
        all: The objective of the merge of all experts.
        validation: The objectives on the validation samples: of the experts that were kept, of all,
            and of the best alone; empty if nothing was validated.
    """

    recipe: dict[str, Any]
    steps: list[Step]
    all: float
    validation: list[float] = field(default_factory=list)

    @property
    def kept(self) -> list[str]:
        """The experts that were kept, in the order in which they were tried."""
        return [step.model for step in self.steps if step.kept]

    @property
    def loss(self) -> float:
        """The objective of their merge."""
        return [step.together for step in self.steps if step.kept][-1]

    def table(self) -> str:
        """All experts, as a table."""
        names = [plain(step.model) for step in self.steps]
        width = max([len("expert"), *map(len, names)])
        lines = [f"{'expert':<{width}}     alone  together"]
        for name, step in zip(names, self.steps, strict=True):
            lines.append(f"{name:<{width}}  {step.alone:8.4f}  {step.together:8.4f}  {_word(step)}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Soup(kept={self.kept}, of={len(self.steps)}, loss={self.loss:.4f})"

    def _repr_html_(self) -> str:
        rows = [
            (step.model, _word(step), f"{step.alone:.4f}", f"{step.together:.4f}")
            for step in self.steps
        ]
        table = markup.table(["expert", "", "alone", "together"], rows, words=2)
        return markup.shown("Soup: loss, nats per token", table, markup.notes(self.notes))

    def as_dict(self) -> dict[str, Any]:
        """The outcome as keys and values; see docs/json.md."""
        names = ("kept", "all", "best_alone")
        return {
            "recipe": self.recipe,
            "experts": [asdict(step) for step in self.steps],
            "losses": dict(zip(names, [self.loss, self.all, self.steps[0].alone], strict=True)),
            "validation": dict(zip(names, self.validation, strict=False)),
            "notes": self.notes,
        }

    @property
    def notes(self) -> list[str]:
        """The outcome in words."""
        count, total = len(self.kept), len(self.steps)
        said = [
            f"{count} of {total} experts are kept: loss {self.loss:.4f} on the samples chosen by; "
            f"of all {total} {self.all:.4f}, of the best alone {self.steps[0].alone:.4f}"
        ]
        if not self.validation:
            return [*said, "nothing was validated: whether that holds on other samples is unknown"]
        ours, everything, best = self.validation
        return [
            *said,
            f"on the validation samples {ours:.4f}; of all {total} {everything:.4f}, of the best "
            f"alone {best:.4f}",
        ]

    def write(self, path: Path) -> list[Path]:
        """Write the recipe.

        Returns:
            The file.
        """
        said = [
            f"# greedy soup by sensmerge {__version__}",
            *(f"# {plain(note)}" for note in self.notes),
        ]
        write_atomically(path, "\n".join([*said, to_yaml(self.recipe)]).encode())
        return [path]


def _word(step: Step) -> str:
    return "kept" if step.kept else "left out"


def soup(
    recipe: Recipe | str | Path,
    *,
    objective: Objective | None = None,
    validation: float = 0.0,
    home: Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    progress: bool = True,
) -> Soup:
    """Choose the experts of a recipe greedily, by the loss of their merge on samples.

    Args:
        recipe: The recipe, or its path. Its experts name their samples, all of which count for
            every merge. Experts of one task name the same samples.
        objective: The quantity to minimise; the mean over the experts' samples by default.
        validation: Fraction of each expert's samples that is kept for validation, in [0, 1).
        home: The folder in which the new recipe will be; the recipe's by default.
        device: The torch device that candidates run on, such as ``cuda``.
        threads: Threads to use; all cores by default.
        progress: Show a progress bar on a terminal and plain lines elsewhere.

    Raises:
        InputError: The method needs two experts, the recipe has coefficients by sensitivity or a
            united vocabulary, or models or samples cannot be used as they are.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    recipe, objective = Recipe.of(recipe), objective or Objective()
    objective.check(len(recipe.experts))
    _check(recipe)
    names = [expert.model for expert in recipe.experts]
    with quiet_transformers(), torch_threads(threads):
        judge = Judge(
            recipe, calibration=None, validation=validation, device=device, threads=threads
        )
        samples = sum(len(task.search) for task in judge.tasks)
        with bar(2 * len(names) * samples, "choosing", "samples", enabled=progress) as advance:

            def loss(chosen: Sequence[str]) -> float:
                return objective.of(judge.losses_of(_only(recipe, chosen), advance=advance))

            steps = _steps(names, loss)
            together = loss(names)
        kept = [step.model for step in steps if step.kept]
        held = []
        if validation:
            for chosen in (kept, names, kept[:1]):
                losses = judge.losses_of(_only(recipe, chosen), "validation")
                held.append(objective.of(losses))
    data = moved(recipe, home or recipe.folder)
    data["models"] = _listed(recipe, data["models"], kept)
    return Soup(data, steps, together, held)


def _steps(names: Sequence[str], loss: Callable[[Sequence[str]], float]) -> list[Step]:
    alone = {name: loss([name]) for name in names}
    steps: list[Step] = []
    kept: list[str] = []
    best = math.inf
    # Of equal losses the recipe's order decides.
    for name in sorted(names, key=lambda name: alone[name]):
        together = loss([*kept, name]) if kept else alone[name]
        better = together <= best
        if better:
            kept.append(name)
            best = together
        steps.append(Step(name, alone[name], together, better))
    return steps


def _check(recipe: Recipe) -> None:
    """Refuse recipes whose experts cannot be left out one by one."""
    if recipe.slices is not None:
        raise InputError("slices: a soup is of whole models; list them under 'models'")
    if recipe.auto or (recipe.sensitivity is not None and recipe.sensitivity.mode != "off"):
        raise InputError(
            "sensitivity: coefficients depend on which experts are merged; choose experts with "
            "plain weights, and measure coefficients for those that are kept"
        )
    if recipe.aim is not None:
        raise InputError(
            "aim: the base's activations are measured for the experts that are merged; choose "
            "experts without the section, and damp the merge of those that are kept"
        )
    if recipe.wanted_tokenizer.source == UNION:
        raise InputError(
            "tokenizer: a united vocabulary depends on which experts are merged; name one of them"
        )
    if len(recipe.experts) < 2:
        raise InputError("models: a soup is chosen from two experts or more")


def _only(recipe: Recipe, chosen: Sequence[str]) -> Recipe:
    """The recipe with some of its experts."""
    source = recipe.source
    return recipe.replaced(source | {"models": _listed(recipe, source["models"], chosen)})


def _listed(recipe: Recipe, models: list[Any], chosen: Sequence[str]) -> list[Any]:
    """The entries of some experts in a list of the recipe's models; a listed base stays."""
    left = {expert.model for expert in recipe.experts} - set(chosen)
    pairs = zip(recipe.models, models, strict=True)
    return [said for model, said in pairs if model.model not in left]
