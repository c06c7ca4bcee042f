"""The tasks that models are evaluated on, as the harness knows them."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind

from sensmerge.errors import InputError, first_line
from sensmerge.evaluation import harness, taskfiles
from sensmerge.evaluation.benchmarks import PAPER, benchmark
from sensmerge.evaluation.programs import check_confinement
from sensmerge.evaluation.record import Conditions, Score
from sensmerge.reading import mode_of
from sensmerge.refusals import nearest

if TYPE_CHECKING:
    from sensmerge.evaluation.harness import Runner

# Keys of a task that say where it lies, and not what it asks.
_PLACES = ("metadata", "dataset_kwargs", "tag", "task_alias")


class Suite:
    """Tasks by name.

    Attributes:
        names: The tasks' names.
        digests: A digest of each task's definition and samples; known within :meth:`ready`.
        notes: Notes for the user.
    """

    def __init__(
        self, names: list[str], folder: Path | None, limit: int | None, *, trusted: bool
    ) -> None:
        """Find the tasks; none of their data is read.

        Args:
            names: The tasks' names.
            folder: A folder with task files of the user's own.
            limit: Samples of each task; None for all.
            trusted: Whether these files may run code.

        Raises:
            InputError: There is no such task, or a file would run code and may not.
        """
        self.names = names
        self.digests: dict[str, str] = {}
        self.notes: list[str] = []
        self._limit = limit
        self._trusted = trusted
        self._tasks: dict[str, Any] = {}
        if folder is not None and not trusted:
            taskfiles.check(folder)
        with harness.quiet():
            self._manager = _manager(names, folder)
        self._index: Mapping[str, Entry] = self._manager.task_index
        self._run_code = False

    def check(self, *, run_code: bool) -> None:
        """Refuse tasks that cannot be evaluated, as far as their definitions tell.

        Args:
            run_code: Whether programs that models write may be run.

        Raises:
            InputError: A line for each task.
        """
        wrong = []
        for name in self.names:
            entry = self._index[name]
            if entry.kind is Kind.TAG or self._has_no_score(entry):
                members = ", ".join(sorted(leaf.name for leaf in self._leaves(name)))
                wrong.append(
                    f"tasks: '{name}' stands for several tasks without a common score; name those "
                    f"that you want: {members}"
                )
            files = [path for leaf in self._leaves(name) for path in _data_files(leaf)]
            wrong += [
                f"task '{name}': its data is not there: {path}; relative paths start from the "
                "current folder"
                for path in files
                if mode_of(Path(path)) is None
            ]
        code = [name for name in self.names if self._runs_code(name)]
        if code and not run_code:
            wrong.append(
                f"tasks: {', '.join(code)}: programs that the model writes are run to see whether "
                "they pass their tests, and that was not allowed"
            )
        if wrong:
            raise InputError(wrong, option="run_code" if code and not run_code else None)
        if code:
            check_confinement()
        self._run_code = run_code

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Read the tasks' data; within this context they can be scored.

        Raises:
            InputError: The data of a task are not to be had.
        """
        with ExitStack() as stack:
            stack.enter_context(harness.quiet())
            if self._trusted or any(map(self._runs_code, self.names)):
                stack.enter_context(harness.programs_confined(allowed=self._run_code))
            if not self._trusted:
                stack.enter_context(harness.templates_confined())
            if all(_is_local(leaf) for name in self.names for leaf in self._leaves(name)):
                stack.enter_context(harness.offline())
            for name in self.names:
                self._tasks[name] = self._built(name)
                self.digests[name] = _digest(self._tasks[name]["tasks"], self._limit)
            yield

    def score(
        self, name: str, runner: Runner, conditions: Conditions, title: str | None = None
    ) -> Score:
        """A model's score on a task.

        Args:
            name: The task.
            runner: The model.
            conditions: What else the score depends on.
            title: What is shown while it is computed; None shows nothing.

        Raises:
            InputError: The harness cannot evaluate it, or gives no finite score.
        """
        start = time.monotonic()
        try:
            found = harness.evaluated(self._tasks[name], runner, self._limit, title)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"task '{name}': the harness cannot evaluate it: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error
        numbers = {
            key: float(value)
            for key, value in found["results"][name].items()
            if "," in key and isinstance(value, int | float) and not isinstance(value, bool)
        }
        metric = _main(name, numbers)
        value = numbers.get(metric, math.nan)
        if not math.isfinite(value):
            raise InputError(f"task '{name}': the harness gives no finite score for {metric}")
        word, _, filtered = metric.partition(",")
        spread = numbers.get(f"{word}_stderr,{filtered}")
        samples = sum(each["effective"] for each in found["n-samples"].values())
        return Score(
            value=value,
            metric=metric,
            error=spread if spread is not None and math.isfinite(spread) else None,
            samples=samples,
            metrics={key: each for key, each in numbers.items() if math.isfinite(each)},
            digest=self.digests[name],
            seconds=time.monotonic() - start,
            conditions=conditions,
        )

    def _built(self, name: str) -> dict[str, Any]:
        try:
            built: dict[str, Any] = dict(self._manager.load([name]))
        except InputError:
            raise
        except Exception as error:
            places = sorted({str(leaf.cfg.get("dataset_path")) for leaf in self._leaves(name)
                             if leaf.cfg is not None})  # fmt: skip
            raise InputError(
                f"task '{name}': it or its data ({', '.join(places)}) cannot be loaded: "
                f"{first_line(error)}; data of the Hub are downloaded once, where there is a "
                "network; without one, write a task file with data of your own (--tasks-dir)"
            ) from None
        for task in built["tasks"].values():
            task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=harness.SEED)
        return built

    def _leaves(self, name: str) -> list[Entry]:
        """The single tasks that a name stands for."""
        entry = self._index.get(name)
        if entry is None:
            return []
        if entry.kind is Kind.TAG:
            members: list[Any] = sorted(entry.tags)
        elif entry.kind is Kind.GROUP:
            listed = (entry.cfg or {}).get("task") or []
            members = listed if isinstance(listed, list) else [listed]
        else:
            return [entry]
        named = [each if isinstance(each, str) else each.get("task") or each.get("group")
                 for each in members]  # fmt: skip
        return [leaf for each in named if isinstance(each, str) for leaf in self._leaves(each)]

    def _runs_code(self, name: str) -> bool:
        return any((leaf.cfg or {}).get("unsafe_code") for leaf in self._leaves(name))

    @staticmethod
    def _has_no_score(entry: Entry) -> bool:
        return entry.kind is Kind.GROUP and not (entry.cfg or {}).get("aggregate_metric_list")


