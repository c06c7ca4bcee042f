"""Experts with adapters are measured as merged copies would be, and searched over like them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sensmerge
from adapters import Written
from families import Family, llama_family
from sensmerge import Calibration, InputError, Recipe

LINEAR = {"self_attn.q_proj": (32, 32), "mlp.down_proj": (32, 48)}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A base, two adapters and copies of the base into which they are merged."""
    family = llama_family(tmp_path_factory.mktemp("family"), experts=2, dtype="bfloat16")
    for place in range(2):
        draw = np.random.default_rng(place)
        written = Written()
        for layer in range(3):
            for module, (outputs, inputs) in LINEAR.items():
                written.factors(draw, f"model.layers.{layer}.{module}", outputs, inputs, 4)
        written.factors(draw, "model.embed_tokens", 32, 100, 4, embedding=True)
        written.save(family.folder / f"a{place}")
        data = {
            "merge_method": "linear",
            "models": [{"model": f"base+a{place}", "parameters": {"weight": 1}}],
        }
        recipe = Recipe.from_dict(data, folder=family.folder)
        sensmerge.merge(recipe, family.folder / f"c{place}", progress=False, sync=False)
    return family


def recipe(family: Family, models: list[str], **keys: Any) -> Recipe:
    listed = [
        {"model": model, "calibration": f"t{place}.jsonl"} for place, model in enumerate(models)
    ]
    data = family.recipe(models=listed, sensitivity={"samples": 3} | keys)
    return Recipe.from_dict(data, folder=family.folder)


def calibrated(family: Family, models: list[str], memory: str, **keys: Any) -> Calibration:
    return sensmerge.calibrate(recipe(family, models, **keys), progress=False, memory=memory)


@pytest.mark.parametrize("dtype", ["stored", "float32"])
@pytest.mark.parametrize("memory", ["whole", "stream"])
def test_measured_as_merged_copies_are(family: Family, memory: str, dtype: str) -> None:
    found = calibrated(family, ["base+a0", "base+a1"], memory, dtype=dtype)
    expected = calibrated(family, ["c0", "c1"], memory, dtype=dtype)
    np.testing.assert_allclose(found.sensitivity, expected.sensitivity, rtol=1e-9)
    np.testing.assert_allclose(found.outside_sensitivity, expected.outside_sensitivity, rtol=1e-9)
    np.testing.assert_allclose(found.alignment, expected.alignment, rtol=1e-9)


def test_a_calibration_is_that_of_the_model_with_its_adapter(family: Family) -> None:
    measured = calibrated(family, ["base+a0", "base+a1"], "whole")
    same = recipe(family, ["./base+./a0", "base+a1"])
    assert sensmerge.merge_tensors(same, calibration=measured)
    other = recipe(family, ["base+a0", "base+a1+a0"])
    with pytest.raises(InputError, match="does not belong to expert 2"):
        sensmerge.merge_tensors(other, calibration=measured)


def test_a_merge_with_coefficients_is_that_of_merged_copies(family: Family, tmp_path: Path) -> None:
    results = []
    for models in (["base+a0", "base+a1"], ["c0", "c1"]):
        asked = recipe(family, models)
        results.append(
            sensmerge.merge_tensors(asked, calibration=calibrated(family, models, "whole"))
        )
    for name, tensor in results[1].items():
        difference = (results[0][name].float() - tensor.float()).abs()
        assert float(difference.max()) < 0.02, name
