"""Two models compared: the core's sums against NumPy in float64, and what is shown of them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import sensmerge
from families import Family, llama_family
from sensmerge import InputError, _core
from sensmerge.comparison.differences import Comparison, Sums, diff
from sensmerge.models.layers import layer_of
from test_bad_input import run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return llama_family(tmp_path_factory.mktemp("models"), experts=2, layers=2, dtype="bfloat16")


def oracle(a: NDArray[Any], b: NDArray[Any], base: NDArray[Any] | None = None) -> dict[str, float]:
    """The measures of some entries, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    difference, changed = b - a, (a != b) & ~(np.isnan(a) & np.isnan(b))
    if base is not None:
        a, b = a - base, b - base
    both = (a != 0) & (b != 0)
    same = both & (np.sign(a) == np.sign(b))
    return {
        "changed_share": float(changed.mean()),
        "relative_l2": float(np.linalg.norm(difference) / np.linalg.norm(a)),
        "cosine": float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))),
        "largest": float(np.abs(difference).max()),
        "sign_agreement": float(same.sum() / both.sum()),
    }


def flat(folder: Path) -> dict[str, NDArray[Any]]:
    path = folder / "model.safetensors" if folder.is_dir() else folder
    return {name: tensor.double().numpy().ravel() for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("with_base", [False, True])
def test_every_tensor_and_layer_against_numpy(models: Family, with_base: bool) -> None:
    base, a, b = (models.folder / name for name in ("base", "e0", "e1"))
    found = diff(a, b, base if with_base else None, progress=False)
    values = [flat(folder) for folder in (a, b, base)]

    def expected(names: list[str]) -> dict[str, float]:
        parts = [np.concatenate([each[name] for name in names]) for each in values]
        return oracle(parts[0], parts[1], parts[2] if with_base else None)

    assert set(found.tensors) == set(values[0])
    for name, sums in found.tensors.items():
        assert sums.measures() == pytest.approx(expected([name]), rel=1e-12)
        assert sums.entries == values[0][name].size
    layers = found.layers
    assert list(layers)[:2] == ["model.layers.0", "model.layers.1"]
    for layer, sums in layers.items():
        names = [name for name in values[0] if layer_of(name) == layer]
        assert sums.measures() == pytest.approx(expected(names), rel=1e-12)
    assert found.whole.measures() == pytest.approx(expected(list(values[0])), rel=1e-12)
    assert found.notes == []


# Exact in every dtype; zeros and equal ones are frequent.
numbers = st.one_of(st.integers(-2, 2), st.integers(-2000, 2000)).map(lambda value: value / 64)


@given(
    rows=st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=12),
    repeats=st.integers(1, 300),
    dtypes=st.tuples(*[st.sampled_from([torch.float16, torch.float32, torch.float64])] * 3),
    threads=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None)
def test_any_entries_and_dtypes(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[float, float, float]],
    repeats: int,
    dtypes: tuple[torch.dtype, ...],
    threads: int,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    values = np.tile(np.array(rows), (repeats, 1)).T
    opened = []
    for place, (entries, dtype) in enumerate(zip(values, dtypes, strict=True)):
        path = folder / f"{place}.safetensors"
        save_file({"w": torch.tensor(entries).to(dtype)}, path)
        opened.append(_core.Checkpoint(str(path)))
    a, b, base = values
    for third, x, y in ((None, a, b), (opened[2], a - base, b - base)):
        (found,) = _core.differences(opened[0], opened[1], third, ["w"], threads=threads)
        assert found.entries == a.size
        assert found.changed == (a != b).sum()
        both = (x != 0) & (y != 0)
        assert found.signed == both.sum()
        assert found.agreeing == (both & ((x > 0) == (y > 0))).sum()
        assert found.largest == np.abs(b - a).max()
        for sum_, terms in (
            (found.squared_difference, (b - a) ** 2),
            (found.squared_a, x * x),
            (found.squared_b, y * y),
            (found.product, x * y),
        ):
            assert sum_ == pytest.approx(terms.sum(), rel=1e-12, abs=1e-12 * np.abs(terms).sum())


