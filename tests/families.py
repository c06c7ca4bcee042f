"""Small families of models in the Hugging Face layout: a base and experts tuned from it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
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

    def copy(self, folder: Path) -> Family:
        """The same files in another folder, to be changed by a test."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Family(folder, self.experts)

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
    tokenizer: Any = None,
    architecture: str = "Llama",
    **config: Any,
) -> Family:
    """Random Llama models that differ a little, with a tokenizer and samples for each.

    Args:
        folder: Where the models' folders and sample files are written.
        experts: How many experts.
        dtype: What the weights are stored in.
        tied: Whether the head is the embedding.
        max_shard_size: Size of a weight file, such as ``20KB``.
        layers: How many decoder blocks.
        eos: Whether the tokenizer has an end of sequence.
        tokenizer: Another tokenizer than that of words.
        architecture: Another architecture than Llama whose config has the same keys.
        config: Other keys of the models' config.
    """
    import torch
    import transformers

    tokenizer = tokenizer or word_tokenizer(eos=eos)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    known = getattr(transformers, f"{architecture}Config")(**shape | config)
    causal = getattr(transformers, f"{architecture}ForCausalLM")
    torch.manual_seed(0)
    base = causal(known).to(getattr(torch, dtype))
    for name in ["base", *(f"e{place}" for place in range(experts))]:
        model = causal(known).to(getattr(torch, dtype))
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


def word_tokenizer(*, bos: bool = True, eos: bool = True) -> Any:
    """A tokenizer that knows the words w0 to w96 and, with ``bos``, starts every text with <s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*SPECIAL, *(f"w{place}" for place in range(WORDS))]
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _finished(tokenizer, bos=bos, eos=eos)


def byte_tokenizer(*, bos: bool = True, eos: bool = True) -> Any:
    """A byte-level BPE tokenizer, trained on words: spaces belong to the word behind them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = " ".join(f"w{place}" for place in range(WORDS))
    tokenizer.train_from_iterator([words, "user assistant system hello world"] * 3, trainer)
    return _finished(tokenizer, bos=bos, eos=eos)


def _finished(tokenizer: Any, *, bos: bool, eos: bool) -> Any:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


def add_tokens(model: Path, *tokens: str) -> None:
    """Give one model of a family more tokens, with embeddings and logits of their own."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(model)
    grown = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    torch.manual_seed(0)
    grown.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    grown.save_pretrained(model)


def remove_tokenizer(model: Path) -> None:
    """Leave one model of a family without tokenizer files."""
    for file in [*model.glob("tokenizer*"), *model.glob("chat_template*")]:
        file.unlink()


def edit_weights(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of a model in one file, names to tensors, in place."""
    from safetensors.torch import load_file, save_file

    path = model / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


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