def _manager(names: list[str], folder: Path | None) -> TaskManager:
    """The harness's tasks, or the user's own alone where these are all that is asked for.

    Raises:
        InputError: There is no such task; the message says which may have been meant.
    """
    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if all(name in own.task_index for name in names):
            return own
    manager = _defaults() if folder is None else TaskManager(include_path=str(folder))
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        known = [each.task for each in PAPER] + manager.all_tasks
        raise InputError([_unknown(name, known, folder) for name in unknown])
    return manager


@cache
def _defaults() -> TaskManager:
    return TaskManager()


def _unknown(name: str, known: list[str], folder: Path | None) -> str:
    near = nearest(name, known)
    hint = "" if near is None else f"; did you mean '{near}'?"
    where = "" if folder is None else f" or {folder}"
    return f"tasks: there is no '{name}' in lm-evaluation-harness{where}{hint}"


def _main(name: str, numbers: Mapping[str, float]) -> str:
    """Which of a task's numbers is its score: the paper's, or the first."""
    known = benchmark(name)
    if known is not None and known.metric in numbers:
        return known.metric
    return next((key for key in numbers if "_stderr," not in key), "a score")


def _is_local(leaf: Entry) -> bool:
    """Whether a task's data are files here."""
    return (leaf.cfg or {}).get("dataset_path") in taskfiles.FORMATS and bool(_data_files(leaf))


def _data_files(leaf: Entry) -> list[str]:
    """The files of a task's data, as far as they are named one by one."""
    named = ((leaf.cfg or {}).get("dataset_kwargs") or {}).get("data_files")
    split = named.values() if isinstance(named, dict) else [named]
    listed = [each for part in split for each in (part if isinstance(part, list) else [part])]
    return [str(each) for each in listed if each is not None and not set(str(each)) & set("*?[:")]


def _digest(tasks: Mapping[str, Any], limit: int | None) -> str:
    """A digest of what tasks ask: their definitions, and the samples that are used."""
    said = hashlib.blake2b(digest_size=16)

    def add(data: Any) -> None:
        said.update(json.dumps(data, sort_keys=True, default=_written).encode())

    for name, task in sorted(tasks.items()):
        config = {key: each for key, each in task.dump_config().items() if key not in _PLACES}
        add([name, config])
        for place, doc in task.doc_iterator(limit=limit):
            add([place, doc])
    return said.hexdigest()


def _written(value: Any) -> str:
    """What JSON has no form for: a function as it is written, whatever its address."""
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return getattr(value, "__qualname__", type(value).__qualname__)
    return repr(value)
