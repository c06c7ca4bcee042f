"""The evaluate verb: refusals first, then model by model and task by task, each kept when done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge.errors import InputError
from sensmerge.evaluation import benchmarks
from sensmerge.evaluation.kinds import is_recipe
from sensmerge.evaluation.record import Conditions, Evaluated, Evaluation
from sensmerge.reading import mode_of
from sensmerge.recipe import Recipe, StagedRecipe, load
from sensmerge.scaling.matching import needs_calibration

try:
    import lm_eval
    import torch
    import transformers
except ImportError as error:
    raise InputError(
        f"evaluation needs lm-evaluation-harness, torch and transformers ({error}); "
        "pip install 'sensmerge[eval]'"
    ) from None

from sensmerge.calibration.runner import device_of
from sensmerge.calibration.surroundings import quiet_transformers, torch_threads
from sensmerge.evaluation.harness import Runner
from sensmerge.evaluation.subjects import Folder, Given, Manner, Merged, Subject, digest_of
from sensmerge.evaluation.suite import Suite

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration

DTYPES = ("stored", "float32")


@dataclass(frozen=True)
class Options:
    """The arguments of :func:`sensmerge.evaluate` beside the models."""

    tasks: str | Sequence[str]
    results: Path | None
    tasks_dir: Path | None
    limit: int | None
    batch_size: int
    dtype: str
    run_code: bool
    trust_tasks: bool
    calibration: Calibration | str | Path | None
    device: str
    threads: int | None
    progress: bool

    def check(self) -> None:
        """Refuse options out of range.

        Raises:
            InputError: The message names the option.
        """
        if self.dtype not in DTYPES:
            raise InputError(f"dtype: '{self.dtype}' is none of {', '.join(DTYPES)}")
        for name in ("limit", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: {value} is too small; give 1 or more")


def run(models: Mapping[str, Any], options: Options) -> Evaluation:
    """Evaluate models; see :func:`sensmerge.evaluate`."""
    options.check()
    names = benchmarks.named(options.tasks)
    if not names:
        raise InputError(f"tasks: none is named; name some, or '{benchmarks.PRESET}'")
    if not models:
        raise InputError("models: none is named")
    kept = Evaluation([], {})
    if options.results is not None and mode_of(options.results) is not None:
        kept = Evaluation.load(options.results)
    found = replace(kept, tasks=[*kept.tasks, *(name for name in names if name not in kept.tasks)])
    device = device_of(options.device)
    how = Manner(device, options.dtype, options.threads, options.progress)
    with quiet_transformers(), torch_threads(options.threads):
        # What is bound to fail is refused before anything that takes long.
        suite = Suite(names, options.tasks_dir, options.limit, trusted=options.trust_tasks)
        suite.check(run_code=options.run_code)
        subjects = [_subject(name, model, options) for name, model in models.items()]
        for subject in subjects:
            subject.check(how)
        with suite.ready():
            for subject in subjects:
                found = _evaluated(subject, suite, found, how, options)
    said = [note for subject in subjects for note in subject.notes]
    return replace(found, notes=list(dict.fromkeys([*suite.notes, *said])))


def _evaluated(
    subject: Subject, suite: Suite, found: Evaluation, how: Manner, options: Options
) -> Evaluation:
    """The results with the scores of one more model."""
    conditions = _conditions(how, options)
    identity = subject.identity()
    if identity is not None:
        ours = found.find(*identity) or Evaluated(fingerprint=identity[0], tokenizer=identity[1])
        if not _missing(suite, ours, conditions):
            return _kept(found.with_model(subject.name, ours), options)
    with subject.opened(how) as running:
        digest = digest_of(running.tokenizer)
        ours = found.find(running.fingerprint, digest) or Evaluated(
            fingerprint=running.fingerprint, tokenizer=digest
        )
        found = found.with_model(subject.name, ours)
        missing = _missing(suite, ours, conditions)
        runner = Runner(running.model, running.tokenizer, options.batch_size) if missing else None
        for task in missing:
            assert runner is not None
            title = f"evaluating {subject.name} on {task}"
            score = suite.score(task, runner, conditions, title if options.progress else None)
            ours = ours.with_score(task, score)
            found = _kept(found.with_model(subject.name, ours), options)
    return _kept(found, options)


def _missing(suite: Suite, ours: Evaluated, conditions: Conditions) -> list[str]:
    """The tasks of which a model has no score yet.

    Raises:
        InputError: It has one of other samples or in another dtype, which would be lost.
    """
    missing = [
        task for task in suite.names if ours.known(task, suite.digests[task], conditions) is None
    ]
    for task in missing:
        kept = ours.scores.get(task)
        if kept is not None and not kept.conditions.comparable(conditions):
            limit = "all samples" if kept.conditions.limit is None else f"{kept.samples} samples"
            raise InputError(
                f"task '{task}': the file of results has this model's score on {limit}, dtype "
                f"{kept.conditions.dtype}; keep scores of other samples or in another dtype in "
                "another file"
            )
    return missing


def _kept(found: Evaluation, options: Options) -> Evaluation:
    if options.results is not None:
        found.save(options.results)
    return found


def _conditions(how: Manner, options: Options) -> Conditions:
    from sensmerge import __version__

    return Conditions(
        limit=options.limit,
        dtype=options.dtype,
        device=how.device.type,
        batch_size=options.batch_size,
        versions={
            "sensmerge": __version__,
            "lm_eval": lm_eval.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )


def _subject(name: str, model: Any, options: Options) -> Subject:
    if isinstance(model, tuple):
        return Given(name, model=model[0], tokenizer=model[1])
    if isinstance(model, str | Path) and is_recipe(model):
        model = load(model)
    if isinstance(model, StagedRecipe):
        raise InputError(
            f"{name}: is a recipe of several stages, of which only the last could be merged in "
            "memory; merge it, and evaluate the folder"
        )
    if isinstance(model, Recipe):
        # One calibration may be for some of the recipes.
        calibration = options.calibration if needs_calibration(model) else None
        return Merged(name, recipe=model, calibration=calibration)
    return Folder(name, source=str(model))
