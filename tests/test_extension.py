"""Methods of other packages: the examples of docs/extending.md, built, installed and used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

import sensmerge as package
import torch_oracle as oracle
from families import Family
from sensmerge import Calibration, Recipe
from sensmerge.models.layers import layer_of

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

FAILING = """
import numpy as np
import sensmerge

def made(answer, **how):
    @sensmerge.method(base="needed", **how)
    def function(rows, tensor):
        return answer(rows, tensor)
    return function

raises = made(lambda rows, tensor: rows[99])
wrong_shape = made(lambda rows, tensor: rows)
wrong_dtype = made(lambda rows, tensor: rows[0].astype(np.float64))
no_array = made(lambda rows, tensor: None)
nan = made(lambda rows, tensor: rows[0] * np.float32("nan"))
whole = made(lambda rows, tensor: np.flip(rows[0], axis=0), whole=True)
no_method = "text"
linear = made(lambda rows, tensor: rows[0])
"""


def install(package: Path, target: Path) -> None:
    """Install a package into a folder, without the network."""
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-index", "--no-deps", "--no-build-isolation"),
    ]
    subprocess.run([*command, "--target", str(target), str(package)], check=True)


def sensmerge(site: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line, with what is installed in ``site``."""
    command = [sys.executable, "-m", "sensmerge.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def python(site: Path, code: str) -> str:
    """What Python code prints, with what is installed in ``site``."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A base and two experts in a folder, and their tensors."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    shapes = {"model.layers.0.mlp.up_proj.weight": (600, 500), "model.norm.weight": (7,)}
    found: dict[str, dict[str, Any]] = {}
    for name in ("base", "one", "two"):
        tensors = {
            key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()
        }
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text("{}")
        found[name] = {"path": folder / name, "tensors": tensors}
    return found


def write_recipe(path: Path, models: dict[str, dict[str, Any]], method: str, **keys: Any) -> Path:
    """Write a recipe that merges both experts by a method."""
    recipe = {
        "merge_method": method,
        "base_model": str(models["base"]["path"]),
        "models": [{"model": str(models[name]["path"])} for name in ("one", "two")],
        **keys,
    }
    path.write_text(json.dumps(recipe))
    return path


def merged(site: Path, recipe: Path, output: Path, *options: str) -> dict[str, np.ndarray]:
    """The tensors that a merge writes."""
    done = sensmerge(site, "merge", recipe, output, *options)
    assert done.returncode == 0, done.stderr
    return load_file(output / "model.safetensors")


def task_vectors(models: dict[str, dict[str, Any]], key: str) -> np.ndarray:
    """The task vectors of a tensor, in float32 as sensmerge has them, as float64."""
    base = models["base"]["tensors"][key]
    rows = [models[name]["tensors"][key] - base for name in ("one", "two")]
    return np.array(rows).astype(np.float64)


@pytest.fixture(scope="module")
def python_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example in Python installed."""
    folder = tmp_path_factory.mktemp("python")
    shutil.copytree(EXAMPLES / "plugin-python", folder / "source")
    install(folder / "source", folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def rust_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example in Rust built and installed."""
    folder = tmp_path_factory.mktemp("rust")
    source = folder / "source"
    shutil.copytree(
        EXAMPLES / "plugin-rust", source, ignore=shutil.ignore_patterns("target", "*.so")
    )
    cargo = ["cargo", "build", "--release", "--quiet", "--offline", "--target-dir", "target"]
    subprocess.run(cargo, cwd=source, check=True)
    for pattern in ("*.so", "*.dylib", "*.dll"):
        for library in (source / "target" / "release").glob(pattern):
            shutil.copy(library, source / "strongest")
    install(source, folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def failing_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package whose methods fail in all ways, and one that does not."""
    site = tmp_path_factory.mktemp("failing")
    (site / "failing.py").write_text(FAILING)
    names = [
        "raises",
        "wrong_shape",
        "wrong_dtype",
        "no_array",
        "nan",
        "whole",
        "no_method",
        "linear",
        "not_there",
    ]
    info = site / "failing-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 2.5\n")
    points = "".join(f"{name} = failing:{name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[sensmerge.methods]\n{points}")
    return site


def test_the_python_example_merges_as_numpy_does(
    python_site: Path, models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        models,
        "clipped_mean",
        parameters={"limit": 0.5, "lambda": 0.7, "weight": 2},
    )
    found = merged(python_site, recipe, tmp_path / "out")
    cut = merged(python_site, recipe, tmp_path / "cut", "--threads", "1")
    for key, base in models["base"]["tensors"].items():
        clipped = np.clip(task_vectors(models, key), -0.5, 0.5)
        expected = base.astype(np.float64) + 0.7 * clipped.mean(axis=0)
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=1e-6)
        assert np.array_equal(found[key], cut[key])


