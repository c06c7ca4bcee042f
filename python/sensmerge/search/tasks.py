"""The samples on which candidates are evaluated: those of every expert's task, in two parts.

Searches use the *search* samples. The *validation* samples, which searches do not use, show whether
a gain holds on other samples.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sensmerge.calibration import loading
from sensmerge.calibration import samples as calibration_samples
from sensmerge.calibration.run import readings
from sensmerge.calibration.sensitivity import loss
from sensmerge.calibration.sources import open_sources
from sensmerge.calibration.vocabularies import Vocabulary, translated
from sensmerge.errors import InputError
from sensmerge.models.vocabulary.output import output_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sensmerge.calibration.loading import Source
    from sensmerge.calibration.samples import Sample
    from sensmerge.models import Models
    from sensmerge.recipe import Recipe, Sensitivity


@dataclass(frozen=True)
class Task:
    """One expert's task.

    Attributes:
        name: The expert's name in the recipe.
        source: The expert's files and tokenizer.
        search: Samples for the search.
        validation: Samples for validation; empty if their share is 0.
        digest: A digest of the token ids of all samples.
    """

    name: str
    source: Source
    search: list[Sample]
    validation: list[Sample]
    digest: str


def load(recipe: Recipe, options: Sensitivity, models: Models, share: float) -> list[Task]:
    """The samples of every expert's task.

    Args:
        recipe: The recipe; its experts name their samples.
        options: The number of samples to draw, and the tokens that are scored.
        models: The recipe's models.
        share: The fraction of each task's samples that is kept for validation, in [0, 1). Their
            number is rounded up.

    Raises:
        InputError: Samples are missing or malformed, the fraction leaves none to search with, or a
            sample has a token that the merged model does not have.
    """
    if not 0 <= share < 1:
        raise InputError(f"validation: {share:g} is not a share of the samples, in [0, 1)")
    sources = open_sources(recipe, recipe.experts)
    # A base that is measured like an expert comes before them.
    first = len(recipe.measured) - len(sources)
    drawn = [
        calibration_samples.task(recipe, place, source.tokenizer, options)
        for place, source in enumerate(sources, first)
    ]
    known = [loading.known(source) for source in sources]
    readings(drawn, known, known)
    _check_ids(drawn, known, _merged(recipe, models, known))
    found = []
    for source, task in zip(sources, drawn, strict=True):
        search, validation = part(task.samples, share, options.seed, source.name)
        found.append(Task(source.name, source, search, validation, task.record.token_ids))
    return found


def _merged(recipe: Recipe, models: Models, known: list[Vocabulary]) -> Vocabulary:
    """The vocabulary of the merged model; an expert's ids where no file tells its tokens."""
    output = output_vocabulary(recipe, models)
    ids = known[0].ids if output.ids is None else output.ids
    return Vocabulary("the merged model", ids, output.rows or max(each.size for each in known))


def _check_ids(
    tasks: list[calibration_samples.Task], known: list[Vocabulary], merged: Vocabulary
) -> None:
    """Refuse samples whose tokens have other ids in the merged model, or none."""
    for task, owner in zip(tasks, known, strict=True):
        for sample in task.samples:
            if translated(sample, owner, merged).ids != sample.ids:
                raise InputError(
                    f"{sample.place}: its tokens have other ids in the merged model than for "
                    f"'{owner.name}', and a search runs both on the same ids; give the experts one "
                    "vocabulary, or tokenizer_source the one that they share"
                )


def part(
    samples: list[Sample], share: float, seed: int, name: str
) -> tuple[list[Sample], list[Sample]]:
    """Divide an expert's samples at random into search and validation samples.

    Args:
        samples: The samples.
        share: The fraction to validate with, in [0, 1); their number is rounded up.
        seed: Seed of the division.
        name: The expert's name, for the message.

    Raises:
        InputError: No sample would be left to search with.
    """
    if share == 0:
        return list(samples), []
    count = math.ceil(share * len(samples))
    if count >= len(samples):
        raise InputError(
            f"expert '{name}': {len(samples)} samples are too few to keep {share:g} of them for "
            "validation; give more, or set the share to 0"
        )
    chosen = set(random.Random(seed).sample(range(len(samples)), count))
    kept = [sample for place, sample in enumerate(samples) if place not in chosen]
    return kept, [samples[place] for place in sorted(chosen)]


@torch.inference_mode()
def sample_losses(
    model: PreTrainedModel,
    samples: list[list[Sample]],
    advance: Callable[[int], None] = lambda _: None,
) -> list[list[float]]:
    """The loss on every sample, as a mean over its scored tokens, in nats.

    Args:
        model: The model.
        samples: Samples in lists; the result has the same lists.
        advance: Called with the number of samples done.

    Raises:
        InputError: A loss is not finite.
    """
    found = []
    for ours in samples:
        losses = []
        for sample in ours:
            losses.append(loss(model, sample).item())
            if not math.isfinite(losses[-1]):
                raise InputError(f"a model's loss on {sample.place} is {losses[-1]}")
            advance(1)
        found.append(losses)
    return found


def mean(losses: list[float]) -> float:
    """The mean of losses."""
    return math.fsum(losses) / len(losses)


def means(losses: list[list[float]]) -> list[float]:
    """The mean of every list."""
    return [mean(ours) for ours in losses]
