"""The one door to lm-evaluation-harness: quiet, confined, and with our progress."""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import datasets
import huggingface_hub
import jinja2.sandbox
import lm_eval.api.metrics
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.evaluator
import lm_eval.models.huggingface
import lm_eval.utils
import numpy as np
import torch

from sensmerge.errors import InputError, first_line
from sensmerge.evaluation.programs import CodeEval
from sensmerge.progress import bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The harness's own seeds, of Python and of NumPy, torch and examples in prompts.
RANDOM_SEED, SEED = 0, 1234

# Draws for the standard errors of metrics that are no means.
_DRAWS = 1000

_LOGGERS = ("datasets", "evaluate", "lm_eval", "lm-eval")


class Runner(lm_eval.models.huggingface.HFLM):  # type: ignore[misc]
    """A model as the harness runs it."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> None:
        """Take a model that is ready to run.

        Args:
            model: The model.
            tokenizer: Its tokenizer. It may get a token for padding.
            batch_size: Requests that run at a time.

        Raises:
            InputError: The harness cannot run it.
        """
        try:
            super().__init__(
                pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size
            )
        except Exception as error:
            raise InputError(
                f"{model.config.name_or_path}: the harness cannot run it: {first_line(error)}"
            ) from None

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """See the harness."""
        with _steps.of(len(requests)):
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """See the harness."""
        with _steps.of(len(requests)):
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """See the harness."""
        with _steps.of(len(requests)):
            return super().generate_until(requests, disable_tqdm=disable_tqdm)


class _Steps:
    """Progress through requests, which the harness shows by bars of its own."""

    def __init__(self) -> None:
        self.title = ""
        self.enabled = False
        self.advance: Callable[[int], None] = lambda _: None

    @contextmanager
    def of(self, total: int) -> Iterator[None]:
        """Show progress through so many requests."""
        with bar(total, self.title, "requests", enabled=self.enabled) as advance:
            self.advance = advance
            try:
                yield
            finally:
                self.advance = lambda _: None


_steps = _Steps()


class _NoBar:
    """In the place of the harness's bars: what has a total counts requests."""

    def __init__(self, iterable: Iterable[Any] | None = None, **_: Any) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterable or ())

    def update(self, steps: int = 1) -> None:
        _steps.advance(steps)

    def close(self) -> None:
        """Nothing is shown."""


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Put something else in the place of a module's member."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the harness and its libraries from printing; errors are still raised."""
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    bars = datasets.are_progress_bars_disabled()
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    modules = (lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for module in modules:
            stack.enter_context(_replaced(module, "tqdm", _NoBar))
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
            if not bars:
                datasets.enable_progress_bars()


@contextmanager
def offline() -> Iterator[None]:
    """Ask nothing of the Hub, whatever a library would like to know."""
    with ExitStack() as stack:
        for module in (huggingface_hub.constants, datasets.config):
            stack.enter_context(_replaced(module, "HF_HUB_OFFLINE", True))
        yield


@contextmanager
def templates_confined() -> Iterator[None]:
    """Lay templates of tasks out in a sandbox, without the harness's way to Python's objects."""
    known = lm_eval.utils.env
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        loader=known.loader, undefined=known.undefined, keep_trailing_newline=True
    )
    sandbox.filters.update(known.filters)
    with _replaced(lm_eval.utils, "env", sandbox):
        yield


@contextmanager
def programs_confined(*, allowed: bool) -> Iterator[None]:
    """Give tasks our ``code_eval`` when they ask for that metric, or an error.

    Args:
        allowed: Whether programs may be run.
    """
    # Only where it is needed, since it takes seconds to import.
    import evaluate

    real = evaluate.load

    def load(path: str, *arguments: Any, **options: Any) -> Any:
        if path != "code_eval":
            return real(path, *arguments, **options)
        if not allowed:
            raise InputError(
                "a task asks for the metric code_eval, which runs the programs that the model "
                "writes",
                option="run_code",
            )
        return CodeEval()

    # Modules of tasks that were imported earlier hold the metric that they got then.
    _forget()
    try:
        with _replaced(evaluate, "load", load):
            yield
    finally:
        _forget()


def _forget() -> None:
    """Forget modules of tasks that hold a metric which runs programs."""
    for name, module in list(sys.modules.items()):
        if hasattr(module, "__mtime__") and any(
            isinstance(each, CodeEval) or getattr(each, "name", None) == "code_eval"
            for each in vars(module).values()
        ):
            del sys.modules[name]


def evaluated(
    tasks: Any, runner: Runner, limit: int | None, title: str | None = None
) -> dict[str, Any]:
    """What the harness says of a model on tasks.

    Args:
        tasks: The tasks, as the harness's manager loads them.
        runner: The model.
        limit: Samples of each task; None for all.
        title: What is shown while they are run; None shows nothing.
    """
    state = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(RANDOM_SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    _steps.title, _steps.enabled = title or "", title is not None
    try:
        found: dict[str, Any] = lm_eval.evaluator.evaluate(
            lm=runner,
            task_dict=tasks,
            limit=limit,
            bootstrap_iters=_DRAWS,
            log_samples=False,
            confirm_run_unsafe_code=True,
        )
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.random.set_rng_state(state[2])
    return found
