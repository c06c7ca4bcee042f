"""The family: the demo's text and training, larger models, and samples of two kinds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sensmerge.demo.family import Say, Size, build
from sensmerge.demo.text import Amounts, Corpus, Sample, corpora

# Samples that no expert was trained on, and samples from the experts' own training data.
KINDS = ("fresh", "training")

FULL = Size(
    amounts=Amounts(training=1_200_000, calibration=60, development=40, held_back=60),
    vocabulary=4096,
    hidden=192,
    blocks=10,
    base_steps=300,
    expert_steps=130,
    rows=12,
    length=128,
)
QUICK = Size(
    amounts=Amounts(training=40_000, calibration=12, development=3, held_back=4),
    vocabulary=400,
    hidden=64,
    blocks=2,
    base_steps=8,
    expert_steps=4,
    rows=3,
    length=32,
)


@dataclass(frozen=True)
class Family:
    """A base and three experts on disk, with their samples.

    Attributes:
        folder: Holds ``base/``, a folder an expert, and ``samples/fresh`` and ``samples/training``.
        texts: Each task's text.
        parameters: Of one model.
    """

    folder: Path
    texts: dict[str, Corpus]
    parameters: int

    @property
    def development(self) -> dict[str, list[Sample]]:
        """What baselines choose their λ on."""
        return {task: corpus.development for task, corpus in self.texts.items()}

    @property
    def held_back(self) -> dict[str, list[Sample]]:
        """What every table is computed on."""
        return {task: corpus.held_back for task, corpus in self.texts.items()}


def make(folder: Path, size: Size, seed: int, say: Say) -> Family:
    """Train the family and write its samples."""
    texts = corpora(size.amounts, seed)
    build(folder, texts, size, seed, say)
    for task, corpus in texts.items():
        training = corpus.training[: size.amounts.calibration]
        for kind, samples in zip(KINDS, (corpus.calibration, training), strict=True):
            _write(folder / "samples" / kind / f"{task}.jsonl", samples)
    stored = json.loads(next((folder / "code").glob("*.index.json")).read_text(encoding="utf-8"))
    return Family(folder, texts, stored["metadata"]["total_size"] // 2)


def _write(path: Path, samples: list[Sample]) -> None:
    rows = [json.dumps({"prompt": one.prompt, "completion": one.completion}) for one in samples]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
