"""Trials kept by Optuna: asked for, told, and gone on with after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensmerge import __version__
from sensmerge.errors import InputError
from sensmerge.files import write_atomically
from sensmerge.recipe.parameters import SCALE
from sensmerge.search.results import Result
from sensmerge.search.settings import DENSITY, Settings

try:
    import cmaes  # noqa: F401 - asked for before an hour of trials, not after
    import optuna
except ImportError as error:
    raise InputError(
        f"tuning needs optuna and cmaes ({error}); pip install 'sensmerge[calibrate,tune]'"
    ) from None

if TYPE_CHECKING:
    from sensmerge.search.trials import Options, Space

_KEY = "sensmerge"
_RESULT = "result"

# Values of a grid, a few for each key.
_GRID: dict[str, list[Any]] = {
    "temperature": [0.01, 0.02, 0.05, 0.1, 0.2],
    "cross_task": ["transfer", "distance"],
    "mode": ["full", "task", "cross"],
}
# Of other numbers: so many in equal ratios, or the fifths of 1 between the bounds.
_IN_EQUAL_RATIOS = 6
_FIFTHS = (0.2, 0.4, 0.6, 0.8)


class Study:
    """The trials of one search."""

    def __init__(
        self, path: Path | None, options: Options, space: Space, key: dict[str, Any]
    ) -> None:
        """Open the file of a study, or make one.

        Args:
            path: The file; None keeps trials in memory.
            options: How to search.
            space: What is chosen from.
            key: What else decides every trial.

        Raises:
            InputError: The file is of another search, or no study.
        """
        self._options = options
        self._space = space
        decides = {key: value for key, value in asdict(options).items() if key != "trials"}
        wanted = json.dumps(key | decides | {"sensmerge": __version__}, sort_keys=True)
        self._study = _open(path)
        found = self._study.user_attrs.get(_KEY)
        if found is None:
            self._study.set_user_attr(_KEY, wanted)
            if options.sampler != "grid":
                # The recipe's own settings: what is found is never worse on the samples searched.
                self._study.enqueue_trial(self._own())
        elif found != wanted:
            raise InputError(
                f"{path}: is the study of a search with other models, samples or options; name "
                "another file, or remove it"
            )

    def run(self, evaluate: Callable[[Settings], Result]) -> list[Result]:
        """Do the trials that are missing.

        Every trial has a sampler with a seed of its own, so that a search that was stopped goes on
        as if it had not been.

        Returns:
            Every trial, in order.
        """
        states = optuna.trial.TrialState
        stopped = self._study.get_trials(states=[states.RUNNING])
        done = len(self._study.get_trials(states=[states.COMPLETE]))
        for number in range(done, self._options.trials):
            sampler = self._study.sampler = self._sampler(number)
            if isinstance(sampler, optuna.samplers.GridSampler) and sampler.is_exhausted(
                self._study
            ):
                break
            if stopped:
                # What it was asked before is remembered.
                trial = optuna.trial.Trial(self._study, stopped.pop(0)._trial_id)
            else:
                trial = self._study.ask()
            result = evaluate(self._asked(trial))
            trial.set_user_attr(_RESULT, [asdict(result.settings), result.losses])
            self._study.tell(trial, result.objective)
        found = []
        for told in self._study.get_trials(states=[states.COMPLETE])[: self._options.trials]:
            said, losses = told.user_attrs[_RESULT]
            assert told.value is not None
            found.append(Result("trial", Settings(**said), losses, told.value))
        return found

    def _asked(self, trial: optuna.trial.Trial) -> Settings:
        def number(name: str, low: float, high: float, log: bool) -> float:
            return trial.suggest_float(name, low, high, log=log)

        return self._space.choose(trial.suggest_categorical, number)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = self._options.seed + number
        if self._options.sampler == "grid":
            # Its seed orders the grid: one for all trials.
            return optuna.samplers.GridSampler(self._grid(), seed=self._options.seed)
        if self._options.sampler == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if self._options.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed)

    def _grid(self) -> dict[str, list[Any]]:
        """A few values of everything that a candidate can ask for."""
        asked: dict[str, list[Any]] = {}

        def category(name: str, values: list[str]) -> str:
            asked[name] = values
            return values[0]

        def number(name: str, low: float, high: float, log: bool) -> float:
            equal_ratios = np.geomspace(low, high, _IN_EQUAL_RATIOS).tolist()
            fifths = [fifth for fifth in _FIFTHS if low < fifth < high]
            asked[name] = _GRID.get(name) or (equal_ratios if log else fifths)
            return low

        methods = self._space.methods
        # What only some methods ask for is in the grid if one of them does.
        for method in sorted(methods, key=lambda each: self._space.density(each) is not None):
            space = self._space.only(method)
            space.choose(category, number)
        if len(methods) > 1:
            asked["method"] = [str(method) for method in methods]
        return asked

    def _own(self) -> dict[str, Any]:
        """The recipe's own settings, as far as they are searched for."""
        start = self._space.start
        asked: dict[str, Any] = {}
        own = {
            "method": start.method, "mode": start.mode, "temperature": start.temperature,
            "cross_task": start.cross_task, DENSITY: start.density,
        }  # fmt: skip

        def category(name: str, values: list[str]) -> str:
            asked[name] = own[name] if own[name] in values else values[0]
            return str(asked[name])

        def number(name: str, low: float, high: float, log: bool) -> float:
            said = start.scale if name == SCALE else own[name]
            asked[name] = min(max(low, high if said is None else said), high)
            return float(asked[name])

        self._space.choose(category, number)
        return asked


def _open(path: Path | None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if path is None:
        return optuna.create_study()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _mend(path)
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(storage=storage, study_name=_KEY, load_if_exists=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: is no study ({error}); name another file") from None


def _mend(path: Path) -> None:
    """Take away the half of a line that a killed process left; the next would be added to it."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        if not whole and not content.startswith(b"{"):
            raise ValueError("it holds something else")
        write_atomically(path, whole)
