"""Methods on whole matrices against their float64 references, and what such merges promise."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import sensmerge
from adapters import Written
from quantisation import Scheme, fp8_blocks, int4, quantise, read, write
from sensmerge import InputError, Recipe, reference
from sensmerge.recipe import methods
from sensmerge.workflow import plan

Array = NDArray[np.float64]
State = dict[str, Array]

# Wide, tall, square, stacked. Then what is no matrix: four axes, a column, a vector, a scalar,
# nothing.
SHAPES = {
    "model.layers.0.wide": (30, 70),
    "model.layers.0.tall": (90, 20),
    "model.layers.1.square": (40, 40),
    "model.layers.1.experts": (3, 12, 15),
    "model.layers.1.conv": (2, 3, 4, 5),
    "model.layers.1.column": (25, 1),
    "model.norm": (33,),
    "model.scale": (),
    "model.none": (0, 4),
}

# The rule for matrices, and that for other tensors.
MEAN, WEIGHTED = reference.mean_of_weighted, reference.weighted_mean
CASES: dict[str, tuple[str, dict[str, float], Any, Any]] = {
    "tsv": ("tsv", {}, reference.tsv, MEAN),
    "iso_c": ("iso_c", {}, reference.iso_c, MEAN),
    "iso_cts": ("iso_cts", {}, reference.iso_cts, MEAN),
    "iso_cts, half": (
        "iso_cts",
        {"common_space_fraction": 0.5},
        partial(reference.iso_cts, common=0.5),
        MEAN,
    ),
    "actmat": ("actmat", {}, partial(reference.nearest, normalised=False), WEIGHTED),
    "wudi": ("wudi", {}, partial(reference.nearest, normalised=True), WEIGHTED),
    "wudi, ridge": (
        "wudi",
        {"ridge": 0.1},
        partial(reference.nearest, normalised=True, ridge=0.1),
        WEIGHTED,
    ),
    "actmat, no ridge": (
        "actmat",
        {"ridge": 0.0},
        partial(reference.nearest, normalised=False, ridge=0.0),
        WEIGHTED,
    ),
}
NAMES = ("tsv", "iso_c", "iso_cts", "actmat", "wudi")


def family(seed: int, experts: int) -> list[State]:
    """A base and experts that share some of what they changed."""
    draw = np.random.default_rng(seed)
    base = {name: draw.standard_normal(shape) for name, shape in SHAPES.items()}
    shared = {name: 0.2 * draw.standard_normal(shape) for name, shape in SHAPES.items()}
    return [base] + [
        {
            name: np.asarray(base[name] + shared[name] + 0.3 * draw.standard_normal(shape))
            for name, shape in SHAPES.items()
        }
        for _ in range(experts)
    ]


def merged(
    method: str, states: Sequence[State], weights: Sequence[float], parameters: dict[str, Any]
) -> State:
    """The merge of ``states``, the base first, in float64."""
    names = ["base", *(f"e{place}" for place in range(len(states) - 1))]
    data = {
        "merge_method": method,
        "base_model": "base",
        "models": [
            {"model": name, "parameters": {"weight": weight}}
            for name, weight in zip(names[1:], weights, strict=True)
        ],
        "parameters": parameters,
    }
    out = {name: np.full(value.shape, np.nan) for name, value in states[0].items()}
    models: Any = dict(zip(names, states, strict=True))
    sensmerge.merge_into(out, Recipe.from_dict(data), models)
    return out


def expected(case: str, states: Sequence[State], weights: Sequence[float], scale: float) -> State:
    _, _, rule, other = CASES[case]
    found = {}
    for name, base in states[0].items():
        experts = [state[name] for state in states[1:]]
        whole = reference.by_matrix(rule, other, base, experts, weights)
        found[name] = np.asarray(base + scale * (whole - base))
    return found


def close(found: State, wanted: State, tolerance: float = 1e-8) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 1.5), (1.0, 0.7, 1.3, 0.0)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_merges_are_the_references(case: str, weights: tuple[float, ...]) -> None:
    states = family(len(weights), len(weights))
    method, parameters, *_ = CASES[case]
    found = merged(method, states, weights, parameters | {"lambda": 0.8})
    close(found, expected(case, states, weights, 0.8))


def test_negative_weights_turn_task_vectors_round() -> None:
    states, weights = family(5, 3), (1.0, -0.5, 0.8)
    for case in ("tsv", "iso_c", "iso_cts"):
        close(merged(case, states, weights, {}), expected(case, states, weights, 1.0))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 14),
    st.integers(2, 14),
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.integers(0, 10_000),
    st.sampled_from(sorted(CASES)),
)
def test_task_vectors_of_any_rank(
    rows: int, columns: int, ranks: list[int], seed: int, case: str
) -> None:
    """Ranks from 0 on: singular values that count as 0 take no part in any method."""
    draw = np.random.default_rng(seed)
    # A model of zeros alone would be refused.
    states: list[State] = [{"w": np.zeros((rows, columns)), "v": np.ones(2)}]
    for rank in ranks:
        a, b = draw.standard_normal((rank, columns)), draw.standard_normal((rows, rank))
        states.append({"w": np.asarray(b @ a), "v": np.ones(2)})
    method, parameters, *_ = CASES[case]
    weights = [1.0] * len(ranks)
    found = merged(method, states, weights, dict(parameters))
    close(found, expected(case, states, weights, 1.0), 1e-5 if "no ridge" in case else 1e-7)


def test_equal_experts_merge_to_themselves() -> None:
    base, expert = family(2, 1)
    for case in ("actmat", "wudi"):
        found = merged(case, [base, expert, expert], (1.0, 1.0), {"ridge": 0.0})
        close(found, expert, 1e-7)
    # Half of the triplets of each: one expert's best approximation of half its rank.
    found = merged("tsv", [base, expert, expert], (1.0, 1.0), {})
    left, values, right = np.linalg.svd(
        expert["model.layers.1.square"] - base["model.layers.1.square"]
    )
    half = left[:, :20] * values[:20] @ right[:20]
    np.testing.assert_allclose(
        found["model.layers.1.square"] - base["model.layers.1.square"], half, atol=1e-9
    )


def test_experts_that_share_nothing_are_kept_whole() -> None:
    """The idea of each method: what does not interfere is merged without loss."""
    base, one, two = (np.zeros((6, 8)) for _ in range(3))
    draw = np.random.default_rng(0)
    one[:3, :4] = draw.standard_normal((3, 4))
    two[3:, 4:] = draw.standard_normal((3, 4))
    states = [{"w": base}, {"w": one}, {"w": two}]
    for method, parameters in (("tsv", {}), ("actmat", {"ridge": 0.0}), ("wudi", {"ridge": 0.0})):
        found = merged(method, states, (1.0, 1.0), dict(parameters))
        np.testing.assert_allclose(found["w"], one + two, atol=1e-9, err_msg=method)


def test_a_tensor_can_be_left_to_the_rule_for_others() -> None:
    states = family(3, 2)
    switch = [{"filter": "tall", "value": 0}, {"value": 1}]
    found = merged("tsv", states, (1.0, 1.0), {"matrices": switch})
    wanted = expected("tsv", states, (1.0, 1.0), 1.0)
    name = "model.layers.0.tall"
    wanted[name] = np.asarray((states[1][name] + states[2][name]) / 2)
    close(found, wanted)
    with pytest.raises(InputError, match=r"parameters\.matrices.*0\.5.*neither 0 nor 1"):
        merged("tsv", states, (1.0, 1.0), {"matrices": 0.5})


@pytest.mark.parametrize("method", ["actmat", "wudi"])
def test_a_mean_takes_no_negative_weights(method: str) -> None:
    with pytest.raises(InputError, match=r"weight.*at least 0"):
        merged(method, family(3, 2), (1.0, -1.0), {})


@pytest.mark.parametrize("method", NAMES)
def test_the_registry_says_what_they_can(method: str) -> None:
    found = methods.find(method)
    assert found is not None
    assert found.parameter("weight") is not None
    assert not found.learnable


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "infinite entries")])
@pytest.mark.parametrize("place", [0, 2], ids=["base", "expert"])
@pytest.mark.parametrize("method", NAMES)
def test_what_is_not_finite_is_refused_by_name(
    method: str, place: int, value: float, what: str
) -> None:
    states = family(4, 2)
    states[place]["model.layers.1.square"][7, 9] = value
    model = "base" if place == 0 else "e1"
    with pytest.raises(
        InputError, match=rf"{model}: tensor 'model\.layers\.1\.square': holds {what}"
    ):
        merged(method, states, (1.0, 1.0), {})


def saved(folder: Path, states: Sequence[dict[str, Any]], dtype: str = "float32") -> None:
    """Write the states, the base first."""
    import torch
    from safetensors.torch import save_file

    names = ["base", *(f"e{place}" for place in range(len(states) - 1))]
    for name, state in zip(names, states, strict=True):
        (folder / name).mkdir(parents=True)
        stored = {
            key: torch.tensor(value).to(getattr(torch, dtype)) for key, value in state.items()
        }
        save_file(stored, folder / name / "model.safetensors", metadata={"format": "pt"})


def recipe_of(method: str, experts: int) -> dict[str, Any]:
    models = [{"model": f"e{place}"} for place in range(experts)]
    return {"merge_method": method, "base_model": "base", "models": models}


MERGES = """
import hashlib, json, sys
from pathlib import Path
import sensmerge

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
digests = {}
for name, recipe in json.load(sys.stdin).items():
    recipe = sensmerge.Recipe.from_dict(recipe, folder=folder)
    sensmerge.merge(recipe, out, threads=2, progress=False, sync=False, overwrite=True)
    digests[name] = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
