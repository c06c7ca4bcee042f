"""Experts: LoRA adapters, trained by PEFT on one task each."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch

from base_model import digest, in_bfloat16
from sensmerge.calibration.samples import Sample
from sensmerge.demo.evaluate import load, padded
from sensmerge.demo.family import Say, scored_logits


@dataclass(frozen=True)
class Training:
    """How an expert is trained.

    Attributes:
        rank: Of the adapter.
        alpha: Its α; the product of its matrices is multiplied by α / rank.
        steps: Steps of AdamW.
        rows: Samples a step.
        learning_rate: The largest, after a short warm-up; it falls to 0.
    """

    rank: int
    alpha: int
    steps: int
    rows: int
    learning_rate: float


def train(
    base: Path, samples: list[Sample], folder: Path, how: Training, seed: int, say: Say
) -> dict[str, Any]:
    """Train an adapter for all linear layers, kept in float32, and save it as PEFT does.

    Args:
        base: The model.
        samples: What to learn; scored tokens count.
        folder: Where to save; replaced if it is there.
        how: Rank, steps and the like.
        seed: Of the adapter's first values and of the order of the samples.
        say: Told how it goes.

    Returns:
        ``sha256`` of the adapter and the mean training ``losses`` of its first and last ten steps.
    """
    config = peft.LoraConfig(
        r=how.rank,
        lora_alpha=how.alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped: Any = peft.get_peft_model(load(base), config)
    model = wrapped.get_base_model()
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=how.learning_rate, weight_decay=0.0)
    warm = max(1, how.steps // 10)
    order, drawn = random.Random(seed), list[Sample]()
    losses = []
    for step in range(how.steps):
        factor = min((step + 1) / warm, (how.steps - step) / (how.steps - warm + 1))
        for group in optimizer.param_groups:
            group["lr"] = how.learning_rate * factor
        while len(drawn) < how.rows:
            drawn += order.sample(samples, len(samples))
        batch, drawn = drawn[: how.rows], drawn[how.rows :]
        with in_bfloat16():
            logits, wanted = scored_logits(model, *padded(batch))
        loss = torch.nn.functional.cross_entropy(logits.float(), wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 10 == 0:
            say(f"  step {step + 1} of {how.steps}: training loss {sum(losses[-10:]) / 10:.3f}")
    if folder.exists():
        shutil.rmtree(folder)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    few = min(10, how.steps)
    return {
        "sha256": digest(folder / "adapter_model.safetensors"),
        "losses": [sum(losses[:few]) / few, sum(losses[-few:]) / few],
    }
