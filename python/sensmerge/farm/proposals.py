"""What a farm tries next: the combinations of a grid, or what a study of Optuna proposes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from sensmerge.errors import InputError
from sensmerge.farm.places import METHOD, Place, find, method_of
from sensmerge.farm.settings import Choice, FarmFile, Range, StudySettings
from sensmerge.recipe import Recipe, methods
from sensmerge.search.settings import TEMPERATURES

if TYPE_CHECKING:
    from sensmerge.farm.evaluators import Better


class Proposals(Protocol):
    """What a farm tries next.

    Attributes:
        places: The places that vary.
        most: The number of candidates at most.
    """

    places: list[Place]
    most: int

    def ahead(self) -> Iterator[dict[str, Any]]:
        """All proposals, where they do not depend on scores; otherwise none."""
        ...

    def next(self) -> dict[str, Any] | None:
        """A proposal that depends on the scores so far; None if there are no more."""
        ...

    def told(self, chosen: Mapping[str, Any], score: float | None) -> None:
        """Be told the score of a candidate; None: it failed."""
        ...


def proposals_of(file: FarmFile, template: Recipe, better: Better) -> Proposals:
    """The proposals of a farm file.

    Args:
        file: The farm file.
        template: Its recipe.
        better: Which scores are better.

    Raises:
        InputError: It names places that the recipe does not have, or Optuna is missing.
    """
    if file.grid is not None:
        return Grid(file.grid, template)
    assert file.study is not None
    return Study(file.study, template, better)


def _places(names: Sequence[str], template: Recipe, section: str) -> list[Place]:
    found: list[Place] = []
    wrong = []
    for name in names:
        try:
            place = find(name, template)
        except InputError as error:
            wrong += [f"{section}.{line}" for line in error.lines]
            continue
        same = next((each for each in found if each.keys == place.keys), None)
        if same is not None:
            wrong.append(f"{section}.{name}: is the same place as {same.name}; name it once")
        found.append(place)
    if wrong:
        raise InputError(wrong)
    return found


class Grid:
    """Every combination of the values of some places."""

    def __init__(self, values: Mapping[str, list[Any]], template: Recipe) -> None:
        """Find the places.

        Raises:
            InputError: There is no such place.
        """
        self._values = values
        self.places = _places(list(values), template, "grid")
        self.most = 0

    def ahead(self) -> Iterator[dict[str, Any]]:
        """All combinations; the last place varies fastest."""
        for combination in itertools.product(*self._values.values()):
            yield dict(zip(self._values, combination, strict=True))

    def next(self) -> dict[str, Any] | None:
        """There are no others."""
        return None

    def told(self, chosen: Mapping[str, Any], score: float | None) -> None:
        """Nothing depends on it."""


class Study:
    """What Optuna proposes, by the scores of all candidates so far.

    The farm's database is all that is kept: the study is made of it anew when a farm goes on.
    """

    def __init__(self, settings: StudySettings, template: Recipe, better: Better) -> None:
        """Find the places, and the intervals that the registry knows.

        Raises:
            InputError: There is no such place, no interval is known of it, or Optuna is missing.
        """
        # Also says what to install where Optuna is missing.
        import optuna

        from sensmerge.search import study

        self._sampler = study.sampler
        self._settings, self._template = settings, template
        self.places = _places(list(settings.ranges), template, "study.ranges")
        self.most = settings.trials
        self._ranges = {
            place.name: settings.ranges[place.name] or _registered(place, template)
            for place in self.places
        }
        self._distributions = {
            name: _distribution(optuna.distributions, each) for name, each in self._ranges.items()
        }
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(direction="minimize" if better == "lower" else "maximize")
        self._optuna = optuna
        self._trials: dict[str, Any] = {}

    def ahead(self) -> Iterator[dict[str, Any]]:
        """None: each depends on the scores of those before it."""
        return iter(())

    def next(self) -> dict[str, Any]:
        """The sampler's proposal. The sampler of each has a seed of its own."""
        self._study.sampler = self._sampler(
            self._settings.sampler, self._settings.seed + len(self._study.trials)
        )
        trial = self._study.ask()
        chosen: dict[str, Any] = {}
        # The method first: it decides which of the others there are.
        for place in sorted(self.places, key=lambda place: place.name != METHOD):
            if place.applies(method_of(self._template, chosen)):
                chosen[place.name] = _suggested(trial, place.name, self._ranges[place.name])
        self._trials[_key(chosen)] = trial
        return chosen

    def told(self, chosen: Mapping[str, Any], score: float | None) -> None:
        """Tell Optuna a score: of what it proposed, or of what was proposed in an earlier run."""
        state = self._optuna.trial.TrialState
        trial = self._trials.pop(_key(chosen), None)
        if trial is not None:
            self._study.tell(trial, score, state=None if score is not None else state.FAIL)
            return
        if score is None or any(name not in self._distributions for name in chosen):
            # It failed, or has a place that this study does not have: nothing is learned.
            return
        given = {name: self._distributions[name] for name in chosen}
        # Outside the ranges, likewise.
        with suppress(ValueError):
            self._study.add_trial(
                self._optuna.trial.create_trial(
                    params=dict(chosen), distributions=given, value=score
                )
            )


def _key(chosen: Mapping[str, Any]) -> str:
    return json.dumps(dict(chosen), sort_keys=True)


def _registered(place: Place, template: Recipe) -> Range:
    """The interval in which a place is searched if the farm file gives none.

    Raises:
        InputError: None is known.
    """
    if place.keys == ("sensitivity", "temperature"):
        low, high = TEMPERATURES
        return Range(low=low, high=high, log=True)
    own = template.method.parameter(str(place.parameter))
    known = [] if place.parameter is None else methods.parameters_named(place.parameter)
    for each in [*([] if own is None else [own]), *known]:
        if each.search is not None:
            low, high = each.search.bounds(len(template.experts))
            return Range(low=low, high=high, log=each.search.log)
    raise InputError(
        f"study.ranges.{place.name}: no interval of it is known; give low and high, or a list of "
        "values"
    )


def _distribution(kinds: Any, given: Range | Choice) -> Any:
    if isinstance(given, Choice):
        return kinds.CategoricalDistribution(given.values)
    if given.whole:
        return kinds.IntDistribution(int(given.low), int(given.high), log=given.log)
    return kinds.FloatDistribution(given.low, given.high, log=given.log)


def _suggested(trial: Any, name: str, given: Range | Choice) -> Any:
    if isinstance(given, Choice):
        return trial.suggest_categorical(name, given.values)
    if given.whole:
        return trial.suggest_int(name, int(given.low), int(given.high), log=given.log)
    return trial.suggest_float(name, given.low, given.high, log=given.log)
