"""Adapters merged into one: against full matrices in float64, and as PEFT and our reader see it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

import sensmerge
from adapters import PREFIX, Written, scale_of
from families import tensor_family
from sensmerge import InputError, Recipe, reference
from sensmerge.calibration.record import Calibration, Expert, TaskRecord
from sensmerge.models import open_models
from sensmerge.recipe import methods

Matrix = NDArray[np.float64]
Deltas = dict[str, Matrix]

BLOCKS = 4
SHAPES: dict[str, tuple[int, int]] = {"model.embed_tokens.weight": (50, 20)} | {
    f"model.layers.{block}.{part}.weight": shape
    for block in range(BLOCKS)
    for part, shape in (("q_proj", (12, 20)), ("o_proj", (24, 24)), ("down_proj", (20, 9)))
}
WEIGHTS = [0.7, 1.5, 0.4]


def module(block: int, part: str) -> str:
    return f"model.layers.{block}.{part}"


class Family:
    """A base and three adapters of different ranks and scales, some of which lack modules."""

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        self.folder = folder
        self.base = tensor_family(folder, experts=0, dtype=dtype, shapes=SHAPES)[0]
        draw = np.random.default_rng(3)
        configs: list[dict[str, Any]] = [
            {"r": 3, "lora_alpha": 6},
            {"r": 5, "lora_alpha": 7, "use_rslora": True},
            {"r": 2, "lora_alpha": 1},
        ]
        self.written = []
        for place, config in enumerate(configs):
            written = Written(config=config)
            for block in range(1, BLOCKS):
                for part in ("q_proj", "o_proj", "down_proj"):
                    if (place, block, part) not in ((1, 2, "q_proj"), (2, 3, "down_proj")):
                        rows, columns = SHAPES[f"{module(block, part)}.weight"]
                        written.factors(draw, module(block, part), rows, columns, config["r"])
            if place != 1:
                name = "model.embed_tokens"
                written.factors(draw, name, 20, 50, config["r"], embedding=True)
            written.save(folder / f"l{place}", dtype)
            self.written.append(written)

    def delta(self, place: int) -> Deltas:
        """The change that an adapter makes to every tensor that any adapter changes."""
        written, found = self.written[place], dict[str, Matrix]()
        for name in self.changed:
            inner = f"{PREFIX}{name.removesuffix('.weight')}"
            found[name] = np.zeros(SHAPES[name])
            for a, b in (("A.weight", "B.weight"), ("embedding_A", "embedding_B")):
                if (first := written.tensors.get(f"{inner}.lora_{a}")) is not None:
                    product = written.tensors[f"{inner}.lora_{b}"] @ first
                    product = product.T if a.startswith("embedding") else product
                    found[name] = scale_of(written.config) * product
        return found

    @property
    def changed(self) -> list[str]:
        return [name for name in SHAPES if "layers.0." not in name]

    def recipe(self, method: str, **keys: Any) -> dict[str, Any]:
        models = [
            {"model": f"base+l{place}", "parameters": {"weight": WEIGHTS[place]}}
            for place in range(3)
        ]
        return {"merge_method": method, "base_model": "base", "models": models} | keys

    def merge(self, data: dict[str, Any], rank: int | None = None, **keys: Any) -> Deltas:
        recipe = Recipe.from_dict(data, folder=self.folder)
        keys = {"progress": False, "overwrite": True} | keys
        self.result = sensmerge.merge_lora(recipe, self.folder / "out", rank, **keys)
        return product(self.folder / "out")


def product(folder: Path) -> Deltas:
    """What an adapter adds to every weight, by its files alone."""
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    found: Deltas = {}
    for name, a in tensors.items():
        if ".lora_A" in name or ".lora_embedding_A" in name:
            b = tensors[name.replace("_A", "_B")]
            inner = name.removeprefix(PREFIX).partition(".lora_")[0]
            rank = config["rank_pattern"].get(inner, config["r"])
            alpha = config["alpha_pattern"].get(inner, config["lora_alpha"])
            assert len(a) == rank
            whole = alpha / rank * b.astype(np.float64) @ a.astype(np.float64)
            found[f"{inner}.weight"] = whole.T if "embedding" in name else whole
    return found


def total(name: str, weights: Sequence[float], deltas: list[Deltas]) -> Matrix:
    """The weighted sum of the changes of a tensor."""
    terms = zip(weights, deltas, strict=True)
    return sum((weight * delta[name] for weight, delta in terms), np.zeros(SHAPES[name]))


def check(found: Deltas, expected: Deltas, tolerance: float = 1e-6) -> None:
    assert found.keys() == {name for name, each in expected.items() if each.any()}
    for name, each in found.items():
        error = np.abs(each - expected[name]).max()
        assert error <= tolerance * np.abs(expected[name]).max(), (name, error)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("normalize", [False, True])
def test_sums_are_those_of_full_matrices(family: Family, normalize: bool) -> None:
    parameters = {"normalize": normalize, "lambda": 0.8}
    found = family.merge(family.recipe("task_arithmetic", parameters=parameters))
    deltas = [family.delta(place) for place in range(3)]
    scale = 0.8 / (sum(WEIGHTS) if normalize else 1)
    expected = {name: scale * total(name, WEIGHTS, deltas) for name in family.changed}
    check(found, expected)
    assert family.result.ranks["model.layers.1.o_proj"] == 10
    assert family.result.ranks["model.layers.1.down_proj"] == 9
    assert family.result.ranks["model.layers.2.q_proj"] == 5
    assert family.result.kept == 1
    assert not family.result.notes


@pytest.mark.parametrize("method", ["linear", "wsm", "model_stock", "iso_c", "nuslerp"])
def test_what_sees_no_entries_is_as_if_models_were_merged(family: Family, method: str) -> None:
    # Such methods know lengths, angles and singular values, which are the same in Core Space.
    data = family.recipe(method, dtype="float32")
    if method == "nuslerp":
        data["models"] = data["models"][:2]
    found = family.merge(data)
    whole = sensmerge.merge_tensors(Recipe.from_dict(data, folder=family.folder))
    for name, base in family.base.items():
        changed = np.asarray(whole[name], np.float64) - base
        expected = found.get(name, np.zeros(base.shape))
        np.testing.assert_allclose(changed, expected, rtol=0, atol=3e-7, err_msg=name)


def core_space(deltas: list[Deltas], name: str) -> tuple[Matrix, Matrix]:
    """Bases of all columns and of all rows, from full matrices; as many as have values above 0."""
    u, s, _ = np.linalg.svd(np.hstack([delta[name] for delta in deltas]))
    _, t, v = np.linalg.svd(np.vstack([delta[name] for delta in deltas]))
    return u[:, : np.sum(s > 1e-9 * s[0])], v[: np.sum(t > 1e-9 * t[0])].T


@pytest.mark.parametrize("semantics", ["mergekit", "original"])
@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "breadcrumbs"])
def test_methods_see_the_entries_of_core_space(family: Family, method: str, semantics: str) -> None:
    densities = [0.4, 0.7, 0.9]
    data = family.recipe(method, seed=5, semantics=semantics, parameters={"lambda": 0.9})
    for model, density in zip(data["models"], densities, strict=True):
        model["parameters"]["density"] = density
    found = family.merge(data)
    deltas = [family.delta(place) for place in range(3)]
    spaces = {name: core_space(deltas, name) for name in family.changed}
    cores = [{name: u.T @ delta[name] @ v for name, (u, v) in spaces.items()} for delta in deltas]
    merged = reference.merge(
        method,
        semantics,
        {name: np.zeros_like(core) for name, core in cores[0].items()},
        cores,
        weights=dict.fromkeys(family.changed, WEIGHTS),
        densities=densities,
        gamma=0.01,
        lambda_=0.9,
        seed=5,
    )
    check(found, {name: u @ merged[name] @ v.T for name, (u, v) in spaces.items()})


def test_neither_the_order_nor_the_factors_matter(family: Family, tmp_path: Path) -> None:
    data = family.recipe("ties", parameters={"density": 0.5})
    expected = family.merge(data)
    check(family.merge(data | {"models": data["models"][::-1]}), expected)
    # The same changes, written as other products and with other scales.
    draw = np.random.default_rng(0)
    for place, written in enumerate(family.written):
        rank = written.config["r"]
        other = Written(config={"r": rank, "lora_alpha": 1})
        between = draw.standard_normal((rank, rank)) + 3 * np.eye(rank)
        for name, value in written.tensors.items():
            if "_A" in name:
                other.tensors[name] = between @ value
            else:
                scale = rank * scale_of(written.config)
                other.tensors[name] = scale * value @ np.linalg.inv(between)
        other.save(tmp_path / f"l{place}")
    (tmp_path / "base").symlink_to(family.folder / "base")
    recipe = Recipe.from_dict(data, folder=tmp_path)
    sensmerge.merge_lora(recipe, tmp_path / "out", progress=False)
    check(product(tmp_path / "out"), expected, 1e-5)


def test_rounding_errors_elect_no_signs(tmp_path: Path) -> None:
    # What one adapter changes is orthogonal to what the other does: every entry of Core Space is
    # one's alone, and TIES keeps it whole. An error of any sign beside it would halve it.
    name = "model.layers.0.q_proj"
    tensor_family(tmp_path, experts=0, dtype="float32", shapes={f"{name}.weight": (12, 20)})
    draw = np.random.default_rng(0)
    rows, columns = (np.linalg.qr(draw.standard_normal((side, 8)))[0] for side in (12, 20))
    expected = np.zeros((12, 20))
    for place in range(2):
        written, part = Written(), slice(4 * place, 4 * place + 4)
        b = rows[:, part] @ draw.standard_normal((4, 4))
        a = draw.standard_normal((4, 4)) @ columns[:, part].T
        written.tensors |= {
            f"{PREFIX}{name}.lora_{k}.weight": each for k, each in zip("AB", (a, b), strict=True)
        }
        written.save(tmp_path / f"l{place}", "float64")
        expected += 2 * b @ a
    models = [{"model": f"base+l{place}"} for place in range(2)]
    data = {"merge_method": "ties", "base_model": "base", "models": models}
    sensmerge.merge_lora(Recipe.from_dict(data, folder=tmp_path), tmp_path / "out", progress=False)
    check(product(tmp_path / "out"), {f"{name}.weight": expected})


@pytest.mark.parametrize("rank", [1, 4])
def test_a_smaller_rank_is_the_best_of_that_rank(family: Family, rank: int) -> None:
    data = family.recipe("task_arithmetic")
    whole = family.merge(data)
    found = family.merge(data, rank)
    energy = kept = 0.0
    for name, full in whole.items():
        u, s, v = np.linalg.svd(full)
        check({name: found[name]}, {name: (u[:, :rank] * s[:rank]) @ v[:rank]})
        energy, kept = energy + float((s**2).sum()), kept + float((s[:rank] ** 2).sum())
    assert family.result.kept == pytest.approx(kept / energy, rel=1e-6)
    (note,) = family.result.notes
    assert note.startswith(f"rank: {rank} keeps {100 * kept / energy:.4g} % of the merged change's")
    assert set(family.result.ranks.values()) == {rank}


def test_numbers_by_depth_and_name_are_those_of_the_model(family: Family) -> None:
    # The first block has no adapter, and is still the first one.
    data = family.recipe("task_arithmetic")
    data["models"][0]["parameters"]["weight"] = [0, 3]
    data["models"][1]["parameters"]["weight"] = [
        {"filter": "o_proj", "value": 2},
        {"filter": "proj", "value": 0.5},
    ]
    found = family.merge(data)
    deltas = [family.delta(place) for place in range(3)]
    expected = {}
    for name in family.changed:
        block = int(name.split(".")[2]) if "layers" in name else 0
        by_name = 2 if "o_proj" in name else 0.5 if "proj" in name else 1
        weights = [block, by_name, WEIGHTS[2]]
        expected[name] = total(name, weights, deltas)
    check(found, expected)


def test_coefficients_multiply_the_weights(family: Family) -> None:
    data = family.recipe("task_arithmetic", sensitivity={"mode": "full", "temperature": 0.5})
    for place, model in enumerate(data["models"]):
        model["calibration"] = f"t{place}.jsonl"
    recipe = Recipe.from_dict(data, folder=family.folder)
    blocks = [f"model.layers.{block}" for block in range(BLOCKS)]
    draw = np.random.default_rng(0)
    task = TaskRecord("t", 1, [0], 1, 0, 1, "sha256:0", 512)
    calibration = Calibration(
        base="base",
        experts=[
            Expert(model.name, model.fingerprint(), 1, 1.0, task)
            for model in open_models(recipe).experts
        ],
        layers=blocks,
        sensitivity=draw.random((3, BLOCKS)) + 0.2,
        outside_layers=[],
        outside_sensitivity=np.zeros((3, 0)),
        order=blocks,
        alignment=draw.random((3, 3)) * (1 - np.eye(3)),
        options={},
    )
    found = family.merge(data, calibration=calibration)
    scales = sensmerge.coefficients(calibration, recipe)
    deltas = [family.delta(place) for place in range(3)]
    expected = {}
    for name in family.changed:
        block = ".".join(name.split(".")[:3]) if "layers" in name else "model.embed_tokens"
        weights = [w * k for w, k in zip(WEIGHTS, scales.scale_of(block), strict=True)]
        expected[name] = total(name, weights, deltas)
    check(found, expected)
    with pytest.raises(InputError, match="the recipe has a sensitivity section: give a calib"):
        family.merge(data)
    plain = family.recipe("task_arithmetic")
    family.merge(plain, calibration=calibration)
    assert any("the calibration is not used" in note for note in family.result.notes)


def test_stacked_adapters_and_a_base_with_one(family: Family) -> None:
    deltas = [family.delta(place) for place in range(3)]
    data = family.recipe("task_arithmetic")
    # The base may be listed too, and names may be written in mergekit's other form.
    other: dict[str, Any] = {"model": {"model": {"path": "base"}, "lora": "l2"}}
    other["parameters"] = {"weight": 2}
    data["models"] = [{"model": "base+l0+l1"}, {"model": "base"}, other]
    found = family.merge(data)
    first, second, third = deltas
    check(found, {name: first[name] + second[name] + 2 * third[name] for name in first})
    data["base_model"] = "base+l0"
    data["models"] = [{"model": "base+l0+l1"}, {"model": "base+l0+l2"}]
    check(family.merge(data), {name: second[name] + third[name] for name in first})
    (note,) = family.result.notes
    assert note.startswith("the merged adapter is for base+l0, whose own adapters are not in it")


def test_every_method_is_merged_or_refused_with_the_reason(family: Family) -> None:
    reasons: dict[str, str] = {}
    for name in methods.own():
        method = methods.find(name)
        assert method is not None
        count = min(3, method.most or 3) - (method.base == "merged" and method.most == 2)
        data = family.recipe(name)
        data["models"] = [{"model": model["model"]} for model in data["models"][:count]]
        if method.parameter("t") is not None:
            data["parameters"] = {"t": 0.5}
        try:
            assert family.merge(data)
        except InputError as error:
            reasons[name] = str(error)
    depending = "depends on the model that they are added to"
    refused = {
        "widen": depending,
        "arcee_fusion": depending,
        "fisher": "needs statistics of whole weights",
        "regmean": "needs statistics of whole weights",
        "slerp": "merges the base itself with the others",
        "karcher": "merges the base itself with the others",
    }
    assert reasons.keys() == refused.keys(), reasons
    for name, reason in refused.items():
        assert f"merge_method: {name} " in reasons[name]
        assert reason in reasons[name]
        assert "`sensmerge merge`" in reasons[name]


def test_means_have_weights_that_add_up_to_one(family: Family) -> None:
    data = family.recipe("linear", parameters={"normalize": False})
    with pytest.raises(InputError, match="unless the models' weights add up to 1"):
        family.merge(data)
    for model, number in zip(data["models"], [0.5, 0.75, -0.25], strict=True):
        model["parameters"]["weight"] = number
    del data["base_model"]
    deltas = [family.delta(place) for place in range(3)]
    check(
        family.merge(data),
        {name: 0.5 * a + 0.75 * deltas[1][name] - 0.25 * deltas[2][name]
         for name, a in deltas[0].items()},
    )  # fmt: skip
    del (slerped := family.recipe("multislerp"))["base_model"]
    with pytest.raises(InputError, match="name the base_model, so that it merges task vectors"):
        family.merge(slerped)


def test_a_module_that_nobody_changes_is_left_out(family: Family, tmp_path: Path) -> None:
    other = Family(tmp_path)
    for place, written in enumerate(other.written):
        for name in written.tensors:
            if "layers.3.o_proj.lora_B" in name or (place == 2 and "q_proj.lora_B" in name):
                written.tensors[name] *= 0
        written.save(tmp_path / f"l{place}")
    found = other.merge(other.recipe("ties", parameters={"density": 0.5}))
    assert "model.layers.3.o_proj.weight" not in found
    assert "model.layers.2.q_proj.weight" in found
    assert all(math.isfinite(each.sum()) for each in found.values())
