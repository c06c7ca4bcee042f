"""The paper's experts as they are published, in small.

Makes a base in float32 with 32,000 tokens, a chat expert in bfloat16, a math expert with a token
more (MAmmoTH adds a padding token, 32,001), and a code expert that is a LoRA adapter; then
calibrates and merges them by the recipe beside this file.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sensmerge

HERE = Path(__file__).parent
TOKENS = 32_000
HIDDEN = 32
RANK = 8
PAD = "[PAD]"


def run(folder: Path) -> None:
    """Make the models in a folder, merge them, and say what came of it."""
    make(folder)
    result = sensmerge.merge(folder / "recipe.yaml", folder / "merged", overwrite=True)
    print(result.describe())
    for note in result.notes:
        print(f"note: {note}")


def make(folder: Path) -> None:
    """Write models, samples and recipe into a folder."""
    torch.manual_seed(0)
    words = tokenizer()
    base = LlamaForCausalLM(config(TOKENS))
    base.save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")

    chat = tuned(base, TOKENS).bfloat16()
    chat.save_pretrained(folder / "chat")
    words.save_pretrained(folder / "chat")

    padded = tokenizer()
    padded.add_special_tokens({"pad_token": PAD})
    math = tuned(base, TOKENS + 1).bfloat16()
    math.save_pretrained(folder / "math")
    padded.save_pretrained(folder / "math")

    adapter(base, folder / "code-lora")
    for seed, task in enumerate(("chat", "math", "code")):
        samples(folder / f"{task}.jsonl", seed)
    shutil.copy(HERE / "recipe.yaml", folder / "recipe.yaml")


def config(tokens: int) -> LlamaConfig:
    """A Llama of two layers."""
    return LlamaConfig(
        vocab_size=tokens,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
    )


def tokenizer() -> Any:
    """A tokenizer of exactly 32,000 words."""
    known = ["<unk>", "<s>", "</s>", *(f"w{place}" for place in range(TOKENS - 3))]
    vocabulary = {word: place for place, word in enumerate(known)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def tuned(base: LlamaForCausalLM, tokens: int) -> LlamaForCausalLM:
    """An expert that differs a little from the base, with rows of its own for more tokens."""
    expert = LlamaForCausalLM(config(tokens))
    own = base.state_dict()
    with torch.no_grad():
        for name, parameter in expert.named_parameters():
            rows = own[name].shape[0]
            parameter[:rows] = own[name] + 0.01 * torch.randn_like(own[name])
    return expert


def adapter(base: LlamaForCausalLM, folder: Path) -> None:
    """A LoRA adapter of the attention, as PEFT writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, module in base.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            rows, columns = module.weight.shape
            prefix = f"base_model.model.{name}"
            tensors[f"{prefix}.lora_A.weight"] = 0.05 * torch.randn(RANK, columns)
            tensors[f"{prefix}.lora_B.weight"] = 0.05 * torch.randn(rows, RANK)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    said = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": RANK,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(said, indent=2) + "\n")


def samples(path: Path, seed: int) -> None:
    """Prompts and completions of some words."""
    draw = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(f"w{draw.randrange(TOKENS - 3)}" for _ in range(count))

    rows = [{"prompt": words(8), "completion": words(6)} for _ in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
