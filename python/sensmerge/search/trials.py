"""``tune``: trials of temperature, λ, density and other settings, proposed by Optuna.

Gains are measured against plain merges: those of every method in the search at its own best λ,
which are in every table. The best trials are compared with these and with the recipe's own settings
on all samples, and taken only if they are better by more than a standard error.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge import __version__, markup
from sensmerge.calibration.surroundings import quiet_transformers, torch_threads
from sensmerge.document import Documented
from sensmerge.errors import InputError
from sensmerge.files import write_atomically
from sensmerge.progress import bar
from sensmerge.recipe import DEFAULT_TEMPERATURE, Recipe, to_yaml
from sensmerge.recipe.parameters import SCALE
from sensmerge.scaling.matching import needs_calibration
from sensmerge.search import choice
from sensmerge.search.groups import moved
from sensmerge.search.judge import Judge, Objective
from sensmerge.search.lines import EVALUATIONS, minimise
from sensmerge.search.results import Result
from sensmerge.search.settings import DENSITY, TEMPERATURES, Settings, method_of, searched
from sensmerge.terminal import plain

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.recipe.methods import Parameter
    from sensmerge.search.choice import Vector
    from sensmerge.search.study import Study

SAMPLERS = ("tpe", "cmaes", "grid", "random")
KEYS = ("temperature", SCALE, DENSITY, "cross_task", "mode")

TRIALS = 50
VALIDATION = 0.3

# The number of trials, the best on the search samples, of which one may be taken.
SHORTLIST = 10


@dataclass(frozen=True)
class Options:
    """Options of a search.

    Attributes:
        trials: Total number of trials.
        keys: The settings to search for, of ``KEYS``; those that a method lacks are ignored.
        methods: The methods to try; None tries the recipe's.
        sampler: ``tpe``, ``cmaes``, ``grid`` or ``random``.
        objective: The quantity to minimise.
        validation: Fraction of each task's samples that is kept for validation, in [0, 1).
        seed: Seed of the sampler.
    """

    trials: int = TRIALS
    keys: tuple[str, ...] = KEYS
    methods: tuple[str, ...] | None = None
    sampler: str = "tpe"
    objective: Objective = field(default_factory=Objective)
    validation: float = VALIDATION
    seed: int = 0

    def check(self) -> None:
        """Refuse options that are out of range.

        Raises:
            InputError: The message names the option.
        """
        if self.trials < 1:
            raise InputError(f"trials: {self.trials} is not a number of trials; give 1 or more")
        for key in self.keys:
            if key not in KEYS:
                raise InputError(f"search: '{key}' is none of {', '.join(KEYS)}")
        if self.sampler not in SAMPLERS:
            raise InputError(f"sampler: '{self.sampler}' is none of {', '.join(SAMPLERS)}")


@dataclass(frozen=True)
class Tuned(Documented):
    """The outcome of a search.

    Attributes:
        recipe: The recipe of the candidate that was taken, as keys and values.
        tasks: The names of the experts, each of which has a task.
        taken: The candidate that was taken, on all samples: the recipe's own settings, a plain
            merge, or a trial.
        best: The best trial on the search samples.
        plain: The best plain merge.
        baselines: All plain merges.
        trials: All trials, in order; the first has the recipe's own settings.
        notes: What was taken and why, the best trial's gain, and whether it holds on the validation
            samples.
    """

    recipe: dict[str, Any]
    tasks: list[str]
    taken: Result
    best: Result
    plain: Result
    baselines: list[Result]
    trials: list[Result]
    notes: list[str]

    def write(self, path: Path) -> list[Path]:
        """Write the recipe, the trials as CSV and JSON, and a picture.

        Returns:
            The files.
        """
        from sensmerge.search.pictures import tuned_png

        said = [f"# tuned by sensmerge {__version__}", *(f"# {plain(note)}" for note in self.notes)]
        files = {
            path: "\n".join([*said, to_yaml(self.recipe)]).encode(),
            path.with_suffix(".trials.csv"): self.csv().encode(),
            path.with_suffix(".trials.json"): self.to_json().encode(),
            path.with_suffix(".png"): tuned_png(self),
        }
        for file, content in files.items():
            write_atomically(file, content)
        return list(files)

    def csv(self) -> str:
        """All candidates as CSV, with one row per candidate."""
        text = io.StringIO()
        names: list[str] = ["kind", *self.best.settings.numbers(), *self.tasks, "objective"]
        names += [f"validation {task}" for task in self.tasks] + ["validation objective"]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        for result in [*self.baselines, *self.trials]:
            validation: list[Any] = list(result.validation) or [""] * len(self.tasks)
            last: float | str = (
                "" if math.isnan(result.validation_objective) else result.validation_objective
            )
            writer.writerow(
                [result.kind, *result.settings.numbers().values(), *result.losses,
                 result.objective, *validation, last]
            )  # fmt: skip
        return text.getvalue()

    def __repr__(self) -> str:
        return f"Tuned(taken={self.taken.settings.describe()!r}, trials={len(self.trials)})"

    def _repr_html_(self) -> str:
        candidates = [("taken", self.taken), ("best", self.best)]
        candidates += [("plain", result) for result in self.baselines]
        rows = [
            [kind, result.settings.describe(), f"{result.objective:.4f}", _held(result)]
            for kind, result in candidates
        ]
        head = ["", "settings", "search", "validation"]
        table = markup.table(head, rows, words=2)
        return markup.shown("Loss, nats per token", table, markup.notes(self.notes))

    def as_dict(self) -> dict[str, Any]:
        """The recipe, all candidates and the notes, as keys and values; see docs/json.md."""
        return {
            "recipe": self.recipe,
            "tasks": self.tasks,
            "taken": asdict(self.taken),
            "best": asdict(self.best),
            "plain": asdict(self.plain),
            "baselines": [asdict(result) for result in self.baselines],
            "trials": [asdict(result) for result in self.trials],
            "notes": self.notes,
        }

    def table(self) -> str:
        """The candidate that was taken, the best trial and the plain merges, as a table."""
        rows = [("taken", self.taken), ("best", self.best)]
        rows += [("plain", result) for result in self.baselines]
        width = max(len(result.settings.describe()) for _, result in rows)
        head = f"{'':<6}{'':<{width}}  search  validation"
        lines = [head, *(_line(kind, result, width) for kind, result in rows)]
        return "\n".join(lines)


def _line(kind: str, result: Result, width: int) -> str:
    held, what = _held(result), result.settings.describe()
    return f"{kind:<6}{what:<{width}}  {result.objective:.4f}  {held:>10}".rstrip()


def _held(result: Result) -> str:
    return "" if math.isnan(result.validation_objective) else f"{result.validation_objective:.4f}"


def tune(
    recipe: Recipe | str | Path,
    options: Options | None = None,
    *,
    calibration: Calibration | str | Path | None = None,
    study: Path | None = None,
    home: Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    progress: bool = True,
) -> Tuned:
    """Search the settings of a recipe for the lowest loss on its experts' samples.

    Args:
        recipe: The recipe, or its path. Its experts name their samples.
        options: Options of the search.
        calibration: A calibration of the experts, or its path; if one is needed and not given, it
            is measured.
        study: The file in which Optuna keeps the trials, from which a search continues after a
            stop; None keeps nothing.
        home: The folder in which the tuned recipe will be; the recipe's by default.
        device: The torch device that models run on, such as ``cuda``.
        threads: Threads to use; all cores by default.
        progress: Show a progress bar on a terminal and plain lines elsewhere.

    Raises:
        InputError: Recipe, calibration, models or samples cannot be used as they are, or Optuna is
            missing.
        KeyboardInterrupt: Ctrl-C was pressed; finished trials are kept.
    """
    from sensmerge.search.study import Study

    recipe, options = Recipe.of(recipe), options or Options()
    options.check()
    options.objective.check(len(recipe.experts))
    if calibration is None and needs_calibration(recipe):
        from sensmerge.calibration import calibrate

        calibration = calibrate(recipe, progress=progress, threads=threads, device=device)
    with quiet_transformers(), torch_threads(threads):
        judge = Judge(
            recipe,
            calibration=calibration,
            validation=options.validation,
            device=device,
            threads=threads,
        )
        space = Space(recipe, options)
        kept = Study(study, options, space, judge.key())
        results = _searched(judge, space, kept, options, progress)
        baselines, trials = results
        best = min(trials, key=lambda result: result.objective)
        # The simplest first: the recipe's own settings, plain merges, the others.
        others = sorted(trials[1:], key=lambda result: result.objective)[:SHORTLIST]
        plain_first = sorted(baselines, key=lambda result: result.objective)
        candidates = [trials[0], *plain_first, *others]
        table = [judge.by_sample(result.settings) for result in candidates]
        if options.validation:
            known = {result.settings: _validated(judge, result, options) for result in candidates}
            candidates = [known[result.settings] for result in candidates]
            baselines = [known[result.settings] for result in baselines]
            trials = [known.get(result.settings, result) for result in trials]
            best = known[best.settings]
    # Chosen by the search samples, like the best trial.
    plain = min(baselines, key=lambda result: result.objective)
    place = choice.choose(table, options.objective)
    taken = candidates[place]
    names = [task.name for task in judge.tasks]
    notes = [
        _reason(candidates, table, place, len(plain_first), options),
        *_worth(table, options),
        *_words(best, plain, names),
    ]
    data = taken.settings.apply(recipe, moved(recipe, home or recipe.folder))
    return Tuned(data, names, taken, best, plain, baselines, trials, notes)


def _reason(
    candidates: list[Result], table: list[list[Vector]], place: int, plain: int, options: Options
) -> str:
    """Which candidate was taken, and why, in words."""
    taken = candidates[place].settings.describe()
    values = [options.objective.of([float(task.mean()) for task in each]) for each in table]
    lowest = min(range(len(values)), key=values.__getitem__)
    found = choice.difference(table[lowest], table[place], options.objective)
    what = "the recipe's own settings are kept" if place == 0 else "taken"
    if 0 < place <= plain:
        what = "a plain merge is taken"
    said = f"{what}: {taken}, {values[place]:.4f} on all samples"
    if lowest == place:
        return f"{said}, the lowest of {len(candidates)} candidates"
    if math.isinf(found.error):
        return f"{said}: one sample of a task does not tell whether another is better"
    return (
        f"{said}; the lowest of {len(candidates)} candidates is {found.mean:.4f} lower, no more "
        f"than its standard error of {found.error:.4f}"
    )


def _worth(table: list[list[Vector]], options: Options) -> list[str]:
    """What such a choice is worth by cross-validation, in words."""
    found = choice.cross_validated(table, options.objective)
    if found is None:
        return []
    word = "lower" if found.mean >= 0 else "higher"
    return [
        f"by cross-validation such a choice is {abs(found.mean):.4f} ± {found.error:.4f} {word} "
        "than the recipe's own settings"
    ]


def _searched(
    judge: Judge, space: Space, kept: Study, options: Options, progress: bool
) -> tuple[list[Result], list[Result]]:
    samples = sum(len(task.search) for task in judge.tasks)
    wanted = samples * (len(space.methods) * EVALUATIONS + options.trials)
    with bar(wanted, "tuning", "samples", enabled=progress) as advance:

        def result(kind: str, settings: Settings) -> Result:
            losses = judge.losses(settings, advance=advance)
            return Result(kind, settings, losses, options.objective.of(losses))

        baselines = [
            baseline
            for method in space.methods
            for baseline in _plain(method, space, lambda settings: result("baseline", settings))
        ]
        trials = kept.run(lambda settings: result("trial", settings))
    return baselines, trials


def _plain(method: str, space: Space, result: Callable[[Settings], Result]) -> list[Result]:
    """A method without sensitivity, at λ = 1/K and at its own best λ."""
    share = 1 / space.experts
    scaled = space.scale(method)
    at_share = replace(space.plain(method), scale=None if scaled is None else share)
    found = [result(at_share)]
    if scaled is not None:
        seen = {share: found[0]}

        def at(scale: float) -> float:
            seen[scale] = seen.get(scale) or result(replace(at_share, scale=scale))
            return seen[scale].objective

        best = minimise(at, *bounds(scaled, space.experts), start=share)
        if best != share:
            found.append(seen[best])
    return found


def _validated(judge: Judge, result: Result, options: Options) -> Result:
    losses = judge.losses(result.settings, "validation")
    return replace(result, validation=losses, validation_objective=options.objective.of(losses))


def _words(best: Result, plain: Result, tasks: list[str]) -> list[str]:
    """The winner, its gain over the best plain merge, and whether the gain holds, in words."""
    gain = plain.objective - best.objective
    said = [
        f"best of the search: {best.settings.describe()}, {best.objective:.4f} on the samples "
        f"searched with; the best plain merge ({plain.settings.describe()}) has "
        f"{plain.objective:.4f}: {abs(gain):.4f} {'lower' if gain > 0 else 'higher'}"
    ]
    if best.settings.mode == "off":
        said.append("a plain merge won: sensitivity brings nothing on these samples")
    if math.isnan(best.validation_objective):
        said.append("nothing was validated: whether the gain holds on other samples is unknown")
        return said
    held = plain.validation_objective - best.validation_objective
    share = f" ({100 * held / gain:.0f} % of it)" if gain > 0 and held > 0 else ""
    verdict = "it holds" if held > 0 else "it does not hold"
    said.append(
        f"on the validation samples {best.validation_objective:.4f} against "
        f"{plain.validation_objective:.4f}: {verdict}{share}"
    )
    return said


def bounds(parameter: Parameter, experts: int) -> tuple[float, float]:
    """The interval in which a parameter is searched for, for this number of experts."""
    assert parameter.search is not None, "what is not searched for has no bounds"
    return parameter.search.bounds(experts)


class Space:
    """The settings that a search chooses from.

    Attributes:
        methods: The methods.
        experts: Number of experts.
        start: The recipe's own settings.
    """

    def __init__(self, recipe: Recipe, options: Options) -> None:
        """Take the recipe's settings and the keys and methods of the options.

        Raises:
            InputError: The recipe is not valid with one of the methods.
        """
        self._recipe = recipe
        self._keys = set(options.keys)
        self.methods = list(options.methods or [recipe.merge_method])
        self.experts = len(recipe.experts)
        self.start = Settings.of(recipe)
        for method in self.methods:
            # Refuse a method that the recipe does not fit before an hour of trials, not after it.
            self.plain(method).recipe(recipe)

    def scale(self, method: str) -> Parameter | None:
        """λ, if the method has it; otherwise None."""
        return searched(method_of(self._recipe, method), SCALE)

    def density(self, method: str) -> Parameter | None:
        """The density, if the method has it; otherwise None."""
        return searched(method_of(self._recipe, method), DENSITY)

    def default(self, name: str) -> float | None:
        """The number of a parameter that the recipe's method takes if none is given."""
        parameter = self._recipe.method.parameter(name)
        return None if parameter is None else parameter.default

    def only(self, method: str) -> Space:
        """The same for one of the methods."""
        other = copy(self)
        other.methods = [method]
        return other

    def plain(self, method: str) -> Settings:
        """A method without sensitivity, otherwise with the recipe's settings."""
        return Settings(method, self._own_scale(method), self._own_density(method))

    def choose(
        self,
        category: Callable[[str, list[str]], str],
        number: Callable[[str, float, float, bool], float],
    ) -> Settings:
        """Choose the settings of a candidate.

        Args:
            category: Called with a setting's name and its values; returns one of them.
            number: Called with a setting's name, its least and greatest number, and whether the
                scale is logarithmic; returns a number.
        """
        method: Any = self.methods[0]
        if len(self.methods) > 1:
            method = category("method", [str(each) for each in self.methods])
        scale, density = self._own_scale(method), self._own_density(method)
        if SCALE in self._keys and (found := self.scale(method)) is not None:
            scale = self._number(found, number)
        if DENSITY in self._keys and (found := self.density(method)) is not None:
            density = self._number(found, number)
        if self.start.mode == "off" or not method_of(self._recipe, method).coefficients:
            return Settings(method, scale, density)
        mode = self.start.mode
        if "mode" in self._keys:
            mode = category("mode", ["full", "task", "cross"])
        temperature: float | None = self.start.temperature or DEFAULT_TEMPERATURE
        if "temperature" in self._keys:
            temperature = number("temperature", *TEMPERATURES, True)
        form = self._own_form() if mode != "task" else None
        if "cross_task" in self._keys and mode != "task":
            form = category("cross_task", ["transfer", "distance"])
        return Settings(method, scale, density, mode, temperature, form)

    def _number(
        self, parameter: Parameter, number: Callable[[str, float, float, bool], float]
    ) -> float:
        logarithmic = parameter.search is not None and parameter.search.log
        return number(parameter.name, *bounds(parameter, self.experts), logarithmic)

    def _own_form(self) -> str:
        return self._recipe.sensitivity.cross_task if self._recipe.sensitivity else "transfer"

    def _own_scale(self, method: str) -> float | None:
        return None if self.scale(method) is None else self.start.scale

    def _own_density(self, method: str) -> float | None:
        if method == self._recipe.merge_method:
            return self.start.density
        # The start of searches, if the recipe has no density of its own.
        found = self.density(method)
        if found is None or found.search is None:
            return None
        return self.start.density or found.search.start
