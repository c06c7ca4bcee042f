"""The trials of a search, proposed and kept by Optuna, so that a search continues after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensmerge import __version__
from sensmerge.errors import InputError, first_line
from sensmerge.files import write_atomically
from sensmerge.reading import LARGE, content, mode_of, parsed
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
# Values of other numbers: this many in equal ratios between the bounds, or the fifths between them.
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
            options: Options of the search.
            space: The space of settings.
            key: All else that trials depend on.

        Raises:
            InputError: The file belongs to another search, or is not a study.
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
                # The recipe's own settings first, so that the best trial is never worse than they.
                self._study.enqueue_trial(self._own())
        elif found != wanted:
            raise InputError(
                f"{path}: is the study of a search with other models, samples or options; name "
                "another file, or remove it"
            )

    def run(self, evaluate: Callable[[Settings], Result]) -> list[Result]:
        """Run the trials that are missing.

        Every trial has a sampler with a seed of its own, so that a search that was stopped
        continues as if it had not been.

        Args:
            evaluate: Computes the result of a candidate.

        Returns:
            All trials, in order, those of earlier runs included.
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
                # Optuna keeps the settings that were proposed for the trial before the stop.
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
            # The seed determines the order of the grid, so that it is the same for all trials.
            return optuna.samplers.GridSampler(self._grid(), seed=self._options.seed)
        return sampler(self._options.sampler, seed)

    def _grid(self) -> dict[str, list[Any]]:
        """A few values of every setting that a candidate can have."""
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
        # The grid has every setting that any of the methods has.
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
            if said is None:
                said = self._space.default(name)
            asked[name] = min(max(low, high if said is None else said), high)
            return float(asked[name])

        self._space.choose(category, number)
        return asked


def sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of a name that is not ``grid``.

    Args:
        name: ``tpe``, ``cmaes`` or ``random``.
        seed: Its seed.
    """
    if name == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


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
    except Exception as error:
        # Optuna raises whatever its reading of a journal does.
        said = first_line(error)
        raise InputError(f"{path}: is not a study ({said}); name another file") from None


def _mend(path: Path) -> None:
    """Remove an incomplete last line, left by a killed process: Optuna would append to it."""
    if mode_of(path) is None:
        return
    found = content(path, LARGE)
    whole = found[: found.rfind(b"\n") + 1]
    if not found.startswith(b"{") and found:
        raise ValueError("it holds something else")
    for line in whole.splitlines():
        # Optuna reads them without a look at what they are.
        if not isinstance(parsed(line), dict):
            raise ValueError("it holds something else")
    if whole != found:
        write_atomically(path, whole)
