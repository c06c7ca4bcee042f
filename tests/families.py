"""Small families of models in the Hugging Face layout: a base and experts tuned from it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORDS = 97
SPECIAL = ["<unk>", "<s>", "</s>"]

CHAT_TEMPLATE = (
    "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)


@dataclass(frozen=True)
class Family:
    """Folders ``base``, ``e0``, ``e1``, ... and sample files ``t0.jsonl``, ... in one folder."""

    folder: Path
    experts: int

    def recipe(self, method: str = "task_arithmetic", **keys: Any) -> dict[str, Any]:
        """A recipe over all experts, with their samples; ``keys`` are added to it."""
        models = [
            {"model": f"e{place}", "calibration": f"t{place}.jsonl"}
            for place in range(self.experts)
        ]
        return {"merge_method": method, "base_model": "base", "models": models} | keys

    def write_recipe(self, recipe: Mapping[str, Any], name: str = "recipe.yaml") -> Path:
        """Write a recipe; JSON is YAML."""
        path = self.folder / name
        path.write_text(json.dumps(recipe))
        return path


def llama_family(
    folder: Path,
    *,
    experts: int = 3,
    dtype: str = "float32",
    tied: bool = False,
    max_shard_size: str = "5GB",
    layers: int = 3,
    eos: bool = True,
) -> Family:
    """Random Llama models that differ a little, with a tokenizer and samples for each."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(SPECIAL) + WORDS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    tokenizer = word_tokenizer(eos=eos)
    torch.manual_seed(0)
    base = LlamaForCausalLM(config).to(getattr(torch, dtype))
    for name in ["base", *(f"e{place}" for place in range(experts))]:
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
        model.load_state_dict(base.state_dict())
        if name != "base":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(folder / name, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(folder / name)
    for place in range(experts):
        write_samples(folder / f"t{place}.jsonl", seed=place)
    return Family(folder, experts)


def word_tokenizer(*, eos: bool = True) -> Any:
    """A tokenizer that knows the words w0 to w96 and starts every text with <s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{place}" for place in range(WORDS))]
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>" if eos else None,
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


def write_samples(path: Path, *, seed: int, rows: int = 12) -> None:
    """Prompts of three to nine words with completions of two to eight."""
    draw = random.Random(seed)

    def words(least: int, most: int) -> str:
        return " ".join(f"w{draw.randrange(WORDS)}" for _ in range(draw.randint(least, most)))

    lines = [{"prompt": words(3, 9), "completion": words(2, 8)} for _ in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


# Tensors around every edge: chunks, blocks, vector widths, one entry, none.
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (97, 32),
    "model.layers.0.mlp.up_proj.weight": (300, 501),
    "model.layers.0.norm.weight": (33,),
    "model.layers.1.mlp.up_proj.weight": (64, 65),
    "model.layers.1.scale": (1,),
    "model.layers.1.empty": (0, 4),
    "model.layers.10.mlp.up_proj.weight": (7, 11, 3),
    "model.norm.weight": (4097,),
    "lm_head.weight": (97, 32),
}

Arrays = dict[str, NDArray[np.float64]]


def tensor_family(
    folder: Path, *, experts: int, dtype: str, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> tuple[Arrays, list[Arrays]]:
    """Checkpoints without a model around them: weights that look like real ones.

    Returns:
        The base's and the experts' stored values, as float64.
    """
    import torch
    from safetensors.torch import save_file

    draw = np.random.default_rng(experts)

    def write(name: str, values: Arrays) -> Arrays:
        stored = {
            key: torch.tensor(value).to(getattr(torch, dtype)) for key, value in values.items()
        }
        (folder / name).mkdir(parents=True)
        save_file(stored, folder / name / "model.safetensors", metadata={"format": "pt"})
        return {key: value.double().numpy() for key, value in stored.items()}

    base = write("base", {key: 0.02 * draw.standard_normal(size) for key, size in shapes.items()})
    tuned = []
    for place in range(experts):
        # Heavy tails, and some entries that training left alone.
        delta = {
            key: 0.002 * draw.standard_t(3, size) * (draw.random(size) < 0.9)
            for key, size in shapes.items()
        }
        tuned.append(write(f"e{place}", {key: base[key] + delta[key] for key in shapes}))
    return base, tuned
