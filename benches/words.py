"""A tokenizer of made-up words, and texts of them, to run models of random weights."""

from __future__ import annotations

import json
import random
from pathlib import Path


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A tokenizer of ``w0``, ``w1`` and so on, one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = _names(vocabulary)
    tokens = {name: place for place, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token=names[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def write_samples(path: Path, vocabulary: int, count: int, length: int) -> None:
    """Texts of ``length`` tokens each, of which every one but the first is scored."""
    draw, names = random.Random(path.name), _names(vocabulary)
    with path.open("w") as file:
        for _ in range(count):
            text = " ".join(draw.choices(names, k=length))
            file.write(json.dumps({"text": text}) + "\n")


def _names(vocabulary: int) -> list[str]:
    return [f"w{place}" for place in range(vocabulary)]