def test_the_rust_example_merges_as_numpy_does(
    rust_site: Path, models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml", models, "strongest", parameters={"strength": 0.5}
    )
    found = merged(rust_site, recipe, tmp_path / "out")
    for key, base in models["base"]["tensors"].items():
        one, two = task_vectors(models, key)
        most = np.where(np.abs(two) > np.abs(one), two, one)
        expected = base.astype(np.float64) + 0.5 * most
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=1e-6)


@pytest.fixture
def clipped(family: Family, measured: Calibration, tmp_path: Path) -> dict[str, Any]:
    """A recipe of three experts with coefficients, its calibration, and tensors to merge."""
    measured.save(tmp_path / "calibration.json")
    recipe = family.recipe(
        "clipped_mean",
        parameters={"limit": 0.04, "lambda": 0.7},
        sensitivity={"dtype": "float32", "samples": 4, "temperature": 0.02},
    )
    # Absolute, since the recipe lies elsewhere than the models.
    recipe["base_model"] = str(family.folder / "base")
    for model in recipe["models"]:
        for key in ("model", "calibration"):
            model[key] = str(family.folder / model[key])
    names = ("base", "e0", "e1", "e2")
    return {
        "recipe": recipe,
        "calibration": tmp_path / "calibration.json",
        "tensors": [load_file(family.folder / name / "model.safetensors") for name in names],
    }


def test_coefficients_scale_its_weights(
    python_site: Path, clipped: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(clipped["recipe"]))
    found = merged(
        python_site, recipe, tmp_path / "out", "--calibration", str(clipped["calibration"])
    )
    # Coefficients do not depend on the method: here they are asked of one that is always there.
    plain = clipped["recipe"] | {"merge_method": "task_arithmetic", "parameters": {}}
    coefficients = package.coefficients(
        Calibration.load(clipped["calibration"]), Recipe.from_dict(plain, folder=tmp_path)
    )
    base, *experts = clipped["tensors"]
    for name, start in base.items():
        inner = name.startswith("model.layers.")
        weights = np.array(coefficients.scale_of(layer_of(name)) if inner else np.ones(3))
        assert not inner or np.ptp(weights) > 0.01
        rows = np.array([expert[name].astype(np.float64) - start for expert in experts])
        mean = np.tensordot(weights, np.clip(rows, -0.04, 0.04), 1) / weights.sum()
        np.testing.assert_allclose(found[name], start + 0.7 * mean, rtol=0, atol=1e-6, err_msg=name)


def test_a_search_runs_what_a_merge_writes(
    python_site: Path, clipped: dict[str, Any], family: Family, tmp_path: Path
) -> None:
    recipe, best = tmp_path / "recipe.yaml", tmp_path / "best.yaml"
    recipe.write_text(json.dumps(clipped["recipe"]))
    given = ["--calibration", clipped["calibration"]]
    options = ["--trials", "3", "--validation", "0", "--threads", "1", "--quiet"]
    done = sensmerge(python_site, "tune", recipe, "-o", best, *given, *options)
    assert done.returncode == 0, done.stderr
    told = json.loads(best.with_suffix(".trials.json").read_text())
    assert len(told["trials"]) == 3
    methods = {each["settings"]["method"] for each in (*told["trials"], *told["baselines"])}
    assert methods == {"clipped_mean"}
    # The first trial is the recipe as it stands, λ and T included.
    done = sensmerge(python_site, "merge", recipe, tmp_path / "out", *given, "--quiet")
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    losses = [
        np.mean([oracle.loss(model, sample).item() for sample in oracle.samples_of(family, place)])
        for place in range(3)
    ]
    assert told["trials"][0]["losses"] == pytest.approx(losses, rel=1e-5)
    assert told["trials"][0]["losses"] != pytest.approx(told["trials"][1]["losses"], rel=1e-5)