def test_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name in ("a", "b"):
        save_file({"w": torch.randn(1_000_003)}, tmp_path / f"{name}.safetensors")
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    one, three = (diff(*files, threads=threads, progress=False) for threads in (1, 3))
    assert one == three


def test_equal_models_and_empty_ones(tmp_path: Path) -> None:
    tensors = {"w": torch.tensor([1.0, -0.0, float("nan")]), "none": torch.zeros(0)}
    save_file(tensors, tmp_path / "a.safetensors")
    save_file(tensors | {"w": torch.tensor([1.0, 0.0, float("nan")])}, tmp_path / "b.safetensors")
    found = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors", progress=False)
    assert found.tensors["w"].changed == 0
    assert found.tensors["w"].largest == 0
    assert math.isnan(found.tensors["w"].relative)
    assert math.isnan(found.tensors["none"].changed_share)
    assert json.loads(found.to_json())["tensors"]["none"]["cosine"] is None


def test_what_is_not_in_both_is_listed(tmp_path: Path) -> None:
    a = {
        "same": torch.ones(2),
        "mine": torch.ones(2),
        "shape": torch.ones(2),
        "ids": torch.arange(2),
    }
    b = {
        "same": torch.ones(2),
        "yours": torch.ones(2),
        "shape": torch.ones(3),
        "ids": torch.arange(2),
    }
    for name, tensors in (("a", a), ("b", b)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    one, other = (str(tmp_path / f"{name}.safetensors") for name in "ab")
    found = sensmerge.diff(one, other, progress=False)
    assert list(found.tensors) == ["same"]
    assert found.notes == [
        "'ids' is not of floats in all of them: not compared",
        f"'mine' is not in {other}: not compared",
        f"'shape' has other shapes ([2] in {one}, [3] in {other}): not compared",
        f"'yours' is not in {one}: not compared",
    ]
    save_file({"x": torch.ones(1)}, tmp_path / "c.safetensors")
    with pytest.raises(InputError, match="have no tensor in common: 'ids' is not in"):
        sensmerge.diff(one, tmp_path / "c.safetensors", progress=False)


def test_the_command(models: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, a, b = (str(models.folder / name) for name in ("base", "e0", "e1"))
    data, page = tmp_path / "diff.json", tmp_path / "diff.html"
    arguments = ["diff", a, b, "--base", base, "--json", str(data), "-o", str(page)]
    assert run(*arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{b} against {a}, as task vectors of {base}\nlayer ")
    assert "\nmodel.layers.1 " in said
    assert "self_attn" not in said
    numbers = json.loads(data.read_text())
    assert -0.2 < numbers["whole"]["cosine"] < 0.2
    assert f"{numbers['whole']['cosine']:.5f}" in said.splitlines()[-3]
    assert set(numbers["tensors"]["lm_head.weight"]) >= {"changed_share", "squared_difference"}

    text = page.read_text()
    assert text.count("<svg ") == 4
    assert "mlp.gate_proj.weight" in text
    assert not re.search(r"<script|(?:src|href)=\"(?!#|data:)", text)
    assert run(*arguments[:3], "--tensors") == 0
    assert "model.layers.0.self_attn.q_proj.weight" in capsys.readouterr().out
    assert run("diff", a, str(tmp_path / "none")) == 2


def test_names_in_a_page_are_escaped(tmp_path: Path) -> None:
    from sensmerge.report import write_comparison

    sums = Sums(4, 2, 4, 3, 1.0, 2.0, 3.0, 4.0, 1.0)
    name = "<script>alert(1)</script>"
    comparison = Comparison(name, name, name, {name: sums}, [name])
    write_comparison(comparison, tmp_path / "page.html")
    first = (tmp_path / "page.html").read_text()
    assert "<script>" not in first
    write_comparison(comparison, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == first
