"""Calibrations as files: saving and loading gives the same, and malformed files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensmerge import Calibration, InputError


def test_what_is_saved_is_what_is_loaded(measured: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "new" / "calibration.json"
    measured.save(path)
    loaded = Calibration.load(path)
    for name in ("sensitivity", "outside_sensitivity", "alignment"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(measured, name))
    assert loaded.to_json() == measured.to_json()
    assert loaded.experts == measured.experts
    assert [file.name for file in path.parent.iterdir()] == ["calibration.json"]


def test_experts_are_selected_in_any_order(measured: Calibration) -> None:
    prints = [expert.fingerprint for expert in measured.experts]
    chosen = measured.select([prints[2], prints[0]])
    assert [expert.model for expert in chosen.experts] == ["e2", "e0"]
    np.testing.assert_array_equal(chosen.sensitivity, measured.sensitivity[[2, 0]])
    np.testing.assert_array_equal(chosen.outside_sensitivity, measured.outside_sensitivity[[2, 0]])
    assert chosen.alignment.tolist() == [
        [0.0, measured.alignment[2, 0]],
        [measured.alignment[0, 2], 0.0],
    ]
    with pytest.raises(InputError, match=r"belong to expert 2 of the recipe.* on e0, e1, e2"):
        measured.select([prints[0], "sampled-blake3:0"])


def test_weights_measured_on_two_tasks_are_taken_in_turn(measured: Calibration) -> None:
    data = json.loads(measured.to_json())
    data["experts"][2]["fingerprint"] = one = data["experts"][0]["fingerprint"]
    doubled = Calibration.from_json(json.dumps(data))
    chosen = doubled.select([one, one])
    assert [expert.model for expert in chosen.experts] == ["e0", "e2"]


def put(key: str, value: Any) -> Any:
    """A change of the file: set the value at a dotted key, or remove the key."""

    def change(data: Any) -> None:
        *parents, last = key.split(".")
        for part in parents:
            data = data[int(part) if part.isdigit() else part]
        if value is ...:
            del data[int(last) if last.isdigit() else last]
        else:
            data[int(last) if last.isdigit() else last] = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", "other", "format: not a sensmerge-calibration file"),
        ("version", 99, "version: 99 is not known; this sensmerge reads 1"),
        ("layers", ..., "layers: is missing"),
        ("layers", "abc", "layers: input should be a valid array"),
        ("layers.1", "model.layers.0", "layers: a layer is named twice"),
        ("sensitivity.0", ..., "sensitivity: expected 3 rows, and there are 2"),
        ("sensitivity.1.2", ..., "sensitivity[1]: expected 3 numbers, and there are 2"),
        ("sensitivity.0.0", -1, "sensitivity[0][0]: input should be greater than or equal to 0"),
        ("sensitivity.0.0", float("nan"), "sensitivity[0][0]: input should be a finite number"),
        ("sensitivity.0.0", True, "sensitivity[0][0]: input should be a valid number"),
        ("sensitivity.0.0", "1.0", "sensitivity[0][0]: input should be a valid number"),
        ("sensitivity.0.0", 10**400, "not JSON: it holds a number of 401 digits"),
        ("outside.sensitivity", {}, "outside.sensitivity: input should be a valid array"),
        ("outside", [], "outside: expected a mapping"),
        ("alignment.0", ..., "alignment: expected 3 rows"),
        ("alignment.1.1", 0.5, "alignment: an expert's distance to itself is not 0"),
        ("alignment.0.1", float("inf"), "alignment[0][1]: input should be a finite number"),
        ("order", [], "order: does not name the same layers"),
        ("experts", [], "experts: there is none"),
        ("experts.1", 3, "experts[1]: input should be an object"),
        ("experts.0.fingerprint", 3, "experts[0].fingerprint: input should be a valid string"),
        ("experts.2.loss", None, "experts[2].loss: input should be a valid number"),
        ("experts.0.task", ..., "experts[0].task: is missing"),
        ("experts.0.task.rows", 1.5, "experts[0].task.rows: input should be a valid integer"),
        (
            "experts.0.task.drawn.0",
            -1,
            "experts[0].task.drawn[0]: input should be greater",
        ),
        ("base", 3, "base: input should be a valid string"),
        ("options", [], "options: expected a mapping"),
        ("options.new", [float("inf")], "options: a number is not finite"),
        ("seconds.new", float("nan"), "seconds.new: input should be a finite number"),
    ],
)
def test_files_that_are_no_calibration(
    measured: Calibration, tmp_path: Path, key: str, value: Any, said: str
) -> None:
    data = json.loads(measured.to_json())
    put(key, value)(data)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError) as refused:
        Calibration.load(path)
    assert str(refused.value).startswith(f"{path}: {said}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "format"),
        (b"\xff", "is not UTF-8 text"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path}: {said}"):
        Calibration.load(path)
    with pytest.raises(InputError, match="No such file"):
        Calibration.load(tmp_path / "absent.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(data: Any, prefix: str = "") -> list[str]:
    items = data.items() if isinstance(data, dict) else enumerate(data)
    found = []
    for key, value in items:
        found.append(f"{prefix}{key}")
        if isinstance(value, dict | list):
            found += places(value, f"{prefix}{key}.")
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_change_is_read_or_refused(measured: Calibration, data: st.DataObject) -> None:
    content = json.loads(measured.to_json())
    key = data.draw(st.sampled_from([place for place in places(content) if "/" not in place]))
    put(key, data.draw(JSON | st.just(...)))(content)
    try:
        found = Calibration.from_json(json.dumps(content))
    except InputError:
        return
    assert found.sensitivity.shape == (len(found.experts), len(found.layers))
    assert np.isfinite(found.sensitivity).all()
    assert Calibration.from_json(found.to_json()).to_json() == found.to_json()
