"""Models of different architectures, run whole and block by block, against torch alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from families import word_tokenizer
from sensmerge.calibration import alignment, blocks, loading
from sensmerge.calibration.runner import Opened, Runner
from sensmerge.calibration.samples import Sample
from sensmerge.models.layers import layer_of
from torch_devices import DEVICES

LAYERS = 3

_SHAPE: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

# Windows shorter than the samples, so that blocks of one model get different masks.
_WINDOW: dict[str, Any] = {"sliding_window": 4}

# Caps that these small models reach.
_CAPS: dict[str, Any] = {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}

_GEMMA: dict[str, Any] = {"head_dim": 8, "query_pre_attn_scalar": 8} | _WINDOW

CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "Llama": lambda: transformers.LlamaConfig(**_SHAPE, attention_bias=True, mlp_bias=True),
    "Mistral": lambda: transformers.MistralConfig(**_SHAPE, **_WINDOW),
    "Qwen2": lambda: transformers.Qwen2Config(
        **_SHAPE, **_WINDOW, use_sliding_window=True, max_window_layers=1, tie_word_embeddings=True
    ),
    "Qwen3": lambda: transformers.Qwen3Config(**_SHAPE, head_dim=8),
    "Gemma 2": lambda: transformers.Gemma2Config(**_SHAPE, **_GEMMA, **_CAPS),
    "Gemma 3": lambda: transformers.Gemma3TextConfig(
        **_SHAPE, **_GEMMA, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "Phi": lambda: transformers.PhiConfig(**_SHAPE),
    "Phi 3": lambda: transformers.Phi3Config(**_SHAPE, pad_token_id=0),
    "GPT-NeoX": lambda: transformers.GPTNeoXConfig(**_SHAPE),
    "OPT": lambda: transformers.OPTConfig(
        vocab_size=100,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
    ),
    "GPT-2": lambda: transformers.GPT2Config(
        vocab_size=100, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64
    ),
    "Falcon": lambda: transformers.FalconConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4
    ),
    "Mixtral": lambda: transformers.MixtralConfig(**_SHAPE, num_local_experts=4),
    "Qwen3-MoE": lambda: transformers.Qwen3MoeConfig(
        **_SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
}  # fmt: skip

# transformers fuses a block's experts into one parameter.
FUSED = {"Mixtral", "Qwen3-MoE"}

SAMPLES = [
    Sample([1, 5, 9, 7, 33, 21, 50, 2], [4, 5, 6, 7], "line 1"),
    Sample([1, 8, 3, 9, 9, 7, 60, 61, 62, 63, 2], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "line 2"),
]

# Kernels of a GPU sum in another order.
TOLERANCE = {"cpu": 1e-5, "cuda": 1e-4}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of a family, ``one`` and ``other``; no two of their tensors are alike."""
    folder = tmp_path_factory.mktemp("pair") / str(request.param)
    torch.manual_seed(0)
    config = CONFIGS[request.param]()
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    for name in ("one", "other"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)
    return folder


def opened(path: Path, memory: str, device: str = "cpu") -> tuple[Runner, Opened]:
    runner = Runner(memory, device, "float32")
    return runner, runner.open(loading.open_source(path.name, path, None))


def plain(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def expected_sensitivity(path: Path) -> dict[str, float]:
    """Σ|θ · g| by layer of the file, whose tensors are recognised by their content, not by name."""
    model = plain(path)
    stored = load_file(path / "model.safetensors")
    homes = {}
    for name, parameter in model.named_parameters():
        held = parameter.detach()
        same = [key for key, tensor in stored.items() if torch.equal(tensor, held)]
        # Of a fused parameter each stored tensor is a part.
        parts = [key for key, tensor in stored.items() if bool((held == tensor.flatten()[0]).any())]
        layers = {layer_of(key) for key in same or parts}
        assert len(layers) == 1, name
        homes[name] = layers.pop()
    sums = dict.fromkeys(homes.values(), 0.0)
    for sample in SAMPLES:
        model.zero_grad()
        labels = [
            token if place in sample.scored else -100 for place, token in enumerate(sample.ids)
        ]
        model(input_ids=torch.tensor([sample.ids]), labels=torch.tensor([labels])).loss.backward()
        for name, parameter in model.named_parameters():
            product = parameter.detach().double() * parameter.grad.double()
            sums[homes[name]] += float(product.abs().sum())
    return sums


@pytest.mark.parametrize("device", DEVICES)
def test_sensitivity_is_the_oracles(pair: Path, device: str) -> None:
    expected = expected_sensitivity(pair / "one")
    for memory in ("whole", "stream"):
        runner, model = opened(pair / "one", memory, device)
        assert model.streamed == (memory == "stream")
        found, _ = runner.sensitivity(model, SAMPLES, 1, lambda _: None, "taylor")
        assert found == pytest.approx(expected, rel=TOLERANCE[device])


@pytest.mark.parametrize("device", DEVICES)
def test_alignment_is_that_of_full_logits(pair: Path, device: str) -> None:
    one, other = (plain(pair / name) for name in ("one", "other"))
    total = 0.0
    for sample in SAMPLES:
        ids = torch.tensor([sample.ids])
        with torch.no_grad():
            gap = one(ids).logits[0].double() - other(ids).logits[0].double()
        total += float(gap[[place - 1 for place in sample.scored]].norm(dim=1).mean())
    for memory in ("whole", "stream"):
        heads, states = [], []
        for name in ("one", "other"):
            runner, model = opened(pair / name, memory, device)
            states.append(runner.states(model, SAMPLES, "completion", lambda _: None))
            heads.append(alignment.Head(model.model, model.stream))
        found = alignment.distance(
            heads[0], heads[1], states[0], states[1], SAMPLES, pair="", form="token", threads=1
        )
        assert found == pytest.approx(total / len(SAMPLES), rel=TOLERANCE[device])


def test_what_loading_converts_is_noted(pair: Path) -> None:
    runner, model = opened(pair / "one", "stream")
    assert bool(loading.copied_bytes(model.model)) == bool(runner.notes) == (pair.name in FUSED)
    assert all("are converted when they are loaded" in note for note in runner.notes)
    assert not opened(pair / "one", "whole")[0].notes


def test_the_blocks_are_found(pair: Path) -> None:
    _, model = opened(pair / "one", "whole")
    found = blocks.find(model.model, model.layers.of)
    assert len(found) == LAYERS
    within = {id(parameter) for block in found for parameter in block.parameters()}
    for name, parameter in model.model.named_parameters():
        assert (id(parameter) in within) == model.layers.of[name][-1].isdecimal()
