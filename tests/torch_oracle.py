"""The measurements of a calibration in torch alone: all gradients at once, sums in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

import sensmerge
from families import Family, word_tokenizer
from sensmerge import Calibration, Recipe
from sensmerge.calibration import samples
from sensmerge.models.layers import layer_of

SAMPLES = 4


def recipe_of(family: Family, **sensitivity: Any) -> Recipe:
    options = {"dtype": "float32", "samples": SAMPLES} | sensitivity
    return Recipe.from_dict(family.recipe(sensitivity=options), folder=family.folder)


def calibrated(family: Family, **sensitivity: Any) -> Calibration:
    return sensmerge.calibrate(recipe_of(family, **sensitivity), progress=False)


def samples_of(
    family: Family, place: int, positions: str = "completion", tokenizer: Any = None
) -> list[samples.Sample]:
    """The samples that :func:`calibrated` takes for an expert."""
    return samples.load(
        family.folder / f"t{place}.jsonl",
        "",
        tokenizer or word_tokenizer(),
        count=SAMPLES,
        seed=0,
        max_length=512,
        positions=positions,
    ).samples


def load(family: Family, place: int, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(family.folder / f"e{place}", dtype=dtype).eval()


def loss(model: Any, sample: samples.Sample) -> torch.Tensor:
    """transformers' own loss over the scored tokens."""
    labels = torch.tensor([[-100] * len(sample.ids)])
    for where in sample.scored:
        labels[0, where] = sample.ids[where]
    found: torch.Tensor = model(input_ids=torch.tensor([sample.ids]), labels=labels).loss
    return found


def sensitivity(
    family: Family,
    place: int,
    positions: str = "completion",
    tokenizer: Any = None,
    measure: str = "taylor",
) -> dict[str, float]:
    """s of every layer, by full gradients; products and sums in float64."""
    model = load(family, place)
    sums: dict[str, float] = {}
    for sample in samples_of(family, place, positions, tokenizer):
        model.zero_grad()
        loss(model, sample).backward()
        for name, parameter in model.named_parameters():
            other = parameter.detach() if measure == "taylor" else parameter.grad
            product = other.double() * parameter.grad.double()
            layer = layer_of(name)
            sums[layer] = sums.get(layer, 0.0) + float(product.abs().sum())
    return sums


def distance(
    family: Family, i: int, j: int, *, form: str = "token", positions: str = "completion"
) -> float:
    """g_ij: model i against expert j on the samples of task j."""
    one, other = load(family, i), load(family, j)
    found = []
    for sample in samples_of(family, j, positions):
        ids = torch.tensor([sample.ids])
        with torch.no_grad():
            a, b = one(ids).logits[0].double(), other(ids).logits[0].double()
        common = min(a.shape[1], b.shape[1])
        gap = a[:, :common] - b[:, :common]
        if positions == "completion":
            gap = gap[[where - 1 for where in sample.scored]]
        found.append(float(gap.norm(dim=1).mean() if form == "token" else gap.norm()))
    return float(np.mean(found))


def alignment(family: Family, **options: str) -> NDArray[np.float64]:
    """g, [K, K]."""
    count = range(family.experts)
    return np.array(
        [[distance(family, i, j, **options) if i != j else 0.0 for j in count] for i in count]
    )