print(json.dumps(digests))
"""


def test_neither_threads_nor_chunks_nor_levels_change_a_byte(tmp_path: Path) -> None:
    """In float64, where a difference in the last bit would show."""
    # Beside small matrices one that is large enough for the blocked algorithms.
    states = family(6, 3)
    for place, state in enumerate(states):
        state["model.layers.2.large"] = np.random.default_rng(place).standard_normal((310, 270))
    saved(tmp_path, states, "float64")
    recipes = {method: recipe_of(method, 3) for method in NAMES}
    first = {}
    for method, data in recipes.items():
        recipe, found = Recipe.from_dict(data, folder=tmp_path), set()
        for threads, chunk_bytes in itertools.product([1, 2, 3, 8], [8192, 1 << 20]):
            sensmerge.merge(
                recipe, tmp_path / "out", threads=threads, chunk_bytes=chunk_bytes,
                progress=False, sync=False, overwrite=True,
            )  # fmt: skip
            content = (tmp_path / "out" / "model.safetensors").read_bytes()
            found.add(hashlib.sha256(content).hexdigest())
        assert len(found) == 1, method
        first[method] = found.pop()
    for level in ("baseline", "avx2", "avx512"):
        child = subprocess.run(
            [sys.executable, "-c", MERGES, str(tmp_path), str(tmp_path / "out")],
            input=json.dumps(recipes), capture_output=True, text=True, check=True,
            env=os.environ | {"SENSMERGE_SIMD": level},
        )  # fmt: skip
        assert json.loads(child.stdout) == first, level


def test_memory_and_disk_give_the_same(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    states = family(7, 2)
    saved(tmp_path, states, "float64")
    recipe = Recipe.from_dict(recipe_of("tsv", 2), folder=tmp_path)
    sensmerge.merge(recipe, tmp_path / "out", progress=False)
    on_disk = load_file(tmp_path / "out" / "model.safetensors")
    in_memory = merged("tsv", states, (1.0, 1.0), {})
    for name, value in in_memory.items():
        np.testing.assert_array_equal(on_disk[name], value, err_msg=name)


# The limit is on data memory; threads are started before it.
LIMITED = """
import resource
import sys
from pathlib import Path

