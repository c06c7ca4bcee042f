from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from sensmerge import Calibration, InputError, reference
from sensmerge.calibration.record import Expert, TaskRecord
from sensmerge.recipe import Sensitivity
from sensmerge.scaling.sigma import Coefficients, coefficients, cross_task


def measured(count: int = 3, layers: int = 4) -> Calibration:
    draw = np.random.default_rng(count)
    task = TaskRecord("t.jsonl", 10, list(range(10)), 10, 0, 100, "sha256:0", 512)
    g = draw.random((count, count)) * 5
    np.fill_diagonal(g, 0)
    names = [f"model.layers.{layer}" for layer in range(layers)]
    return Calibration(
        base="base",
        experts=[Expert(f"e{i}", f"f{i}", 100, 1.0, task) for i in range(count)],
        layers=names,
        sensitivity=draw.random((count, layers)) + 0.1,
        outside_layers=["model.embed_tokens", "model.norm"],
        outside_sensitivity=draw.random((count, 2)) + 0.1,
        order=["model.embed_tokens", *names, "model.norm"],
        alignment=g,
        options={},
    )


def found(calibration: Calibration, **options: object) -> Coefficients:
    return coefficients(calibration, Sensitivity.model_validate(options))


@pytest.mark.parametrize("mode", ["full", "task", "cross", "off"])
@pytest.mark.parametrize("form", ["transfer", "distance"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_sigma_is_the_references(mode: str, form: str, count: int) -> None:
    calibration = measured(count)
    result = found(calibration, mode=mode, cross_task=form, temperature=0.1)
    expected = reference.sigma(
        calibration.sensitivity, calibration.alignment, mode=mode, form=form, temperature=0.1
    )
    np.testing.assert_allclose(result.sigma, expected, rtol=1e-12)
    np.testing.assert_allclose(result.sigma.sum(axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(result.alpha, axis=1), 1, rtol=1e-12)


def test_the_two_forms_of_tau_by_hand() -> None:
    g = np.array([[0, 1, 2], [3, 0, 1], [1, 2, 0.0]])
    np.testing.assert_allclose(cross_task(g, "distance"), [0.3, 0.4, 0.3])
    np.testing.assert_allclose(cross_task(g, "transfer"), [0.7, 0.6, 0.7])
    # The preprint's shares sum to 1, the camera-ready form's to K - 1.
    assert cross_task(g, "transfer").sum() == pytest.approx(2)


def test_for_two_experts_the_forms_mirror_each_other() -> None:
    g = np.array([[0, 3.0], [1, 0]])
    np.testing.assert_allclose(cross_task(g, "transfer"), cross_task(g, "distance")[::-1])


def test_no_distance_is_an_even_share() -> None:
    zero = np.zeros((4, 4))
    np.testing.assert_allclose(cross_task(zero, "transfer"), [0.75] * 4)
    np.testing.assert_allclose(cross_task(zero, "distance"), [0.25] * 4)


def test_a_low_temperature_does_not_overflow() -> None:
    sigma = found(measured(), temperature=1e-9).sigma
    assert np.all(np.isfinite(sigma))
    np.testing.assert_allclose(sigma.max(axis=0), 1)


def test_what_lies_outside_the_blocks() -> None:
    calibration = measured()
    uniform = found(calibration)
    assert uniform.layers == calibration.layers
    assert list(uniform.scale_of("lm_head")) == [1.0, 1.0, 1.0]

    cross = found(calibration, outside_blocks="cross")
    weights = np.exp(cross.tau / 0.05)
    np.testing.assert_allclose(cross.scale_of("lm_head"), 3 * weights / weights.sum())

    own = found(calibration, outside_blocks="own")
    assert own.layers == calibration.order
    assert own.alpha.shape == (3, 6)
    np.testing.assert_allclose(np.linalg.norm(own.alpha, axis=1), 1)
    embed = calibration.outside_sensitivity[:, 0]
    whole = np.linalg.norm(
        np.hstack([calibration.sensitivity, calibration.outside_sensitivity]), axis=1
    )
    np.testing.assert_allclose(own.alpha[:, 0], embed / whole)


def test_mode_off_leaves_weights_untouched() -> None:
    for count in range(1, 60):
        assert list(found(measured(count), mode="off").scale_of("model.layers.0")) == [1.0] * count


def test_near_uniform_is_said_in_plain_words() -> None:
    hot, cold = found(measured(), temperature=100), found(measured(), temperature=0.02)
    assert hot.near_uniform
    assert "lower sensitivity.temperature" in hot.notes()[0]
    assert cold.notes() == []
    assert hot.notes()[0] in hot.table()


def test_json_has_the_promised_keys() -> None:
    result = found(measured())
    data = json.loads(result.to_json())
    assert data["experts"] == ["e0", "e1", "e2"]
    assert data["layers"] == [f"model.layers.{layer}" for layer in range(4)]
    assert np.array(data["alpha"]).shape == np.array(data["sigma"]).shape == (3, 4)
    np.testing.assert_array_equal(data["tau"], result.tau)


def test_an_expert_without_sensitivity_is_named() -> None:
    calibration = measured()
    dead = calibration.sensitivity.copy()
    dead[1] = 0
    with pytest.raises(InputError, match="'e1'"):
        found(replace(calibration, sensitivity=dead))
