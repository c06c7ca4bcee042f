"""Modules of models that have several: every module by its own settings, nothing left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import sensmerge
from sensmerge import InputError, Recipe
from sensmerge.merging.explained import explain
from sensmerge.models.modules import module_of

Tensors = dict[str, torch.Tensor]

_TEXT: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def qwen2_vl() -> Any:
    text = _TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 3, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2VLForConditionalGeneration(config)


def gemma3() -> Any:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    text = _TEXT | {"head_dim": 8}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision)
    return transformers.Gemma3ForConditionalGeneration(config)


MODELS: dict[str, Callable[[], Any]] = {"qwen2-vl": qwen2_vl, "gemma3": gemma3}


@pytest.fixture(scope="module", params=MODELS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, e0 and e1 of a model with a vision tower, in float32."""
    folder = tmp_path_factory.mktemp(str(request.param))
    torch.manual_seed(0)
    model = MODELS[request.param]()
    model.save_pretrained(folder / "base")
    for name in ("e0", "e1"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
    return folder


def loaded(folder: Path) -> Tensors:
    return {
        k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }


def merge(family: Path, out: Path, **keys: Any) -> Tensors:
    recipe = Recipe.from_dict(keys, folder=family)
    sensmerge.merge(recipe, out, progress=False, sync=False)
    return loaded(out)


def listed(*names: str) -> dict[str, Any]:
    return {"models": [{"model": name} for name in names]}


def is_vision(name: str) -> bool:
    return "visual" in name or "vision_tower" in name


def is_projector(name: str) -> bool:
    return "visual.merger." in name or "multi_modal_projector" in name


def test_every_module_has_its_settings(family: Path, tmp_path: Path) -> None:
    found = merge(
        family,
        tmp_path / "out",
        merge_method="task_arithmetic",
        base_model="base",
        parameters={"weight": 0.5},
        modules={
            "text_decoder": listed("e0", "e1"),
            "vision_tower": {**listed("e0"), "parameters": {"weight": 0.25}},
            "multi_modal_projector": {**listed("e1"), "parameters": {"weight": 1.0}},
        },
    )
    base, e0, e1 = (loaded(family / name) for name in ("base", "e0", "e1"))
    assert set(found) == set(base)
    assert any(map(is_projector, base))
    assert any(is_vision(name) and not is_projector(name) for name in base)
    for name, theta in base.items():
        d0, d1 = e0[name].double() - theta.double(), e1[name].double() - theta.double()
        if is_projector(name):
            change = d1
        elif is_vision(name):
            change = 0.25 * d0
        else:
            change = 0.5 * d0 + 0.5 * d1
        torch.testing.assert_close(found[name].double(), theta.double() + change, rtol=0, atol=2e-7)
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    tokens = torch.tensor([[3, 5, 7]])
    assert torch.isfinite(model(input_ids=tokens).logits).all()


def test_the_language_model_is_restacked_beside_a_whole_tower(family: Path, tmp_path: Path) -> None:
    def layers(model: str, first: int, end: int) -> dict[str, Any]:
        return {"sources": [{"model": model, "layer_range": [first, end]}]}

    found = merge(
        family,
        tmp_path / "out",
        merge_method="passthrough",
        base_model="base",
        modules={
            "text_decoder": {"slices": [layers("e0", 0, 2), layers("e1", 1, 2)]},
            "vision_tower": listed("base"),
            "multi_modal_projector": listed("base"),
        },
    )
    base, e1 = loaded(family / "base"), loaded(family / "e1")
    assert all(torch.equal(found[name], base[name]) for name in base if is_vision(name))
    last = [name for name in found if ".layers.2." in name and not is_vision(name)]
    assert last
    assert all(torch.equal(found[name], e1[name.replace(".2.", ".1.")]) for name in last)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 3
    transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out")


def test_a_tower_that_only_some_models_have(family: Path, tmp_path: Path) -> None:
    text_only = tmp_path / "family"
    text_only.mkdir()
    for name in ("base", "e0", "e1"):
        (text_only / name).mkdir()
        for path in (family / name).iterdir():
            (text_only / name / path.name).write_bytes(path.read_bytes())
    kept = {
        k: v for k, v in loaded(family / "e1").items() if not is_vision(k) and not is_projector(k)
    }
    save_file(kept, text_only / "e1" / "model.safetensors")
    found = merge(
        text_only,
        tmp_path / "out",
        merge_method="task_arithmetic",
        base_model="base",
        modules={
            "text_decoder": listed("e0", "e1"),
            "vision_tower": listed("e0"),
            "multi_modal_projector": listed("e0"),
        },
    )
    e0 = loaded(family / "e0")
    for name in filter(is_vision, e0):
        torch.testing.assert_close(found[name], e0[name], rtol=0, atol=1e-7)
    with pytest.raises(InputError, match=r"modules\.vision_tower: .*e1 has no tensor in a module"):
        merge(
            text_only,
            tmp_path / "other",
            merge_method="linear",
            modules={"text_decoder": listed("e0", "e1"), "vision_tower": listed("e0", "e1")},
        )


def test_refusals_say_where_the_user_wrote_it(family: Path) -> None:
    modules = {
        "text_decoder": {"models": [{"model": "e0", "parameters": {"weigth": 1}}]},
        "vision_tower": {"slices": [{"sources": []}]},
    }
    with pytest.raises(InputError) as refused:
        Recipe.from_dict({"merge_method": "linear", "modules": modules}, folder=family)
    said = str(refused.value)
    assert "modules.text_decoder.models[0].parameters.weigth: unknown" in said
    assert "did you mean 'weight'?" in said
    assert "modules.vision_tower.slices[0].sources: " in said
    assert "slices[1]" not in said


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ({"vision_tower": listed("e0")}, "are in none of the modules"),
        (
            {"text_decoder": listed("e0"), "audio_tower": listed("e0")},
            "modules.audio_tower: .* has no tensor in a module of that name",
        ),
        (
            {"text_decoder": listed("e0"), "default": listed("e1")},
            "modules.default: stands for the same module as text_decoder",
        ),
        (
            {
                "text_decoder": listed("e0"),
                "vision_tower": {"slices": [{"sources": [{"model": "e0", "layer_range": [0, 1]}]}]},
            },
            r"modules.vision_tower.slices\[0\]: only the language model's layers can be restacked",
        ),
    ],
)
def test_refused_modules(family: Path, tmp_path: Path, modules: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        merge(family, tmp_path / "out", merge_method="linear", modules=modules)
    assert not (tmp_path / "out").exists()


def test_keys_that_mergekit_ignores_are_noted(family: Path) -> None:
    modules = {"text_decoder": {**listed("e0"), "architecture": "x"}, "vision_tower": listed("e0")}
    recipe = Recipe.from_dict({"merge_method": "linear", "modules": modules}, folder=family)
    assert any("modules.text_decoder.architecture: unknown key" in note for note in recipe.notes)


def test_explained(family: Path) -> None:
    modules = {"text_decoder": listed("e0"), "visual": listed("e1")}
    recipe = Recipe.from_dict({"merge_method": "linear", "modules": modules}, folder=family)
    said = explain(recipe).describe()
    assert "modules.text_decoder: all layers of e0" in said
    assert "modules.visual: all layers of e1" in said


def test_module_of_a_tensor() -> None:
    modules = ["text_decoder", "vision_tower", "multi_modal_projector"]
    for name, module in {
        "visual.blocks.0.norm1.weight": "vision_tower",
        "model.visual.merger.mlp.0.weight": "multi_modal_projector",
        "vision_tower.vision_model.embeddings.patch_embedding.weight": "vision_tower",
        "language_model.model.layers.0.mlp.up_proj.weight": "text_decoder",
        "visualizer.weight": "text_decoder",
        "lm_head.weight": "text_decoder",
    }.items():
        assert module_of(name, modules) == module
    assert module_of("lm_head.weight", ["vision_tower"]) is None
