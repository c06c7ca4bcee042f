"""Units of models in one order: ``align: permutation``, against units that were moved by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import sensmerge
from adapters import Written
from families import edit_weights, word_tokenizer
from sensmerge import InputError, Recipe, _core, reference
from sensmerge.merging.conversion import convert
from sensmerge.merging.explained import explain
from sensmerge.models.symmetries import symmetries
from sensmerge.recipe import StagedRecipe
from sensmerge.recipe.schema import recipe_schema
from sensmerge.scaling.mergekit import mergekit_recipe
from sensmerge.workflow import plan

Tensors = dict[str, Any]

LAYERS, HIDDEN, NEURONS, HEADS, GROUPS = 2, 32, 48, 8, 4

_SHAPE: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": HIDDEN,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "Llama": lambda: transformers.LlamaConfig(**_SHAPE),
    "Llama with biases": lambda: transformers.LlamaConfig(
        **_SHAPE, attention_bias=True, mlp_bias=True
    ),
    "Qwen2": lambda: transformers.Qwen2Config(**_SHAPE),
    "Qwen3": lambda: transformers.Qwen3Config(**_SHAPE, head_dim=6),
    "Gemma 2": lambda: transformers.Gemma2Config(**_SHAPE, head_dim=8, query_pre_attn_scalar=8),
    "Phi 3": lambda: transformers.Phi3Config(**_SHAPE, pad_token_id=0),
    "OLMo 2": lambda: transformers.Olmo2Config(**_SHAPE),
}


def write(folder: Path, config: transformers.PreTrainedConfig, *, noise: float = 0.01) -> None:
    """A base, and two experts ``e0`` and ``e1`` that differ from it a little."""
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("base", "e0", "e1"):
        model.load_state_dict(base)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += (noise if name != "base" else 0.0) * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)


def moved(tensors: Tensors, config: transformers.PreTrainedConfig, seed: int = 1) -> Tensors:
    """The same model with neurons and heads in another order."""
    draw = np.random.default_rng(seed)
    size = getattr(config, "head_dim", None) or HIDDEN // HEADS
    each = HEADS // GROUPS
    found = dict(tensors)
    for layer in range(LAYERS):
        neurons = draw.permutation(NEURONS)
        groups = draw.permutation(GROUPS)
        heads = np.concatenate([each * group + draw.permutation(each) for group in groups])
        queries = (size * heads[:, None] + np.arange(size)).ravel()
        keys = (size * groups[:, None] + np.arange(size)).ravel()
        fused = HEADS * size + np.concatenate([keys, GROUPS * size + keys])
        rows = {
            "gate_proj": neurons,
            "up_proj": neurons,
            "gate_up_proj": np.concatenate([neurons, NEURONS + neurons]),
            "q_proj": queries,
            "k_proj": keys,
            "v_proj": keys,
            "qkv_proj": np.concatenate([queries, fused]),
            "q_norm": queries,
            "k_norm": keys,
        }
        for name, tensor in found.items():
            if not name.startswith(f"model.layers.{layer}."):
                continue
            linear, kind = name.split(".")[-2:]
            if linear in rows and tensor.shape[0] == len(rows[linear]):
                found[name] = tensor[torch.from_numpy(rows[linear])].contiguous()
            if kind == "weight" and linear in ("down_proj", "o_proj"):
                order = neurons if linear == "down_proj" else queries
                found[name] = tensor[:, torch.from_numpy(order)].contiguous()
    return found


def move(folder: Path, config: transformers.PreTrainedConfig, seed: int = 1) -> None:
    path = folder / "model.safetensors"
    save_file(moved(load_file(path), config, seed), path, metadata={"format": "pt"})


def recipe(folder: Path, method: str = "task_arithmetic", **keys: Any) -> Recipe:
    data = {"merge_method": method, "base_model": "base"}
    data |= {"models": [{"model": "e0"}, {"model": "e1"}]} | keys
    return Recipe.from_dict({key: said for key, said in data.items() if said is not None}, folder)


def weights(
    asked: Recipe | StagedRecipe, out: Path, **how: Any
) -> tuple[bytes, sensmerge.MergeResult]:
    result = sensmerge.merge(asked, out, progress=False, **how)
    return (out / "model.safetensors").read_bytes(), result


def logits(folder: Path) -> NDArray[np.float32]:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: NDArray[np.float32] = model(torch.tensor([[1, 5, 9, 7, 33, 21]])).logits.numpy()
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_moved_units_are_brought_back(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]()
    write(tmp_path, config)
    expected, _ = weights(recipe(tmp_path), tmp_path / "plain")
    before, stored = logits(tmp_path / "e0"), (tmp_path / "e0/model.safetensors").read_bytes()
    move(tmp_path / "e0", config)
    # It is the same model with other bytes.
    assert (tmp_path / "e0/model.safetensors").read_bytes() != stored
    np.testing.assert_allclose(logits(tmp_path / "e0"), before, rtol=1e-3, atol=1e-4)
    assert weights(recipe(tmp_path), tmp_path / "unaligned")[0] != expected
    found, result = weights(recipe(tmp_path, align="permutation"), tmp_path / "out")
    assert found == expected
    assert any(note.startswith("align: e0: ") and "heads moved" in note for note in result.notes)
    assert "align: e1: all units are in the order of base already" in result.notes


def test_what_moved_is_recorded(tmp_path: Path) -> None:
    config = CONFIGS["Llama"]()
    write(tmp_path, config)

    def swap(tensors: Tensors) -> None:
        order = list(range(NEURONS))
        order[3], order[7] = 7, 3
        for linear in ("gate_proj", "up_proj"):
            name = f"model.layers.1.mlp.{linear}.weight"
            tensors[name] = tensors[name][order].contiguous()
        name = "model.layers.1.mlp.down_proj.weight"
        tensors[name] = tensors[name][:, order].contiguous()

    edit_weights(tmp_path / "e1", swap)
    _, result = weights(recipe(tmp_path, align="permutation"), tmp_path / "out")
    assert f"align: e1: 2 of {LAYERS * NEURONS} neurons moved, in 1 layer" in result.notes
    record = json.loads((tmp_path / "out/sensmerge_units.json").read_text())
    assert record["align"] == "permutation"
    assert record["template"] == "base"
    modules = {
        model["model"]: {each["module"]: each for each in model["modules"]}
        for model in record["models"]
    }
    swapped = modules["e1"]["model.layers.1.mlp"]
    assert swapped["moved"] == 2
    assert [swapped["order"][place] for place in (2, 3, 7)] == [2, 7, 3]
    unmoved = modules["e0"]["model.layers.0.self_attn"]
    assert unmoved == {"module": "model.layers.0.self_attn", "moved": 0, "count": HEADS}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["ties", "dare_ties", "tsv", "slerp", "linear"])
def test_with_every_kind_of_method(tmp_path: Path, method: str, dtype: str) -> None:
    config = CONFIGS["Llama"]()
    write(tmp_path, config)
    for name in ("base", "e0", "e1"):
        edit_weights(
            tmp_path / name,
            lambda tensors: tensors.update(
                {key: tensor.to(getattr(torch, dtype)) for key, tensor in tensors.items()}
            ),
        )
    keys: dict[str, Any] = {"parameters": {"density": 0.5}} if "ties" in method else {}
    if method == "slerp":
        keys = {"models": [{"model": "e0"}], "parameters": {"t": 0.3}}
    if method == "linear":
        # Without a base, the first model's order counts.
        keys = {"base_model": None, "parameters": {"weight": 1}}
    expected, _ = weights(recipe(tmp_path, method, **keys), tmp_path / "plain")
    move(tmp_path / ("e1" if method == "linear" else "e0"), config)
    asked = recipe(tmp_path, method, align="permutation", **keys)
    assert weights(asked, tmp_path / "out")[0] == expected
    assert weights(asked, tmp_path / "again", threads=1, chunk_bytes=4096)[0] == expected
    written = plan(asked).to_json()
    _core.merge(_core.Manifest.from_json(written), str(tmp_path / "carried"), 10**9)
    assert (tmp_path / "carried/model.safetensors").read_bytes() == expected


def test_small_changes_keep_the_order(tmp_path: Path) -> None:
    write(tmp_path, CONFIGS["Qwen2"](), noise=0.05)
    expected, _ = weights(recipe(tmp_path), tmp_path / "plain")
    found, result = weights(recipe(tmp_path, align="permutation"), tmp_path / "out")
    assert found == expected
    said = [note for note in result.notes if note.startswith("align")]
    assert said == [f"align: e{i}: all units are in the order of base already" for i in range(2)]


def test_slices_align_the_layers_that_are_merged(tmp_path: Path) -> None:
    config = CONFIGS["Llama"]()
    write(tmp_path, config)
    sources = [{"model": "base", "layer_range": [1, 2]}, {"model": "e0", "layer_range": [1, 2]}]
    slices = [{"sources": sources}, {"sources": sources}]
    keys: dict[str, Any] = {"models": None, "slices": slices}
    expected, _ = weights(recipe(tmp_path, **keys), tmp_path / "plain")
    move(tmp_path / "e0", config)
    assert weights(recipe(tmp_path, **keys, align="permutation"), tmp_path / "out")[0] == expected


def test_adapters_are_aligned_with_the_model_that_they_change(tmp_path: Path) -> None:
    config = CONFIGS["Llama"]()
    write(tmp_path, config)
    draw = np.random.default_rng(3)
    adapter = Written(config={"r": 4, "lora_alpha": 8})
    for module, outputs, inputs in [
        ("model.layers.0.mlp.up_proj", NEURONS, HIDDEN),
        ("model.layers.0.mlp.down_proj", HIDDEN, NEURONS),
        ("model.layers.1.self_attn.o_proj", HIDDEN, HIDDEN),
    ]:
        adapter.factors(draw, module, outputs, inputs, 4, magnitude=False)
    adapter.save(tmp_path / "lora", "float32")
    models = [{"model": "e0"}, {"model": "e1+lora"}]
    asked = recipe(tmp_path, models=models, align="permutation")
    _, result = weights(asked, tmp_path / "out")
    # Both models are moved alike: the template's order is another one, and all is as before.
    plain, _ = weights(recipe(tmp_path, models=models), tmp_path / "plain")
    move(tmp_path / "base", config)
    aligned, _ = weights(asked, tmp_path / "aligned")
    expected = moved(load_file(tmp_path / "plain/model.safetensors"), config)
    found = load_file(tmp_path / "aligned/model.safetensors")
    assert plain != aligned
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert "align: e1+lora: all units are in the order of base already" in result.notes


def test_quantised_models_are_aligned_by_what_they_stand_for(tmp_path: Path) -> None:
    config = CONFIGS["Llama"]()
    write(tmp_path, config)
    convert(tmp_path / "e0", tmp_path / "fp8", dtype="float8_e4m3fn", progress=False)
    models = [{"model": "fp8"}, {"model": "e1"}]
    weights(recipe(tmp_path, models=models), tmp_path / "plain")
    expected = moved(load_file(tmp_path / "plain/model.safetensors"), config)
    move(tmp_path / "base", config)
    weights(recipe(tmp_path, models=models, align="permutation"), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_stages_are_aligned_when_they_are_merged(tmp_path: Path) -> None:
    config = CONFIGS["Llama"]()
    write(tmp_path, config)
    first = {"merge_method": "linear", "parameters": {"weight": 1}, "models": [{"model": "e0"}]}
    last: dict[str, Any] = {"merge_method": "linear", "parameters": {"weight": 1}}
    last["base_model"] = "base"
    last["models"] = [{"model": "first"}, {"model": "e1"}]
    documents = [first | {"name": "first"}, last | {"align": "permutation"}]
    plain = StagedRecipe.from_documents([documents[0], last], tmp_path)
    expected, _ = weights(plain, tmp_path / "plain")
    move(tmp_path / "e0", config)
    staged = StagedRecipe.from_documents(documents, tmp_path)
    said = plan(staged).notes
    assert any("aligned once they are merged" in note for note in said)
    assert weights(staged, tmp_path / "out")[0] == expected


def checkpoint(tensors: dict[str, NDArray[np.float64]]) -> _core.Checkpoint:
    described = [
        (name, "F64", list(array.shape), array.reshape(-1).view(np.uint8))
        for name, array in tensors.items()
    ]
    return _core.Checkpoint.from_memory("model", described)


def matched(
    models: list[dict[str, NDArray[np.float64]]], config: dict[str, Any], threads: int = 1
) -> list[tuple[list[int], list[int]]]:
    known = symmetries({name: list(array.shape) for name, array in models[0].items()}, config)
    assert not known.others
    views = [json.dumps({"checkpoint": place}) for place in range(2)]
    asked = json.dumps([symmetry.plain() for symmetry in known.known])
    opened = [checkpoint(model) for model in models]
    return _core.match_units(views[0], views[1], opened, asked, threads=threads)


@pytest.mark.parametrize("seed", range(10))
def test_neurons_of_unrelated_models_against_all_orders(seed: int) -> None:
    draw = np.random.default_rng(seed)
    shapes = {"gate_proj": (5, 3), "up_proj": (5, 3), "down_proj": (3, 5)}
    models = [
        {f"layers.0.mlp.{name}.weight": draw.normal(size=size) for name, size in shapes.items()}
        for _ in range(2)
    ]
    [(order, members)] = matched(models, {})
    vectors = [
        np.hstack([array.T if "down" in name else array for name, array in model.items()])
        for model in models
    ]
    value, expected = reference.best_order(vectors[0], vectors[1])
    assert members == []
    assert order == expected
    assert np.sum(vectors[0] * vectors[1][order]) == pytest.approx(value)


@pytest.mark.parametrize("seed", range(10))
def test_heads_of_unrelated_models_against_all_orders(seed: int) -> None:
    draw = np.random.default_rng(seed)
    groups, each, size, hidden = 3, 2, 2, 4
    heads = groups * each
    shapes = {
        "q_proj.weight": (heads * size, hidden),
        "q_proj.bias": (heads * size,),
        "k_proj.weight": (groups * size, hidden),
        "v_proj.weight": (groups * size, hidden),
        "v_proj.bias": (groups * size,),
        "o_proj.weight": (hidden, heads * size),
    }
    models = [
        {f"layers.0.self_attn.{name}": draw.normal(size=shape) for name, shape in shapes.items()}
        for _ in range(2)
    ]
    config = {"num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": size}
    [(order, members)] = matched(models, config)

    def vectors(model: dict[str, NDArray[np.float64]], names: str) -> NDArray[np.float64]:
        arrays = [
            array.T if "o_proj" in name else array
            for name, array in model.items()
            if name.split(".")[-2][0] in names
        ]
        count = heads if "q" in names else groups
        return np.hstack([array.reshape(count, -1) for array in arrays])

    units = (vectors(models[0], "kv"), vectors(models[1], "kv"))
    inner = (vectors(models[0], "qo"), vectors(models[1], "qo"))
    value, expected, places = reference.best_nested_order(units, inner, each)
    assert (order, members) == (expected, places)
    found = np.sum(units[0] * units[1][order]) + np.sum(inner[0] * inner[1][members])
    assert found == pytest.approx(value)


@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0, 5.0])
def test_many_neurons_for_any_number_of_threads(noise: float) -> None:
    draw = np.random.default_rng(2)
    count, hidden = 700, 90
    names = [f"layers.0.mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")]
    gate, up, down = (draw.normal(size=(count, hidden)) for _ in range(3))
    order = draw.permutation(count)
    tuned = [each[order] + noise * draw.normal(size=each.shape) for each in (gate, up, down)]
    down, tuned[2] = np.ascontiguousarray(down.T), np.ascontiguousarray(tuned[2].T)
    models = [
        dict(zip(names, (gate, up, down), strict=True)),
        dict(zip(names, tuned, strict=True)),
    ]
    [(found, _)] = matched(models, {})
    assert [(found, [])] == matched(models, {}, threads=3)
    assert sorted(found) == list(range(count))
    values = gate @ tuned[0].T + up @ tuned[1].T + down.T @ tuned[2]
    if noise <= 1:
        assert found == np.argsort(order).tolist()
    # No two neurons gain by changing places, up to the precision of a product.
    own = values[np.arange(count), found]
    across = values[:, found]
    gain = across + across.T - own[:, None] - own[None, :]
    assert gain.max() <= 1e-6 * np.abs(values).max()


def test_neurons_that_differ_in_their_last_entries_alone() -> None:
    draw = np.random.default_rng(4)
    count, hidden = 40, 100
    gate, down = draw.normal(size=(count, hidden)), draw.normal(size=(hidden, count))
    gate[:, :-5], down[:-5] = gate[:1, :-5], down[:-5, :1]
    up = 2 * gate
    order = draw.permutation(count)
    models = [
        {f"layers.0.mlp.{name}.weight": array for name, array in arrays.items()}
        for arrays in (
            {"gate_proj": gate, "up_proj": up, "down_proj": down},
            {
                "gate_proj": gate[order],
                "up_proj": up[order],
                "down_proj": np.ascontiguousarray(down[:, order]),
            },
        )
    ]
    [(found, _)] = matched(models, {})
    assert found == np.argsort(order).tolist()


def test_first_entries_that_point_elsewhere_do_not_mislead() -> None:
    draw = np.random.default_rng(5)
    count, hidden, first = 40, 100, 70
    names = ("gate_proj", "up_proj", "down_proj")
    ours = [draw.normal(size=(count, hidden)) for _ in names]
    for array in ours:
        array[:, first:] *= 10
    wrong, right = draw.permutation(count), draw.permutation(count)
    theirs = [np.hstack([array[wrong, :first], array[right, first:]]) for array in ours]
    models = [
        {
            f"layers.0.mlp.{name}.weight": np.ascontiguousarray(
                array.T if name == "down_proj" else array
            )
            for name, array in zip(names, arrays, strict=True)
        }
        for arrays in (ours, theirs)
    ]
    [(found, _)] = matched(models, {})
    assert found == np.argsort(right).tolist()


def test_models_opened_once_serve_recipes_of_other_slices(tmp_path: Path) -> None:
    config = CONFIGS["Llama"]()
    write(tmp_path, config)

    def asked(layer: int, **keys: Any) -> Recipe:
        ends = [layer, layer + 1]
        sources = [{"model": name, "layer_range": ends} for name in ("base", "e0")]
        return recipe(tmp_path, models=None, slices=[{"sources": sources}], **keys)

    expected = [sensmerge.merge_tensors(asked(layer)) for layer in range(LAYERS)]
    move(tmp_path / "e0", config)
    models = sensmerge.open_models(asked(0))
    for layer in range(LAYERS):
        found = sensmerge.merge_tensors(asked(layer, align="permutation"), models)
        assert all(torch.equal(found[name], each) for name, each in expected[layer].items())


def test_models_of_unknown_units_are_refused(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    write(tmp_path, config)
    with pytest.raises(InputError, match=r"has no units that are known.*h.0.attn.c_attn.weight"):
        sensmerge.merge(recipe(tmp_path, align="permutation"), tmp_path / "out", progress=False)


def test_unknown_attention_keeps_its_order(tmp_path: Path) -> None:
    config = CONFIGS["Llama"]()
    write(tmp_path, config)
    name = "model.layers.0.self_attn.gate.weight"
    for model in ("base", "e0", "e1"):
        edit_weights(tmp_path / model, lambda tensors: tensors.update({name: torch.ones(4, 4)}))
    _, result = weights(recipe(tmp_path, align="permutation"), tmp_path / "out")
    said = [note for note in result.notes if "keep their order" in note]
    assert said
    assert said[0].startswith("align: 5 matrices of the blocks, such as")


def test_a_model_without_a_config_is_refused(tmp_path: Path) -> None:
    write(tmp_path, CONFIGS["Llama"]())
    for name in ("base", "e0", "e1"):
        (tmp_path / name / "config.json").unlink()
    with pytest.raises(InputError, match="num_attention_heads and num_key_value_heads are needed"):
        sensmerge.merge(recipe(tmp_path, align="permutation"), tmp_path / "out", progress=False)


def test_in_memory_too(tmp_path: Path) -> None:
    config = CONFIGS["Llama"]()
    write(tmp_path, config)
    expected = sensmerge.merge_tensors(recipe(tmp_path))
    move(tmp_path / "e0", config)
    found = sensmerge.merge_tensors(recipe(tmp_path, align="permutation"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_an_order_that_names_rows_twice_is_refused() -> None:
    tensors = {"w": np.zeros((3, 2))}
    for order in ({"rows": [[0, 2], [1, 1]]}, {"columns": [[0, 1]]}, {"columns": [[5, 2]]}):
        view = {"checkpoint": 0, "orders": {"w": order}}
        request = {
            "method": "linear", "semantics": "mergekit", "switches": {}, "seed": 0,
            "out_dtype": None,
            "parts": [{"base": None, "models": [view], "tensors": {"w": {"weight": [1.0]}}}],
        }  # fmt: skip
        with pytest.raises(InputError, match="in an order that does not name each once"):
            _core.Manifest.build(json.dumps(request), [checkpoint(tensors)])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"align": "zipit"}, "align: 'zipit': ZipIt! also merges units within a model"),
        ({"align": "repair"}, "align: 'repair': REPAIR rescales activations"),
        ({"align": "permutations"}, "align: .*did you mean 'permutation'"),
        ({"merge_method": "zipit"}, "merge_method: 'zipit': ZipIt! also merges units within"),
        ({"merge_method": "git_rebasin"}, "merge_method: 'git_rebasin': write align: permutation"),
        ({"aling": "permutation"}, "aling: .*align"),
    ],
)
def test_other_ways_are_refused_with_the_reason(keys: dict[str, Any], said: str) -> None:
    data = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}
    with pytest.raises(InputError, match=said):
        Recipe.from_dict(data | keys)


def test_said_wherever_recipes_are_described(tmp_path: Path) -> None:
    asked = recipe(tmp_path, align="permutation")
    lines = [line.strip() for line in explain(asked).describe().splitlines()]
    assert any(line.startswith("align: permutation; before the merge") for line in lines)
    assert "align: there, units are merged in the order in which models have them" in lines
    schema = recipe_schema()["properties"]["align"]
    assert "permutation" in json.dumps(schema)


def test_mergekit_cannot_write_it(family: Any) -> None:
    from sensmerge.scaling.sigma import Coefficients

    asked = Recipe.from_dict(family.recipe(align="permutation"), folder=family.folder)
    with pytest.raises(InputError, match="align: mergekit merges units in the order"):
        mergekit_recipe(asked, Coefficients.__new__(Coefficients), [], set())
