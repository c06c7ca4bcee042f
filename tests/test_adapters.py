"""Models with LoRA adapters: streamed weights are those of the float64 product, and PEFT's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sensmerge
from adapters import PREFIX, Written, changed, scale_of
from families import tensor_family
from sensmerge import InputError, Recipe
from sensmerge.recipe.places import parts_of, place_of
from sensmerge.workflow import plan

MODULE = "model.layers.0.self_attn.q_proj"
WEIGHT = f"{MODULE}.weight"


def alone(folder: Path, model: str, **keys: Any) -> dict[str, Any]:
    """The tensors of one model as they enter a merge."""
    data = {"merge_method": "linear", "models": [{"model": model, "parameters": {"weight": 1}}]}
    found = sensmerge.merge_tensors(Recipe.from_dict(data | keys, folder=folder))
    return {name: tensor.double().numpy() for name, tensor in found.items()}


def refusal(folder: Path, model: str) -> str:
    with pytest.raises(InputError) as caught:
        alone(folder, model)
    return str(caught.value)


def small(folder: Path, shapes: dict[str, tuple[int, ...]] | None = None) -> dict[str, Any]:
    shapes = shapes or {WEIGHT: (12, 20), "model.norm.weight": (20,)}
    return tensor_family(folder, experts=0, dtype="float32", shapes=shapes)[0]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.integers(1, 40),
    columns=st.sampled_from([1, 7, 33, 64, 1030]),
    rank=st.integers(1, 20),
    alpha=st.integers(1, 32),
    rslora=st.booleans(),
    transposed=st.booleans(),
    magnitude=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16", "float16", "float64"]),
)
def test_every_kind_is_the_float64_product(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    columns: int,
    rank: int,
    alpha: int,
    rslora: bool,
    transposed: bool,
    magnitude: bool,
    dtype: str,
) -> None:
    folder = tmp_path_factory.mktemp("model")
    base = small(folder, {WEIGHT: (rows, columns)})
    config = {"r": rank, "lora_alpha": alpha, "use_rslora": rslora, "use_dora": magnitude}
    written = Written(config=config)
    transposed = transposed and rows != columns
    outputs, inputs = (columns, rows) if transposed else (rows, columns)
    draw = np.random.default_rng(rank)
    written.factors(draw, MODULE, outputs, inputs, rank, magnitude=magnitude)
    written.save(folder / "lora", dtype)
    found = alone(folder, "base+lora")[WEIGHT]
    scale = scale_of(config)
    expected = changed(base[WEIGHT], written, MODULE, scale=scale, transposed=transposed)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_several_adapters_follow_one_another(tmp_path: Path) -> None:
    base = small(tmp_path)
    draw = np.random.default_rng(0)
    expected = base[WEIGHT]
    for name in ("a", "b"):
        written = Written(config={"use_dora": True})
        written.factors(draw, MODULE, 12, 20, 4, magnitude=True)
        written.save(tmp_path / name)
        expected = changed(expected, written, MODULE, scale=2.0)
    found = alone(tmp_path, "base+a+b")
    np.testing.assert_allclose(found[WEIGHT], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["model.norm.weight"], base["model.norm.weight"])


def test_whole_tensors_biases_and_embeddings(tmp_path: Path) -> None:
    shapes = {
        "model.embed_tokens.weight": (30, 8),
        WEIGHT: (8, 8),
        f"{MODULE}.bias": (8,),
        "lm_head.weight": (30, 8),
    }
    base = small(tmp_path, shapes)
    draw = np.random.default_rng(0)
    written = Written()
    written.factors(draw, "model.embed_tokens", 8, 30, 4, embedding=True)
    written.factors(draw, MODULE, 8, 8, 4)
    written.tensors[f"{PREFIX}{MODULE}.base_layer.bias"] = draw.standard_normal(8)
    written.tensors[f"{PREFIX}lm_head.modules_to_save.weight"] = draw.standard_normal((30, 8))
    written.save(tmp_path / "lora")
    found = alone(tmp_path, "base+lora")
    embedding = changed(
        base["model.embed_tokens.weight"], written, "model.embed_tokens", scale=2, embedding=True
    )
    np.testing.assert_allclose(found["model.embed_tokens.weight"], embedding, atol=1e-6)
    expected = changed(base[WEIGHT], written, MODULE, scale=2)
    np.testing.assert_allclose(found[WEIGHT], expected, atol=1e-6)
    for name, stored in (("lm_head.weight", "lm_head.modules_to_save.weight"),):
        np.testing.assert_array_equal(found[name], written.tensors[f"{PREFIX}{stored}"])
    bias = written.tensors[f"{PREFIX}{MODULE}.base_layer.bias"]
    np.testing.assert_array_equal(found[f"{MODULE}.bias"], bias)


def test_rows_of_trained_tokens(tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    base = small(tmp_path, {name: (30, 8)})
    written = Written(config={"trainable_token_indices": {"embed_tokens": [29, 3]}})
    rows = np.random.default_rng(0).standard_normal((2, 8))
    written.tensors[f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"] = rows
    written.save(tmp_path / "lora")
    expected = base[name].copy()
    expected[[29, 3]] = next(iter(written.tensors.values()))
    np.testing.assert_array_equal(alone(tmp_path, "base+lora")[name], expected)


def test_patterns_choose_rank_and_scale(tmp_path: Path) -> None:
    other = "model.layers.1.self_attn.q_proj"
    base = small(tmp_path, {WEIGHT: (12, 20), f"{other}.weight": (12, 20)})
    written = Written(
        config={
            "rank_pattern": {"layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {r".*\.1\..*": 3},
        }
    )
    draw = np.random.default_rng(0)
    written.factors(draw, MODULE, 12, 20, 4)
    written.factors(draw, other, 12, 20, 2)
    written.save(tmp_path / "lora")
    found = alone(tmp_path, "base+lora")
    for module, scale in ((MODULE, 2.0), (other, 1.5)):
        expected = changed(base[f"{module}.weight"], written, module, scale=scale)
        np.testing.assert_allclose(found[f"{module}.weight"], expected, atol=1e-6)


@pytest.mark.parametrize(("stored", "named"), [("model.x", "x"), ("x", "model.x")])
def test_a_prefix_more_or_less(tmp_path: Path, stored: str, named: str) -> None:
    base = small(tmp_path, {f"{stored}.weight": (5, 6)})
    written = Written()
    written.factors(np.random.default_rng(0), named, 5, 6, 4)
    written.save(tmp_path / "lora")
    found = alone(tmp_path, "base+lora")[f"{stored}.weight"]
    expected = changed(base[f"{stored}.weight"], written, named, scale=2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def tuned(folder: Path, **config: Any) -> Written:
    small(folder)
    written = Written(config=config)
    written.factors(np.random.default_rng(0), MODULE, 12, 20, 4)
    return written


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "IA3"}, "is of an adapter of type IA3"),
        ({"lora_bias": True}, "lora_bias: it is a LoRA with biases"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens: it is an activated LoRA"),
        ({"layer_replication": [[0, 2]]}, "layer_replication: it is a LoRA for a model with"),
        ({"target_parameters": ["experts.up"]}, "target_parameters: it is a LoRA of parameters"),
        ({"megatron_config": {"x": 1}}, "megatron_config: it is a LoRA of Megatron's"),
        ({"arrow_config": {"top_k": 1}}, "arrow_config: it is an Arrow router"),
        ({"use_qalora": True}, "use_qalora: it is a QALoRA adapter"),
        ({"use_tomorrow": True}, "use_tomorrow: is not known here"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights: 'pissa_niter_16' changes"),
        ({"init_lora_weights": "corda"}, "init_lora_weights: 'corda' changes"),
        ({"r": 0}, "r: expected a whole number above 0, not 0"),
        ({"lora_alpha": "8"}, "lora_alpha: expected a number, not '8'"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern: '(' is no pattern"),
        ({"r": 8}, "is of rank 4, and adapter_config.json says 8"),
        ({"use_dora": True}, "has no lora_magnitude_vector for 'model.layers.0.self_attn.q_proj'"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    tuned(tmp_path, **config).save(tmp_path / "lora")
    assert said in refusal(tmp_path, "base+lora")


@pytest.mark.parametrize(
    "config",
    [
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"layers_to_transform": [0], "target_modules": ["q_proj"], "exclude_modules": ["v_proj"]},
        {
            "lora_bias": False,
            "use_qalora": False,
            "megatron_core": "megatron.core",
            "kasa_config": None,
        },
    ],
)
def test_keys_without_effect_are_let_through(tmp_path: Path, config: dict[str, Any]) -> None:
    tuned(tmp_path, **config).save(tmp_path / "lora")
    alone(tmp_path, "base+lora")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"model.gate.lora_A.weight": (4, 20), "model.gate.lora_B.weight": (12, 4)},
            "changes 'model.gate.weight'",
        ),
        (
            {f"{MODULE}.lora_A.weight": (4, 21)},
            "does not fit a matrix of 12 outputs and 20 inputs",
        ),
        ({f"{MODULE}.lora_A.weight": (4, 20, 1)}, "only adapters of linear layers"),
        ({f"{MODULE}.lora_diag": (4,)}, "adapters with such tensors are not supported"),
        ({"model.norm.weight": (20, 2)}, "has shape [20, 2], and the model's tensor [20]"),
        ({f"{MODULE}.lora_A.other.weight": (4, 20)}, "holds several adapters (None, other)"),
        ({"extra.bias": (3,)}, "changes 'extra.bias', and"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, change: dict[str, tuple[int, ...]], said: str
) -> None:
    written = tuned(tmp_path)
    draw = np.random.default_rng(0)
    for name, shape in change.items():
        written.tensors[PREFIX + name] = draw.standard_normal(shape)
    written.save(tmp_path / "lora")
    assert said in refusal(tmp_path, "base+lora")


def test_folders_that_are_no_adapters(tmp_path: Path) -> None:
    tuned(tmp_path).save(tmp_path / "lora")
    assert "base: is no adapter" in refusal(tmp_path, "base+base")
    said = refusal(tmp_path, "lora")
    assert "lora: is a LoRA adapter for 'base', not a whole model; name it after" in said
    assert said.endswith("base+lora")
    assert "no such folder" in refusal(tmp_path, "base+nowhere")
    assert "ends with '+'" in refusal(tmp_path, "base+")
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "adapter_model.bin: is a pickle" in refusal(tmp_path, "base+lora")


def test_a_name_has_parts(tmp_path: Path) -> None:
    for name in ("a", "b", "x+y"):
        (tmp_path / name).mkdir()
    assert parts_of("a+b+org/c@rev", tmp_path) == ("a", ["b", "org/c@rev"])
    assert parts_of("x+y+b", tmp_path) == ("x+y", ["b"])
    assert parts_of("a+x+y", tmp_path) == ("a", ["x+y"])
    assert place_of("./a+b", tmp_path) == place_of("a+./b", tmp_path)
    assert place_of("a+b", tmp_path) != place_of("a", tmp_path)


def test_what_the_user_should_know_is_noted(tmp_path: Path) -> None:
    written = tuned(tmp_path, base_model_name_or_path="org/another")
    written.tensors[f"{PREFIX}model.norm.original_module.weight"] = np.ones(20)
    written.save(tmp_path / "lora")
    (tmp_path / "lora" / "added_tokens.json").write_text("{}")
    data = {
        "merge_method": "linear",
        "models": [{"model": "base+lora", "parameters": {"weight": 1}}],
    }
    notes = sensmerge.open_models(Recipe.from_dict(data, folder=tmp_path)).notes
    said = "\n".join(notes)
    assert "was made for 'org/another'" in said
    assert "are left out: they are copies" in said
    assert "has tokenizer files that differ" in said


def test_files_are_opened_once_and_belong_to_the_manifest(tmp_path: Path) -> None:
    tuned(tmp_path).save(tmp_path / "lora")
    data = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": {"model": "base", "lora": "lora"}}],
        "parameters": {"weight": 1},
    }
    recipe = Recipe.from_dict(data, folder=tmp_path)
    planned = json.loads(plan(recipe).to_json())
    assert [Path(model["path"]).name for model in planned["models"]] == [
        "base",
        "adapter_model.safetensors",
    ]
    models = sensmerge.open_models(recipe)
    assert models.base is not None
    assert models.base.fingerprint() != models.experts[0].fingerprint()
    assert models.base.fingerprint() == models.base.checkpoint.fingerprint()
    sensmerge.merge(recipe, tmp_path / "out", progress=False, sync=False)
    with pytest.raises(InputError, match="lora"):
        sensmerge.merge(recipe, tmp_path / "lora", progress=False, sync=False, overwrite=True)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "linear", "slerp"])
def test_a_merge_is_that_of_merged_copies(tmp_path: Path, method: str) -> None:
    import torch
    from safetensors.torch import save_file

    base = small(tmp_path)
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        written = Written()
        written.factors(draw, MODULE, 12, 20, 4)
        written.save(tmp_path / name)
        copy = base | {WEIGHT: changed(base[WEIGHT], written, MODULE, scale=2.0)}
        (tmp_path / f"copy-{name}").mkdir()
        stored = {name: torch.tensor(value).float() for name, value in copy.items()}
        save_file(stored, tmp_path / f"copy-{name}" / "model.safetensors")

    def merged(models: list[str]) -> dict[str, Any]:
        data: dict[str, Any] = {"merge_method": method, "seed": 3}
        data["models"] = [{"model": model} for model in models]
        if method == "slerp":
            data |= {"base_model": models[0], "parameters": {"t": 0.3}}
        else:
            data["parameters"] = {"weight": 0.5, "normalize": False}
            if method != "linear":
                data |= {"base_model": "base"}
                data["parameters"]["density"] = 0.7
        return sensmerge.merge_tensors(Recipe.from_dict(data, folder=tmp_path))

    found, expected = merged(["base+a", "base+b"]), merged(["copy-a", "copy-b"])
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_base_that_stands_alone_is_written_with_its_adapter(tmp_path: Path) -> None:
    tuned(tmp_path).save(tmp_path / "lora")
    data = {
        "merge_method": "task_arithmetic",
        "base_model": "base+lora",
        "models": [{"model": "./base+lora", "parameters": {"weight": 1}}],
    }
    recipe = Recipe.from_dict(data, folder=tmp_path)
    assert any("is merged with no other model" in note for note in recipe.notes)
    expected = alone(tmp_path, "base+lora")
    for name, tensor in sensmerge.merge_tensors(recipe).items():
        np.testing.assert_array_equal(tensor.double().numpy(), expected[name])
    data |= {"base_model": "base", "models": [{"model": "base", "parameters": {"weight": 1}}]}
    with pytest.raises(InputError, match="there is no expert to merge"):
        Recipe.from_dict(data, folder=tmp_path)


@pytest.mark.parametrize("dora", [False, True])
def test_bytes_depend_on_neither_threads_nor_chunks(tmp_path: Path, dora: bool) -> None:
    shapes = {WEIGHT: (300, 501), "model.embed_tokens.weight": (97, 32)}
    small(tmp_path, shapes)
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        written = Written(config={"use_dora": dora})
        written.factors(draw, MODULE, 300, 501, 4, magnitude=dora)
        written.factors(draw, "model.embed_tokens", 32, 97, 4, magnitude=dora, embedding=True)
        written.save(tmp_path / name, "bfloat16")
    data = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": "base+a"}, {"model": "base+b"}],
        "parameters": {"density": 0.4, "weight": 0.5},
    }
    recipe = Recipe.from_dict(data, folder=tmp_path)
    found = set()
    for threads, chunk_bytes in ((1, None), (2, 4096), (3, 40_000)):
        out = tmp_path / f"out{threads}"
        sensmerge.merge(
            recipe, out, threads=threads, chunk_bytes=chunk_bytes, progress=False, sync=False
        )
        found.add((out / "model.safetensors").read_bytes())
    assert len(found) == 1


def test_nan_in_an_adapter_is_the_adapters(tmp_path: Path) -> None:
    written = tuned(tmp_path)
    written.tensors[f"{PREFIX}{MODULE}.lora_B.weight"][3, 1] = np.nan
    written.save(tmp_path / "lora")
    said = refusal(tmp_path, "base+lora")
    assert "adapter_model.safetensors" in said
    assert "lora_B" in said