import sensmerge

folder, margin = Path(sys.argv[1]), int(sys.argv[2])
recipe = sensmerge.Recipe.load(folder / "recipe.yaml")
small = sensmerge.Recipe.load(folder / "small" / "recipe.yaml")
sensmerge.merge(small, folder / "first", threads=2, progress=False, sync=False)
status = Path("/proc/self/status").read_text().splitlines()
used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
resource.setrlimit(resource.RLIMIT_DATA, (used + margin, resource.RLIM_INFINITY))
sensmerge.merge(recipe, folder / "out", threads=1, progress=False, sync=False)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("method", NAMES)
def test_a_merge_takes_no_more_memory_than_the_plan_says(tmp_path: Path, method: str) -> None:
    draw = np.random.default_rng(0)
    for folder, shape in ((tmp_path, (1400, 900)), (tmp_path / "small", (30, 20))):
        saved(folder, [{"w": 0.1 * draw.standard_normal(shape)} for _ in range(3)])
        text = json.dumps(recipe_of(method, 2))
        (folder / "recipe.yaml").write_text(text)
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    [note] = [note for note in plan(recipe).notes if "whole matrices" in note]
    said = re.search(r"'w' takes ([\d.]+) MB", note)
    assert said is not None, note
    told = float(said[1]) * 1e6
    assert 2 * 8 * 1400 * 900 < told < 16 * 8 * 1400 * 900
    # Beside it: blocks and the buffers of a thread.
    for margin, fits in ((told + 12e6, True), (0.5 * told, False)):
        run = subprocess.run(
            [sys.executable, "-c", LIMITED, str(tmp_path), str(int(margin))],
            capture_output=True, text=True, check=False,
            # A trace of a failed allocation allocates.
            env=os.environ | {"RUST_BACKTRACE": "0"},
        )  # fmt: skip
        assert (run.returncode == 0) == fits, run.stderr
        for made in ("out", "first"):
            shutil.rmtree(tmp_path / made, ignore_errors=True)