def test_whole_tensors_come_in_their_shape(
    failing_site: Path, models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", models, "whole")
    found = merged(failing_site, recipe, tmp_path / "out")
    for key, base in models["base"]["tensors"].items():
        expected = base + np.flip(task_vectors(models, key)[0], axis=0)
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("raises", "IndexError: index 99 is out of bounds"),
        ("wrong_shape", "returned float32 of shape (2, "),
        ("wrong_dtype", "returned float64 of shape ("),
        ("no_array", "returned NoneType instead of an array"),
        ("nan", "returned NaN for finite entries"),
    ],
)
def test_what_a_function_does_wrong_is_said_and_nothing_is_left(
    method: str,
    said: str,
    failing_site: Path,
    models: dict[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", models, method)
    done = sensmerge(failing_site, "merge", recipe, tmp_path / "out")
    assert done.returncode != 0
    assert f"method '{method}': tensor 'model." in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_parts_of_a_tensor_do_not_show_in_the_output(
    python_site: Path, models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", models, "clipped_mean")
    code = f"""
import sensmerge
recipe = sensmerge.Recipe.load({str(recipe)!r})
for name, threads, size in [("a", 1, 4096), ("b", 4, 40960), ("c", 2, 1 << 24)]:
    sensmerge.merge(recipe, {str(tmp_path)!r} + "/" + name, threads=threads, chunk_bytes=size)
"""
    python(python_site, code)
    written = {(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert len(written) == 1


def test_an_exception_keeps_its_traceback(
    failing_site: Path, models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", models, "raises")
    code = f"""
import sensmerge, traceback
try:
    sensmerge.merge(sensmerge.Recipe.load({str(recipe)!r}), {str(tmp_path / "out")!r})
except sensmerge.MethodError as error:
    cause = error.__cause__
    print(type(cause).__name__, traceback.extract_tb(cause.__traceback__)[-1].name)
"""
    assert python(failing_site, code).split() == ["IndexError", "<lambda>"]


def test_what_cannot_be_loaded_is_said_by_name(
    failing_site: Path, models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    for method, said in [
        ("no_method", "is a str, not made by sensmerge.method"),
        ("not_there", "cannot be imported: AttributeError"),
    ]:
        done = sensmerge(
            failing_site, "explain", write_recipe(tmp_path / "recipe.yaml", models, method)
        )
        assert f"method '{method}' of failing 2.5" in done.stderr
        assert said in done.stderr
    listed = sensmerge(failing_site, "methods")
    assert listed.returncode == 0, listed.stderr
    assert "whole comes with failing 2.5" in listed.stdout
    assert "cannot be loaded: method 'linear' of failing 2.5" in listed.stdout
    assert "cannot be loaded: method 'not_there' of failing 2.5" in listed.stdout


def test_methods_schema_and_explain_know_it(
    python_site: Path, models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", models, "clipped_mean")
    described = sensmerge(python_site, "methods", "clipped_mean").stdout
    assert "comes with clipped-mean 1.0" in described
    assert "a number above 0; 0.1 by default" in described
    assert "scales its weights" in described
    assert '"const": "clipped_mean"' in sensmerge(python_site, "schema").stdout
    explained = sensmerge(python_site, "explain", recipe)
    assert explained.returncode == 0, explained.stderr
    write_recipe(recipe, models, "clipped_mean", parameters={"limit": -1})
    refused = sensmerge(python_site, "explain", recipe)
    assert "-1 is not above 0" in refused.stderr


def test_a_manifest_is_refused_without_its_package(
    python_site: Path, models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", models, "clipped_mean")
    planned = sensmerge(python_site, "merge", recipe, tmp_path / "out", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    done = sensmerge(python_site, "plan", recipe, "-o", tmp_path / "manifest.json")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "manifest.json").read_text()
    assert json.loads(text)["method"]["package"] == {"name": "clipped-mean", "version": "1.0"}
    from sensmerge import InputError, _core

    with pytest.raises(InputError, match=r"pip install clipped-mean==1\.0"):
        _core.Manifest.from_json(text)


def test_nothing_is_imported_before_a_recipe_names_it(
    failing_site: Path, models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", models, "task_arithmetic")
    code = f"""
import sys, sensmerge
sensmerge.Recipe.load({str(recipe)!r})
print("failing" in sys.modules)
"""
    assert python(failing_site, code).strip() == "False"


def test_the_page_has_the_examples_in_full() -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    names = ["plugin-python/clipped_mean.py", "plugin-python/pyproject.toml"]
    names += ["plugin-rust/src/lib.rs", "plugin-rust/Cargo.toml", "plugin-rust/pyproject.toml"]
    names += ["plugin-rust/strongest/__init__.py"]
    for name in names:
        assert (EXAMPLES / name).read_text() in page, name
