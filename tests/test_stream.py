"""A model that is run block by block gives the numbers of one that is run whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sensmerge
import torch_oracle as oracle
from families import Family, llama_family
from sensmerge import Calibration, InputError, Recipe
from sensmerge.calibration import alignment, loading, mapped, sensitivity
from sensmerge.calibration.stream import Stream


def calibrated(family: Family, **options: Any) -> Calibration:
    recipe = Recipe.from_dict(family.recipe(sensitivity={"samples": 3}), folder=family.folder)
    return sensmerge.calibrate(recipe, progress=False, **options)


@pytest.mark.parametrize("by", ["taylor", "fisher"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_layer_is_that_of_the_whole_model(
    tmp_path: Path, dtype: str, tied: bool, by: str
) -> None:
    family = llama_family(tmp_path, experts=1, dtype=dtype, tied=tied)
    source = loading.open_source("e0", tmp_path / "e0", None)
    model = loading.load(source, "stored")
    layers = loading.parameter_layers(model, source.path).of
    samples = oracle.samples_of(family, 0)
    settings: Any = {"expert": "e0", "threads": 1, "advance": lambda _: None, "by": by}
    whole = sensitivity.measure(model, layers, samples, **settings)
    stream = Stream(model, layers)
    streamed = sensitivity.measure(model, layers, samples, stream=stream, **settings)
    assert streamed[0] == pytest.approx(whole[0], rel=1e-6)
    assert streamed[1] == pytest.approx(whole[1], rel=1e-6)

    expected = alignment.states(model, samples, "completion", advance=lambda _: None)
    found = alignment.states_streamed(stream, samples, "completion", advance=lambda _: None)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_samples_that_go_apart_give_what_they_give_together(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=1, tied=True)
    source = loading.open_source("e0", tmp_path / "e0", None)
    model = loading.load(source, "stored")
    layers = loading.parameter_layers(model, source.path).of
    samples = oracle.samples_of(family, 0)
    settings: Any = {"expert": "e0", "threads": 1, "advance": lambda _: None}
    stream = Stream(model, layers)
    together = sensitivity.measure(model, layers, samples, stream=stream, **settings)
    pair = stream.kept_bytes(sum(len(sample.ids) for sample in samples[:2]))
    for most in (0, pair):
        found = sensitivity.measure(model, layers, samples, stream=stream, most=most, **settings)
        assert found == together


@pytest.mark.parametrize("dtype", ["stored", "float32"])
def test_a_calibration_is_the_same_either_way(tmp_path: Path, dtype: str) -> None:
    family = llama_family(tmp_path, experts=2, dtype="bfloat16", tied=True)
    data = family.recipe(sensitivity={"samples": 3, "dtype": dtype})
    recipe = Recipe.from_dict(data, folder=tmp_path)
    whole, streamed = (
        sensmerge.calibrate(recipe, progress=False, memory=memory) for memory in ("whole", "stream")
    )
    np.testing.assert_allclose(streamed.sensitivity, whole.sensitivity, rtol=1e-5)
    np.testing.assert_allclose(streamed.outside_sensitivity, whole.outside_sensitivity, rtol=1e-5)
    np.testing.assert_allclose(streamed.alignment, whole.alignment, rtol=1e-5)
    first, second = (json.loads(found.to_json()) for found in (whole, streamed))
    for data in (first, second):
        for measured in ("sensitivity", "outside", "alignment", "seconds"):
            del data[measured]
    assert first == second


def test_the_memory_and_the_device_are_checked(family: Family) -> None:
    with pytest.raises(InputError, match=r"memory: 'all' is none of auto, whole, stream"):
        calibrated(family, memory="all")
    with pytest.raises(InputError, match="device: 'abacus' cannot be used"):
        calibrated(family, device="abacus")


def test_weights_are_the_files_themselves(tmp_path: Path) -> None:
    llama_family(tmp_path, experts=1, dtype="bfloat16")
    found = mapped.mapped(tmp_path / "e0")
    model = loading.load(loading.open_source("e0", tmp_path / "e0", None), "stored")
    held = {tensor.data_ptr() for tensor in mapped.mapped(tmp_path / "e0").values()}
    # Another mapping of the same files has other addresses: the model's are those of its own.
    assert held.isdisjoint(tensor.data_ptr() for tensor in found.values())
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in maps
        if line.endswith("e0/model.safetensors") and line.split()[1] == "r--s"
    ]
    for name, parameter in model.named_parameters():
        address = parameter.data_ptr()
        assert any(start <= address < end for start, end in ranges), name


def test_what_is_finished_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = llama_family(tmp_path, experts=3)
    expected = calibrated(family)
    loaded: list[str] = []
    load = loading.load

    def counted(source: loading.Source, dtype: str) -> Any:
        loaded.append(source.name)
        if len(loaded) == 3:
            raise KeyboardInterrupt
        return load(source, dtype)

    monkeypatch.setattr(loading, "load", counted)
    file = tmp_path / "calibration.json"
    with pytest.raises(KeyboardInterrupt):
        calibrated(family, keep=file)
    assert not file.exists()
    found = calibrated(family, keep=file)
    # The third expert's sensitivity, and all three for the alignment.
    assert loaded[3:] == ["e2", "e0", "e1", "e2"]
    assert found.to_json().partition('"seconds"')[0] == expected.to_json().partition('"seconds"')[0]


def test_an_expert_that_is_added_is_measured_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = llama_family(tmp_path, experts=3)
    file = tmp_path / "calibration.json"
    data = family.recipe(sensitivity={"samples": 3})
    two = Recipe.from_dict(data | {"models": data["models"][:2]}, folder=tmp_path)
    sensmerge.calibrate(two, progress=False, keep=file).save(file)
    measured: list[str] = []
    measure = sensitivity.measure

    def noted(*arguments: Any, expert: str, **others: Any) -> Any:
        measured.append(expert)
        return measure(*arguments, expert=expert, **others)

    monkeypatch.setattr(sensitivity, "measure", noted)
    found = calibrated(family, keep=file)
    assert measured == ["e2"]
    expected = calibrated(family)
    np.testing.assert_array_equal(found.alignment, expected.alignment)
    np.testing.assert_array_equal(found.sensitivity, expected.sensitivity)


def test_other_samples_or_options_are_measured_anew(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=1)
    file = tmp_path / "calibration.json"
    first = calibrated(family, keep=file)
    first.save(file)
    for options in (
        {"samples": 4},
        {"samples": 3, "dtype": "float32", "positions": "all"},
        {"samples": 3, "measure": "fisher"},
    ):
        recipe = Recipe.from_dict(family.recipe(sensitivity=options), folder=tmp_path)
        found = sensmerge.calibrate(recipe, progress=False, keep=file)
        expected = sensmerge.calibrate(recipe, progress=False)
        np.testing.assert_array_equal(found.sensitivity, expected.sensitivity)
        assert not np.array_equal(found.sensitivity, first.sensitivity)


def test_what_was_kept_before_there_was_a_measure_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = llama_family(tmp_path, experts=1)
    file = tmp_path / "calibration.json"
    expected = calibrated(family, keep=file)
    partial = tmp_path / "calibration.json.partial"
    text = partial.read_text()
    partial.write_text(text.replace('"measure": "taylor", ', ""))
    assert partial.read_text() != text
    monkeypatch.setattr(sensitivity, "measure", None)
    found = calibrated(family, keep=file)
    np.testing.assert_array_equal(found.sensitivity, expected.sensitivity)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"options": {', '"options": [], "was": {'),
        lambda text: text.replace('"model.layers.1": ', '"model.layers.1": NaN, "was": '),
        lambda text: text.replace('"model.layers.1": ', '"model.layers.1": -'),
        lambda text: text.replace('"dtype": "stored"', '"dtype": "float32"'),
        lambda text: text.replace('"fingerprint": "', '"fingerprint": "0'),
    ],
    ids=["half", "list", "options", "nan", "negative", "recipe", "weights"],
)
def test_a_damaged_file_of_parts_is_none(tmp_path: Path, damage: Callable[[str], str]) -> None:
    family = llama_family(tmp_path, experts=1)
    file = tmp_path / "calibration.json"
    expected = calibrated(family, keep=file)
    partial = tmp_path / "calibration.json.partial"
    text = partial.read_text()
    partial.write_text(damage(text))
    assert partial.read_text() != text
    found = calibrated(family, keep=file)
    np.testing.assert_array_equal(found.sensitivity, expected.sensitivity)
