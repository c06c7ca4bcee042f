"""How well a model does on held-back samples: token loss, and problems solved exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from sensmerge.calibration.samples import Sample as Tokenised
from sensmerge.calibration.surroundings import quiet_transformers
from sensmerge.demo.family import IGNORED, scored_logits
from sensmerge.demo.text import Sample

MAX_LENGTH = 256
_ROWS = 20


@dataclass(frozen=True)
class TaskScore:
    """A model's score on one task's samples.

    Attributes:
        losses: Sum of the loss over each sample's completion, in nats.
        tokens: Scored tokens of each sample.
        exact: Whether greedy decoding gives each completion, token by token.
    """

    losses: NDArray[np.float64]
    tokens: NDArray[np.float64]
    exact: NDArray[np.bool_]

    @property
    def loss(self) -> float:
        """Mean loss a token."""
        return float(self.losses.sum() / self.tokens.sum())


@dataclass(frozen=True)
class Score:
    """A model's scores on all tasks."""

    tasks: dict[str, TaskScore]

    @property
    def mean(self) -> float:
        """Mean over the tasks of the mean token loss."""
        return sum(task.loss for task in self.tasks.values()) / len(self.tasks)

    def minus(self, other: Score) -> tuple[float, float]:
        """The difference of two means, and its standard error over the samples.

        Both models saw the same samples, so the error is that of paired differences: for the ratio
        Σd/Σn of a task it is √Σ(d − n·ratio)² / Σn.
        """
        variance = 0.0
        for name, task in self.tasks.items():
            gaps = task.losses - other.tasks[name].losses
            ratio = gaps.sum() / task.tokens.sum()
            spread = gaps - ratio * task.tokens
            variance += float((spread**2).sum()) / float(task.tokens.sum()) ** 2
        return self.mean - other.mean, math.sqrt(variance) / len(self.tasks)


def evaluate(folder: Path, samples: dict[str, list[Sample]], *, longest: int = MAX_LENGTH) -> Score:
    """Load a model as any user would and score it in float32.

    Args:
        folder: A model's folder.
        samples: Each task's samples, of which completions are scored.
        longest: Tokens to which samples are cut.
    """
    with quiet_transformers():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = load(folder)
    return Score(
        {
            task: score(model, [_encode(tokenizer, sample, longest) for sample in chosen])
            for task, chosen in samples.items()
        }
    )


def load(folder: Path) -> transformers.PreTrainedModel:
    """A model from its folder, in float32."""
    with quiet_transformers():
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )


def padded(samples: Sequence[Tokenised]) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples side by side, [samples, longest]: token ids, and the scored ones as targets.

    Padding stands behind a sample, unseen by a causal model, and is not scored.
    """
    longest = max(len(sample.ids) for sample in samples)
    inputs = torch.zeros(len(samples), longest, dtype=torch.long)
    targets = torch.full((len(samples), longest), IGNORED)
    for row, sample in enumerate(samples):
        inputs[row, : len(sample.ids)] = torch.tensor(sample.ids)
        targets[row, sample.scored] = inputs[row, sample.scored]
    return inputs, targets


@torch.inference_mode()
def score(model: transformers.PreTrainedModel, samples: Sequence[Tokenised]) -> TaskScore:
    """Score a model on one task's samples."""
    losses, tokens = np.zeros(len(samples)), np.zeros(len(samples))
    exact = np.zeros(len(samples), dtype=np.bool_)
    # Samples of like length together: less padding.
    order = sorted(range(len(samples)), key=lambda place: len(samples[place].ids))
    for first in range(0, len(order), _ROWS):
        places = order[first : first + _ROWS]
        inputs, targets = padded([samples[place] for place in places])
        logits, wanted = scored_logits(model, inputs, targets)
        loss = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none")
        counts = (targets[:, 1:] != IGNORED).sum(dim=1)
        losses[places] = [each.double().sum().item() for each in loss.split(counts.tolist())]
        tokens[places] = counts.numpy()
        # Every token the likeliest after the right ones before it: what greedy decoding writes.
        right = (logits.argmax(dim=1) == wanted).split(counts.tolist())
        exact[places] = [each.all().item() for each in right]
    return TaskScore(losses, tokens, exact)


def _encode(
    tokenizer: transformers.PreTrainedTokenizerBase, sample: Sample, longest: int
) -> Tokenised:
    """Token ids as calibration lays them out; the completion's are scored."""
    prompt = tokenizer(sample.prompt)["input_ids"]
    completion = tokenizer(sample.completion, add_special_tokens=False)["input_ids"]
    ids = [*prompt, *completion, tokenizer.eos_token_id][:longest]
    return Tokenised(ids, list(range(len(prompt), len(ids))), place="")
