"""``learn``: gradient descent on the weights of a merge.

For a merge ``θ = θ₀ + λ Σ w_i δ̂_i`` the derivative of the loss by a weight is ``λ ⟨∂L/∂θ, δ̂_i⟩``.

::

    until the steps are done or the validation loss has stopped falling:
        merge in memory with the current weights
        run all samples forward and backward; as the gradient of each parameter arrives, compute its
            scalar products with all task vectors in one pass, and free it
        compute the validation loss
        take a step of Adam on λ times the weights, and write it to the history
    take the step with the lowest validation loss, if it is lower than the start's by more than its
        standard error

Task vectors stay in the mapped files. The kept entries of task vectors are decided once; signs are
elected again in every step. (AdaMerging, Yang et al. 2024, learns such weights by the entropy of
predictions, from samples without labels.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sensmerge import __version__
from sensmerge.calibration import loading
from sensmerge.calibration.blocks import run
from sensmerge.calibration.runner import KEPT_SHARE, device_of, free_memory
from sensmerge.calibration.sensitivity import cross_entropy
from sensmerge.calibration.stream import Stream
from sensmerge.calibration.surroundings import quiet_transformers, torch_threads
from sensmerge.document import Documented
from sensmerge.errors import InputError
from sensmerge.files import write_atomically
from sensmerge.merging.manifest import request
from sensmerge.models import open_models
from sensmerge.progress import bar
from sensmerge.recipe import Recipe, Sensitivity, to_yaml
from sensmerge.recipe.parameters import SCALE
from sensmerge.scaling.matching import needs_calibration
from sensmerge.scaling.required import with_measurements
from sensmerge.search import distill, memorised, tasks
from sensmerge.search.candidates import Candidate
from sensmerge.search.gradients import differentiate
from sensmerge.search.groups import GROUPS, Matrix, Weights, with_weights
from sensmerge.search.history import History, Step
from sensmerge.terminal import plain

if TYPE_CHECKING:
    from sensmerge.calibration import Calibration
    from sensmerge.calibration.samples import Sample
    from sensmerge.models import Models

LOSSES = ("nll", "distill")

STEPS = 30
LEARNING_RATE = 0.05
PULL = 0.05
VALIDATION = 0.3

# Learning ends after this many steps without a better validation loss (without validation samples,
# a better loss on the samples learned from).
PATIENCE = 6


@dataclass(frozen=True)
class Options:
    """Options of learning.

    Attributes:
        steps: Largest number of steps.
        groups: Tensors that share a weight: all (``global``), those of a layer (``block``), or none
            (``tensor``).
        loss: ``nll``, the mean loss of scored tokens in nats; or ``distill``, the divergence of the
            merged model's predictions from those of each expert on its own task.
        validation: Fraction of each task's samples that is kept for validation, in [0, 1).
        learning_rate: Learning rate of Adam, whose parameters are λ times the weights.
        pull: Factor of the penalty: the squared distance from the first weights (times λ), summed
            over experts and averaged over groups.
    """

    steps: int = STEPS
    groups: str = "block"
    loss: str = "nll"
    validation: float = VALIDATION
    learning_rate: float = LEARNING_RATE
    pull: float = PULL

    def check(self) -> None:
        """Refuse options that are out of range.

        Raises:
            InputError: It names the option.
        """
        if self.steps < 1:
            raise InputError(f"steps: {self.steps} is not a number of steps; give 1 or more")
        if self.groups not in GROUPS:
            raise InputError(f"groups: '{self.groups}' is none of {', '.join(GROUPS)}")
        if self.loss not in LOSSES:
            raise InputError(f"loss: '{self.loss}' is none of {', '.join(LOSSES)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"learning_rate: {self.learning_rate:g} is not above 0")
        if not (math.isfinite(self.pull) and self.pull >= 0):
            raise InputError(f"pull: {self.pull:g} is not 0 or more")


@dataclass(frozen=True)
class Learned(Documented):
    """The outcome of learning.

    Attributes:
        recipe: A plain recipe with the learned weights, as keys and values.
        history: All steps.
        notes: Notes for the user.
    """

    recipe: dict[str, Any]
    history: History
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The recipe, the weights that were taken and all steps' losses; see docs/json.md."""
        history = self.history
        return {
            "recipe": self.recipe,
            "tasks": history.tasks,
            "groups": history.groups,
            "weights": history.weights(history.taken).tolist(),
            "taken": history.steps.index(history.taken),
            "steps": [
                {
                    "losses": step.losses,
                    "loss": step.loss,
                    "validation": step.validation,
                    "validation_loss": step.validation_loss,
                }
                for step in history.steps
            ],
            "notes": self.notes,
        }

    def write(self, path: Path) -> list[Path]:
        """Write the recipe, and a picture beside it; the history was written step by step.

        Returns:
            The files.
        """
        from sensmerge.search.pictures import learned_png

        said = [
            f"# learned by sensmerge {__version__}",
            *(f"# {plain(note)}" for note in self.notes),
        ]
        text = "\n".join([*said, to_yaml(self.recipe)])
        picture = path.with_suffix(".png")
        write_atomically(path, text)
        write_atomically(picture, learned_png(self.history))
        return [path, picture]