def test_adapters_are_merged_and_noted(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    name = "model.layers.0.mlp.up_proj"
    saved(tmp_path, [{f"{name}.weight": draw.standard_normal((24, 16))}], "float64")
    low, base = [], None
    from safetensors.numpy import load_file

    base = load_file(tmp_path / "base" / "model.safetensors")[f"{name}.weight"]
    for place in range(2):
        written = Written()
        written.factors(draw, name, 24, 16, 4)
        written.save(tmp_path / f"adapter{place}")
        a, b = (written.tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        low.append(base + 2.0 * b @ a)
    models = [{"model": f"base+adapter{place}"} for place in range(2)]
    for method, rule in (("tsv", reference.tsv), ("iso_c", reference.iso_c)):
        data = {"merge_method": method, "base_model": "base", "models": models}
        recipe = Recipe.from_dict(data, folder=tmp_path)
        notes = [note for note in plan(recipe).notes if "LoRA adapters" in note]
        assert len(notes) == (method == "tsv")
        sensmerge.merge(recipe, tmp_path / method, progress=False)
        found = load_file(tmp_path / method / "model.safetensors")[f"{name}.weight"]
        wanted = reference.by_matrix(rule, MEAN, base, low, (1.0, 1.0))
        np.testing.assert_allclose(found, wanted, atol=1e-8, err_msg=method)


@pytest.mark.parametrize("scheme", [fp8_blocks((16, 24)), int4()], ids=["fp8", "int4"])
def test_quantised_models_are_read_and_written(tmp_path: Path, scheme: Scheme) -> None:
    """Matrices whose sides are no multiples of a tile's, or of a block's."""
    import torch

    name = "model.layers.0.mlp.up_proj.weight"
    draw = torch.Generator().manual_seed(0)
    meant = {}
    for model in ("base", "e0", "e1"):
        weight = (0.02 * torch.randn(301, 96, generator=draw)).bfloat16()
        write(tmp_path / model, {name: weight}, None)
        meant[model] = quantise(tmp_path / model, scheme)[name].double().numpy()
    data = recipe_of("tsv", 2)
    recipe = Recipe.from_dict(data, folder=tmp_path)
    wide = Recipe.from_dict(data | {"out_dtype": "float32"}, folder=tmp_path)
    wanted = reference.by_matrix(
        reference.tsv, MEAN, meant["base"], [meant["e0"], meant["e1"]], (1.0, 1.0)
    )
    exact = sensmerge.merge_tensors(wide)[name]
    np.testing.assert_allclose(exact.double().numpy(), wanted, rtol=1e-6, atol=1e-8)
    sensmerge.merge(recipe, tmp_path / "out", progress=False)
    stored = {key.removeprefix(name): part for key, part in read(tmp_path / "out").items()}
    coded = scheme.value(scheme.parts(exact))
    found = scheme.value(stored)
    # Rounded from float64 there, from float32 here: scales differ in their last bit, and a few
    # codes by one step.
    differing = ~torch.isclose(found, coded, rtol=1e-6, atol=0.0)
    assert differing.double().mean() < 1e-3
    torch.testing.assert_close(found, coded, rtol=0.3, atol=0.02)
