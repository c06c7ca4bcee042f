"""Quantised checkpoints, in and out, against what torch makes of them."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sensmerge
from quantisation import (
    Scheme,
    Tensors,
    compressed,
    float8,
    fp8_blocks,
    fp8_per_tensor,
    int4,
    read,
    unpacked,
    write,
)
from sensmerge import InputError, Recipe, _core, workflow

SCHEMES = {
    "fp8": fp8_blocks(),
    "fp8, other tiles": fp8_blocks((16, 24)),
    "fp8, bfloat16 scales": fp8_blocks((16, 24), "bfloat16"),
    "fp8, a scale per tensor": fp8_per_tensor(),
    "fp8, e5m2": fp8_per_tensor(torch.float8_e5m2, "_scale"),
    "compressed, tensor": compressed("tensor", (0, 0)),
    "compressed, channel": compressed("channel", (0, 0)),
    "compressed, block": compressed("block", (16, 24)),
    "int4": int4(),
    "int4, other groups": int4(24),
}

SHAPES = {
    "model.embed_tokens.weight": (97, 40),
    "model.layers.0.mlp.gate.weight": (4, 40),
    "model.layers.0.mlp.down_proj.weight": (40, 301),
    "model.layers.0.mlp.up_proj.weight": (301, 40),
    "model.layers.0.norm.weight": (40,),
    "model.layers.1.mlp.up_proj.weight": (17, 1),
    "lm_head.weight": (97, 40),
}

# A chunk of the least size, and one of several rows of tiles.
CHUNKS = (1, 1 << 20)


def family(folder: Path, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensors]:
    """A base and two experts in bfloat16."""
    torch.manual_seed(0)
    base = {name: (0.02 * torch.randn(shape)).bfloat16() for name, shape in shapes.items()}
    found = {"base": base}
    for name in ("one", "two"):
        found[name] = {
            key: (tensor.float() + 0.004 * torch.randn(tensor.shape)).bfloat16()
            for key, tensor in base.items()
        }
    for name, tensors in found.items():
        write(folder / name, tensors, None)
    return found


def quantised(folder: Path, scheme: Scheme, *names: str, shards: int = 1) -> dict[str, Tensors]:
    """The same, with some of the models quantised.

    Returns:
        What the models' tensors stand for, in float32.
    """
    meant = {}
    for name, tensors in family(folder).items():
        if name in names:
            write(folder / name, scheme.stored(tensors), scheme.config, shards=shards)
            meant[name] = scheme.meant(tensors)
        else:
            meant[name] = {key: tensor.float() for key, tensor in tensors.items()}
    return meant


def recipe(folder: Path, method: str = "task_arithmetic", **keys: Any) -> Recipe:
    models = [
        {"model": "one", "parameters": {"weight": 0.75}},
        {"model": "two", "parameters": {"weight": 0.5}},
    ]
    said = {"merge_method": method, "base_model": "base", "models": models}
    return Recipe.from_dict(said | keys, folder)


def expected(meant: dict[str, Tensors]) -> Tensors:
    """The same merge in float32, in the same order."""
    return {
        name: base + 1.0 * (
            0.75 * (meant["one"][name] - base) + 0.5 * (meant["two"][name] - base)
        )
        for name, base in meant["base"].items()
    }  # fmt: skip


def copied(folder: Path, model: str, **keys: Any) -> Tensors:
    said = {"merge_method": "passthrough", "models": [{"model": model}]}
    return sensmerge.merge_tensors(Recipe.from_dict(said | keys, folder))


def same(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        bits = found[name].contiguous().view(torch.uint8)
        assert torch.equal(bits, tensor.contiguous().view(torch.uint8)), name


@pytest.mark.parametrize("name", SCHEMES)
def test_every_entry_is_its_code_times_its_scale(tmp_path: Path, name: str) -> None:
    meant = quantised(tmp_path, SCHEMES[name], "one", shards=2)
    same(copied(tmp_path, "one", out_dtype="float32"), meant["one"])
    # Without a dtype, they are rounded to that of the model.
    same(copied(tmp_path, "one"), {key: t.bfloat16() for key, t in meant["one"].items()})


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.integers(1, 140),
    columns=st.integers(1, 200),
    tile=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    chunk=st.sampled_from(CHUNKS),
)
def test_matrices_of_every_shape(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    columns: int,
    tile: tuple[int, int],
    chunk: int,
) -> None:
    folder = tmp_path_factory.mktemp("shapes")
    name = "model.layers.0.up_proj.weight"
    torch.manual_seed(rows * columns)
    matrix = torch.randn(rows, columns).bfloat16()
    for scheme in (fp8_blocks(tile), int4(tile[1])):
        write(folder / "one", scheme.stored({name: matrix}), scheme.config)
        said = {"merge_method": "passthrough", "models": [{"model": "one"}]}
        found = sensmerge.merge_tensors(Recipe.from_dict(said | {"out_dtype": "float32"}, folder))
        same(found, scheme.meant({name: matrix}))
        # What is written is what torch makes of the same numbers.
        result = workflow.merge(
            Recipe.from_dict(said, folder), folder / "out", progress=False, sync=False,
            overwrite=True, chunk_bytes=chunk,
        )  # fmt: skip
        assert result.tensors == 1
        same(read(folder / "out"), scheme.stored(scheme.meant({name: matrix})))


@pytest.mark.parametrize("stored", [("base", "one", "two"), ("base", "one"), ("base",)])
def test_experts_are_dequantised_merged_and_quantised(
    tmp_path: Path, stored: tuple[str, ...]
) -> None:
    scheme = fp8_blocks((16, 24))
    meant = quantised(tmp_path, scheme, *stored, shards=3)
    merged = expected(meant)
    wanted = {
        name: tensor if name.endswith("_proj.weight") else tensor.bfloat16()
        for name, tensor in merged.items()
    }
    outs = []
    for place, (threads, chunk) in enumerate([(1, 1), (2, 1 << 12), (3, 1 << 22)]):
        out = tmp_path / f"out{place}"
        result = workflow.merge(
            recipe(tmp_path), out, progress=False, threads=threads, chunk_bytes=chunk,
            max_shard_size="20kB",
        )  # fmt: skip
        assert any("as in the base" in note for note in result.notes)
        assert len(result.shards) > 1
        same(read(out), scheme.stored(wanted))
        outs.append(out)
    config = json.loads((outs[0] / "config.json").read_text())
    assert config["quantization_config"] == scheme.config
    weight_map = json.loads((outs[0] / "model.safetensors.index.json").read_text())["weight_map"]
    assert weight_map.keys() == scheme.stored(wanted).keys()
    for one, other in pairwise(outs):
        for file in one.glob("*.safetensors"):
            assert file.read_bytes() == (other / file.name).read_bytes()


@pytest.mark.parametrize("method", ["ties", "dare_ties", "slerp", "nuslerp", "model_stock"])
def test_every_kind_of_method_merges_what_is_meant(tmp_path: Path, method: str) -> None:
    meant = quantised(tmp_path, fp8_blocks((16, 24)), "base", "one", "two")
    models = ["one", "two"]
    keys: dict[str, Any] = {"models": [{"model": name} for name in models]}
    if method == "slerp":
        keys = {"models": [{"model": "one"}], "parameters": {"t": 0.4}}
    if method == "nuslerp":
        keys = {"models": [{"model": n, "parameters": {"weight": 1.0}} for n in models]}
    found = sensmerge.merge_tensors(recipe(tmp_path, method, out_dtype="float32", **keys))
    plain = tmp_path / "plain"
    for name, tensors in meant.items():
        write(plain / name, tensors, None)
    same(found, sensmerge.merge_tensors(recipe(plain, method, **keys)))


@pytest.mark.parametrize("out_dtype", ["float8_e4m3fn", "int4"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_models_are_quantised_when_they_are_written(
    tmp_path: Path, out_dtype: str, method: str
) -> None:
    family(tmp_path)
    scheme = fp8_blocks() if out_dtype == "float8_e4m3fn" else int4()
    asked = {"out_dtype": out_dtype}
    result = workflow.merge(recipe(tmp_path, method, **asked), tmp_path / "out", progress=False)
    assert any(note.startswith(f"3 of 7 merged tensors are quantised ({out_dtype}")
               for note in result.notes)  # fmt: skip
    exact = sensmerge.merge_tensors(recipe(tmp_path, method, out_dtype="float32"))
    plain = sensmerge.merge_tensors(recipe(tmp_path, method))
    wanted = scheme.stored(
        {name: exact[name] if scheme.chosen(name) else plain[name] for name in exact}
    )
    same(read(tmp_path / "out"), wanted)
    same(sensmerge.merge_tensors(recipe(tmp_path, method, **asked)), wanted)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    said = config["quantization_config"]
    left = said.get("modules_to_not_convert", said.get("ignore"))
    assert left == ["lm_head", "model.layers.0.mlp.gate"]
    assert config["dtype"] == "bfloat16"
    # It is read again as what it stands for.
    same(copied(tmp_path, "out", out_dtype="float32"), {
        name: scheme.value(scheme.parts(exact[name])) if scheme.chosen(name)
        else plain[name].float()
        for name in exact
    })  # fmt: skip


def test_a_base_may_be_quantised_in_another_way(tmp_path: Path) -> None:
    meant = quantised(tmp_path, int4(), "base")
    two = fp8_blocks()
    tensors = read(tmp_path / "two")
    write(tmp_path / "two", two.stored(tensors), two.config)
    meant["two"] = two.meant(tensors)
    merged = expected(meant)
    workflow.merge(recipe(tmp_path, out_dtype="float8_e4m3fn"), tmp_path / "out", progress=False)
    found = read(tmp_path / "out")
    name = "model.layers.0.mlp.up_proj.weight"
    codes, scales = float8(merged[name], (128, 128))
    assert torch.equal(found[name].view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(found[f"{name}_scale_inv"], scales)
    workflow.merge(recipe(tmp_path, out_dtype="bfloat16"), tmp_path / "plain", progress=False)
    same(read(tmp_path / "plain"), {key: tensor.bfloat16() for key, tensor in merged.items()})
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())


def test_ways_that_are_not_written_are_dequantised(tmp_path: Path) -> None:
    meant = quantised(tmp_path, compressed("channel", (0, 0)), "base", "one", "two")
    result = workflow.merge(recipe(tmp_path), tmp_path / "out", progress=False)
    assert any("is read and not written" in note for note in result.notes)
    same(read(tmp_path / "out"), {k: t.bfloat16() for k, t in expected(meant).items()})
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


def test_scales_of_powers_of_two(tmp_path: Path) -> None:
    family(tmp_path)
    scheme = fp8_blocks((16, 24))
    tensors = read(tmp_path / "base")
    write(tmp_path / "base", scheme.stored(tensors), scheme.config | {"scale_fmt": "ue8m0"})
    workflow.merge(recipe(tmp_path), tmp_path / "out", progress=False)
    found = read(tmp_path / "out")
    merged = sensmerge.merge_tensors(recipe(tmp_path, out_dtype="float32"))
    name = "model.layers.0.mlp.up_proj.weight"
    _, scales = float8(merged[name], (16, 24))
    assert torch.equal(found[f"{name}_scale_inv"], torch.exp2(torch.log2(scales).ceil()))


def mxfp4(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """Experts as GPT-OSS stores them."""
    torch.manual_seed(1)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {
        f"{name}_blocks": torch.randint(0, 256, (2, 70, 3, 16), dtype=torch.uint8),
        f"{name}_scales": torch.randint(110, 130, (2, 70, 3), dtype=torch.uint8),
        f"{name}_bias": torch.randn(2, 70).bfloat16(),
    }
    write(folder / "oss", tensors, {"quant_method": "mxfp4", "modules_to_not_convert": []})
    return tensors, {"name": name}


def test_mxfp4_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors, known = mxfp4(tmp_path)
    name = known["name"]
    parts = (tensors[f"{name}_blocks"], tensors[f"{name}_scales"])
    whole = convert_moe_packed_tensors(*parts, dtype=torch.float32)
    wanted = {name: whole, f"{name}_bias": tensors[f"{name}_bias"].float()}
    same(copied(tmp_path, "oss", out_dtype="float32"), wanted)
    result = workflow.merge(
        Recipe.from_dict({"merge_method": "passthrough", "models": [{"model": "oss"}]}, tmp_path),
        tmp_path / "out",
        progress=False,
    )
    same(read(tmp_path / "out"), {key: tensor.bfloat16() for key, tensor in wanted.items()})
    assert any("mxfp4" in note for note in result.notes)
    with pytest.raises(InputError, match="out_dtype: no tensor of the model"):
        copied(tmp_path, "oss", out_dtype="float8_e4m3fn")


def test_scales_of_activations_are_said_to_be_left_out(tmp_path: Path) -> None:
    quantised(tmp_path, fp8_per_tensor(), "one")
    said = {"merge_method": "passthrough", "models": [{"model": "one"}]}
    result = workflow.merge(Recipe.from_dict(said, tmp_path), tmp_path / "out", progress=False)
    assert sum("one: its scales of activations" in note for note in result.notes) == 1
    written = sensmerge.convert(tmp_path / "one", tmp_path / "wide", dtype="bfloat16")
    assert any("its scales of activations" in note for note in written.notes)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int4"])
def test_matrices_that_are_stored_the_other_way_round(tmp_path: Path, dtype: str) -> None:
    tensors = {"h.0.attn.c_attn.weight": torch.randn(64, 192), "wte.weight": torch.randn(10, 64)}
    write(tmp_path / "gpt2", tensors, None)
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    said = {"merge_method": "passthrough", "models": [{"model": "gpt2"}], "out_dtype": dtype}
    with pytest.raises(InputError, match=r"out_dtype: .* is of type gpt2, whose matrices are"):
        workflow.merge(Recipe.from_dict(said, tmp_path), tmp_path / "out", progress=False)


def test_integers_are_unpacked_as_they_are_packed() -> None:
    # The oracle itself: the bytes of one word by hand. -8 is 0, 7 is 15.
    parts = int4(8).parts(torch.tensor([[-7.0, 7, 0, 1, 2, 3, -1, -2]]))
    assert parts["_packed"].tolist() == [[int.from_bytes(b"\xf1\x98\xba\x67", "little")]]
    assert unpacked(parts).tolist() == [[-7.0, 7, 0, 1, 2, 3, -1, -2]]


def refused(folder: Path, name: str, change: dict[str, Any]) -> str:
    """The refusal of a model with other tensors; None takes one away."""
    scheme = fp8_blocks((16, 24))
    tensors = scheme.stored(read(folder / "two")) | change
    write(folder / name, {k: t for k, t in tensors.items() if t is not None}, scheme.config)
    models = [{"model": "one"}, {"model": name}]
    said = {"merge_method": "linear", "models": models, "parameters": {"weight": 1.0}}
    asked = Recipe.from_dict(said, folder)
    with pytest.raises(InputError) as caught:
        workflow.plan(asked)
    return str(caught.value)


def test_codes_and_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    family(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    said = refused(tmp_path, "bad", {f"{name}_scale_inv": torch.ones(3, 2)})
    assert f"tensor '{name}_scale_inv': has shape [3, 2], and a scale per 16 × 24" in said
    said = refused(tmp_path, "lost", {f"{name}_scale_inv": None})
    assert f"tensor '{name}': is F8_E4M3 here and BF16" in said
    assert f"its scale, '{name}_scale_inv', is missing" in said
    said = refused(tmp_path, "odd", {f"{name}_scale_inv": torch.ones(19, 2, dtype=torch.int32)})
    assert "is I32, in which no scales are stored" in said


def test_inspecting_says_how_a_model_is_quantised(tmp_path: Path) -> None:
    from sensmerge.models.inspection import inspect

    scheme = fp8_blocks((16, 24))
    quantised(tmp_path, scheme, "one")
    said = inspect(tmp_path / "one").describe()
    assert "quantised (fp8, a scale per 16 × 24): 3 tensors, dequantised when" in said
    assert re.search(r"0\.mlp\.up_proj\.weight +float8_e4m3fn +301 × 40", said)
    config = {"quant_method": "gptq", "bits": 4}
    write(tmp_path / "two", {"x": torch.ones(4, dtype=torch.int32)}, config)
    assert (
        "quantised (gptq, 4 bit), which is not read: convert it"
        in inspect(tmp_path / "two").describe()
    )


def test_a_plan_shows_how_tensors_are_stored(tmp_path: Path) -> None:
    family(tmp_path)
    plan = workflow.plan(recipe(tmp_path, out_dtype="int4"))
    line = next(row for row in plan.describe().splitlines() if "1.mlp.up_proj" in row)
    assert "int4, a scale per 32 entries" in line
    again = _core.Manifest.from_json(plan.manifest.to_json())
    assert again.to_json() == plan.manifest.to_json()