class Problem:
    """A loss as a function of weight offsets, [K, groups].

    Attributes:
        weights: The weights and their groups.
        tasks: The experts' tasks, whose samples the loss is computed on.
        device: The torch device that models run on.
    """

    def __init__(
        self,
        recipe: Recipe,
        options: Options,
        *,
        calibration: Calibration | str | Path | None = None,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        """Open models and samples, and merge at offset 0.

        Raises:
            InputError: Recipe, calibration, models or samples cannot be used as they are.
        """
        sensitivity = recipe.sensitivity or Sensitivity()
        self.device = device_of(device)
        opened = open_models(recipe)
        self.models: Models
        self.models, found = with_measurements(recipe, calibration, opened)
        asked = request(recipe, found, self.models, threads=threads)
        self.weights = Weights(asked, options.groups)
        self.tasks = tasks.load(recipe, sensitivity, self.models, options.validation)
        self._candidate = Candidate(
            self.models, asked, dtype=sensitivity.dtype, device=self.device, threads=threads
        )
        model = self._candidate.model
        layers = loading.parameter_layers(model, self.models.template.path)
        try:
            self._stream: Stream | None = Stream(model, layers.of, device=self.device)
        except InputError:
            self._stream = None
        self._search = [sample for task in self.tasks for sample in task.search]
        self._loss_of = self._validated_by = self._nll
        if options.loss == "distill":
            teachers = distill.Teachers(self.tasks, sensitivity, device)
            self._loss_of = teachers.divergence
            # Whoever follows a poor teacher closely is no better for it: completions tell.
            if sensitivity.positions == "all":
                self._validated_by = teachers.divergence

    def differentiate(
        self, offsets: Matrix, advance: Callable[[int], None] = lambda _: None
    ) -> tuple[list[float], Matrix]:
        """Every task's loss on its search samples, and the gradient of their mean by the offsets.

        Args:
            offsets: [K, groups], added to the recipe's weights.
            advance: Called with the number of samples done.
        """
        self._candidate.merge(self.weights.asked(offsets))
        gradient = np.zeros_like(self.weights.start)

        def look(parameter: str, found: torch.Tensor) -> None:
            for tensor, derivatives in self._candidate.derivatives(parameter, found).items():
                self.weights.add(gradient, tensor, derivatives)

        losses = differentiate(
            self._candidate.model,
            self._stream,
            self._search,
            [1 / (len(self.tasks) * len(task.search)) for task in self.tasks for _ in task.search],
            lambda place, logits: self._loss_of(self._search[place], logits),
            look,
            most=KEPT_SHARE * free_memory(self.device),
        )
        advance(len(losses))
        return self._by_task(losses, [len(task.search) for task in self.tasks]), gradient

    @torch.no_grad()
    def validate(self) -> list[list[float]]:
        """The loss on every validation sample, by task, at the offsets last differentiated.

        That of the completions, or the divergence from the experts where all tokens count and
        samples may be prompts alone.
        """
        if not any(task.validation for task in self.tasks):
            return []
        return [
            [
                self._validated_by(sample, run(self._candidate.model, sample.ids).logits[0]).item()
                for sample in task.validation
            ]
            for task in self.tasks
        ]

    def _nll(self, sample: Sample, logits: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, sample)

    @staticmethod
    def _by_task(losses: list[float], counts: list[int]) -> list[float]:
        found, start = [], 0
        for count in counts:
            found.append(math.fsum(losses[start : start + count]) / count if count else math.nan)
            start += count
        return found


def learn(
    recipe: Recipe | str | Path,
    options: Options | None = None,
    *,
    calibration: Calibration | str | Path | None = None,
    history: Path | None = None,
    home: Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    progress: bool = True,
) -> Learned:
    """Learn the weights of a recipe from its experts' samples.

    The first weights are the recipe's own, times K·σ if it has a ``sensitivity`` section; if it
    gives neither weight nor λ, they are 1/K. The result is the step with the best validation loss
    if that is lower than the first's by more than its standard error; otherwise the first.

    Args:
        recipe: The recipe, or its path. Its experts name their samples.
        options: Options of learning.
        calibration: A calibration of the experts, or its path; if one is needed and not given, it
            is measured.
        history: The file to which every step is written, and from which learning continues after a
            stop; None writes nothing.
        home: The folder in which the learned recipe will be; the recipe's by default.
        device: The torch device that models run on, such as ``cuda``.
        threads: Threads to use; all cores by default.
        progress: Show a progress bar on a terminal and plain lines elsewhere.

    Raises:
        InputError: Recipe, calibration, models or samples cannot be used as they are.
        KeyboardInterrupt: Ctrl-C was pressed; finished steps are kept.
    """
    recipe, options = Recipe.of(recipe), options or Options()
    options.check()
    if not recipe.method.learnable:
        raise InputError(
            f"merge_method: the weights of {recipe.merge_method} cannot be learned; those of a "
            "method that sums task vectors can"
        )
    recipe, notes = started(recipe)
    if calibration is None and needs_calibration(recipe):
        from sensmerge.calibration import calibrate

        calibration = calibrate(recipe, progress=progress, threads=threads, device=device)
    with quiet_transformers(), torch_threads(threads):
        problem = Problem(recipe, options, calibration=calibration, device=device, threads=threads)
        found = _descend(problem, options, _key(recipe, problem, options), history, progress)
        notes += memorised.notes(problem.models, problem.tasks)
    offsets = np.array(found.taken.offsets)
    data = with_weights(recipe, problem.weights.by_tensor(offsets), home or recipe.folder)
    return Learned(data, found, [*notes, *found.sentences()])


def started(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe to start from: with weights of 1/K if it gives neither weight nor λ.

    Not where what is merged does not grow with the number of models.
    """
    scale = recipe.method.parameter(SCALE)
    said = [recipe.parameters.get(SCALE), recipe.parameters.get("weight")]
    said += [expert.parameters.get("weight") for expert in recipe.experts]
    grows = scale is not None and scale.search is not None and scale.search.low_is_shared
    if not grows or any(each is not None for each in said):
        return recipe, []
    share = 1 / len(recipe.experts)
    data = dict(recipe.source)
    data["parameters"] = (data.get("parameters") or {}) | {"weight": share}
    return recipe.replaced(data), [
        f"the recipe gives neither weight nor lambda: weights start at {share:.3g}"
    ]


def _descend(
    problem: Problem, options: Options, key: dict[str, Any], path: Path | None, progress: bool
) -> History:
    """Run Adam on λ times the weights, from the last step in the history's file."""
    weights = problem.weights
    history = History.resume(path, key, weights, [task.name for task in problem.tasks])
    parameter = torch.zeros(weights.start.shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=options.learning_rate)
    if history.steps:
        history.restore(parameter, optimizer)
    samples = sum(len(task.search) for task in problem.tasks)
    left = max(0, options.steps + 1 - len(history.steps))
    with bar(left * samples, "learning", "samples", enabled=progress) as advance:
        while len(history.steps) <= options.steps and not history.is_over(PATIENCE):
            offsets = parameter.detach().numpy() / weights.scale
            losses, gradient = problem.differentiate(offsets, advance)
            step = Step(offsets.tolist(), losses, problem.validate())
            pull = 2 * options.pull * parameter.detach() / weights.start.shape[1]
            parameter.grad = torch.from_numpy(gradient / weights.scale) + pull
            optimizer.step()
            history.add(step, parameter, optimizer)
    return history


def _key(recipe: Recipe, problem: Problem, options: Options) -> dict[str, Any]:
    """All that the numbers of a history depend on. Not the number of steps, which may grow."""
    said = {key: value for key, value in recipe.source.items() if key != "models"}
    key = {
        "sensmerge": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": problem.device.type,
        "options": asdict(replace(options, steps=0)),
        "validated_by": "completions",
        "recipe": said,
        "samples": [task.digest for task in problem.tasks],
        "models": [model.fingerprint() for model in problem.models.all],
        "start": problem.weights.start.tolist(),
    }
    # Through JSON, to be comparable with the key in a file.
    back: dict[str, Any] = json.loads(json.dumps(key))
    return back
