"""Statistics of models on samples, and the methods that need them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import sensmerge
import torch_oracle as oracle
from families import Family, llama_family, word_tokenizer
from sensmerge import Calibration, InputError, Recipe, reference
from sensmerge.search.descent import Options, Problem
from sensmerge.search.judge import Judge
from sensmerge.search.settings import Settings
from test_bad_input import run
from torch_devices import DEVICES

Array = NDArray[np.float64]
KINDS = {"fisher": "fisher", "regmean": "gram"}
SENSITIVITY = {"samples": oracle.SAMPLES, "dtype": "float32", "mode": "off"}


def recipe(family: Family, method: str, **keys: Any) -> Recipe:
    keys = {"sensitivity": SENSITIVITY} | keys
    return Recipe.from_dict(family.recipe(method, **keys), folder=family.folder)


def calibrated(family: Family, method: str, folder: Path, **keys: Any) -> Calibration:
    found = sensmerge.calibrate(
        recipe(family, method), progress=False, keep=folder / "calibration.json", **keys
    )
    found.save(folder / "calibration.json")
    return found


@pytest.fixture(scope="module", params=list(KINDS))
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def measured(family: Family, method: str, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return calibrated(family, method, tmp_path_factory.mktemp(method))


def statistics(found: Calibration, place: int) -> dict[str, Array]:
    """What was measured of an expert, by the names of its tensors."""
    assert found.folder is not None
    file = found.statistics[place]
    stored = load_file(found.folder / file.file)
    return {name: stored[there].double().numpy() for name, there in file.tensors.items()}


def weights_of(folder: Path) -> dict[str, Array]:
    return {
        name: tensor.double().numpy()
        for name, tensor in load_file(folder / "model.safetensors").items()
    }


def fisher_of(model: Any, samples: list[Any]) -> tuple[dict[str, Array], float]:
    """The mean squares of torch's own gradients over their root mean square, and that."""
    sums = {name: np.zeros(tuple(each.shape)) for name, each in model.named_parameters()}
    for sample in samples:
        model.zero_grad()
        oracle.loss(model, sample).backward()
        for name, parameter in model.named_parameters():
            sums[name] += parameter.grad.double().numpy() ** 2
    means = {name: total / len(samples) for name, total in sums.items()}
    everything = np.concatenate([mean.ravel() for mean in means.values()])
    scale = float(np.sqrt(np.mean(everything**2)))
    return {name: mean / scale for name, mean in means.items()}, scale


def grams_of(model: Any, samples: list[Any]) -> dict[str, Array]:
    """The mean of x xᵀ over the inputs of every linear layer but the head, in float64."""
    sums: dict[str, Array] = {}
    tokens = 0
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    seen: dict[str, Any] = {}
    for name, module in layers.items():
        module.register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0][0].double().numpy())
        )
    for sample in samples:
        with torch.no_grad():
            model(input_ids=torch.tensor([sample.ids]))
        tokens += len(sample.ids)
        for name, x in seen.items():
            sums[name] = sums.get(name, 0.0) + x.T @ x
    return {f"{name}.weight": total / tokens for name, total in sums.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory", ["whole", "stream"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_fisher_information_is_that_of_torch(
    tmp_path: Path, memory: str, tied: bool, device: str
) -> None:
    family = llama_family(tmp_path, experts=2, tied=tied)
    found = calibrated(family, "fisher", tmp_path, memory=memory, device=device)
    for place in range(2):
        expected, scale = fisher_of(oracle.load(family, place), oracle.samples_of(family, place))
        assert found.statistics[place].scale == pytest.approx(scale, rel=1e-4)
        ours = statistics(found, place)
        assert ours.keys() == expected.keys()
        for name, values in expected.items():
            # bfloat16 has eight bits; where gradients cancel, float32 has fewer than that.
            np.testing.assert_allclose(ours[name], values, rtol=2**-8, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory", ["whole", "stream"])
def test_gram_matrices_are_those_of_the_inputs(tmp_path: Path, memory: str, device: str) -> None:
    family = llama_family(tmp_path, experts=2)
    found = calibrated(family, "regmean", tmp_path, memory=memory, device=device)
    for place in range(2):
        expected = grams_of(oracle.load(family, place), oracle.samples_of(family, place))
        ours = statistics(found, place)
        assert ours.keys() == expected.keys()
        for name, values in expected.items():
            atol = 1e-5 * float(np.abs(values).max())
            np.testing.assert_allclose(ours[name], values, rtol=1e-4, atol=atol, err_msg=name)
        # Queries, keys and values have one input.
        tensors = found.statistics[place].tensors
        assert len(set(tensors.values())) == 3 * 4
        stem = "model.layers.1.self_attn"
        assert len({tensors[f"{stem}.{each}_proj.weight"] for each in "qkv"}) == 1


@pytest.mark.parametrize("base", [None, "base"])
def test_fisher_merging_is_the_reference(family: Family, tmp_path: Path, base: str | None) -> None:
    found = calibrated(family, "fisher", tmp_path)
    said = {"filter": "layers.1.", "value": 0.5}
    asked = recipe(family, "fisher", parameters={"weight": [said, {"value": 2.0}], "floor": 1e-3})
    # The third counts less than the others.
    data = asked.source | {"out_dtype": "float64", "base_model": base}
    data["models"][2] = data["models"][2] | {"parameters": {"weight": 0.25}}
    asked = Recipe.from_dict(data, folder=family.folder)
    done = sensmerge.merge(asked, tmp_path / "out", found, progress=False, sync=False)
    models = [weights_of(family.folder / f"e{place}") for place in range(3)]
    importances = [statistics(found, place) for place in range(3)]
    merged = weights_of(done.output)
    for name, values in merged.items():
        shared = 0.5 if "layers.1." in name else 2.0
        expected = reference.fisher(
            [model[name] for model in models],
            [importance[name] for importance in importances],
            [shared, shared, 0.25],
            1e-3,
        )
        np.testing.assert_allclose(values, expected, rtol=2e-6, atol=1e-7, err_msg=name)


def test_regmean_is_the_reference_and_the_nearest(family: Family, tmp_path: Path) -> None:
    found = calibrated(family, "regmean", tmp_path)
    parameters = {"weight": 1.0, "lambda": 0.8, "off_diagonal": 0.7, "ridge": 1e-3}
    asked = recipe(family, "regmean", parameters=parameters, out_dtype="float64")
    done = sensmerge.merge(asked, tmp_path / "out", found, progress=False, sync=False)
    base = weights_of(family.folder / "base")
    deltas = [
        {name: each - base[name] for name, each in weights_of(family.folder / f"e{i}").items()}
        for i in range(3)
    ]
    grams = [statistics(found, place) for place in range(3)]
    merged = weights_of(done.output)
    ours = [1.0, 1.0, 1.0]
    for name, values in merged.items():
        of_models = [delta[name] for delta in deltas]
        if name in grams[0]:
            change = reference.regmean(of_models, [gram[name] for gram in grams], ours, 0.7, 1e-3)
        else:
            change = np.mean(of_models, axis=0)
        expected = base[name] + 0.8 * change
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-9, err_msg=name)

    exact = recipe(
        family, "regmean", parameters={"off_diagonal": 1.0, "ridge": 1e-9}, out_dtype="float64"
    )
    nearest = weights_of(
        sensmerge.merge(exact, tmp_path / "two", found, progress=False, sync=False).output
    )
    draw = np.random.default_rng(0)
    name = "model.layers.1.mlp.down_proj.weight"

    def distance(change: Array) -> float:
        pairs = [
            (change - delta[name], gram[name]) for delta, gram in zip(deltas, grams, strict=True)
        ]
        return float(sum(np.trace(apart @ gram @ apart.T) for apart, gram in pairs))

    best = distance(nearest[name] - base[name])
    for _ in range(20):
        other = nearest[name] - base[name] + 1e-3 * draw.standard_normal(base[name].shape)
        assert distance(other) > best


def test_equal_statistics_give_the_mean(method: str, tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=2)
    # One set of samples, and two models whose statistics are then replaced by the same.
    found = calibrated(family, method, tmp_path)
    folder = tmp_path / "same"
    folder.mkdir()
    for file in found.statistics:
        shutil.copy(tmp_path / found.statistics[0].file, folder / file.file)
    data = json.loads((tmp_path / "calibration.json").read_text())
    for each in data["statistics"]:
        each["fingerprint"] = found.statistics[0].fingerprint
    (folder / "calibration.json").write_text(json.dumps(data))
    asked = recipe(family, method, out_dtype="float64")
    same, apart = (
        weights_of(
            sensmerge.merge(
                asked, tmp_path / f"out-{place}", home / "calibration.json", progress=False,
                sync=False,
            ).output
        )
        for place, home in enumerate((folder, tmp_path))
    )  # fmt: skip
    models = [weights_of(family.folder / f"e{place}") for place in range(2)]
    base = weights_of(family.folder / "base")
    given, own = statistics(found, 0), statistics(found, 1)
    for name, values in same.items():
        mean = (models[0][name] + models[1][name]) / 2
        tolerance = 1e-6
        if method == "regmean" and name in given:
            # The ridge pulls to the base what no input has, or hardly any. Where there are inputs,
            # outputs are those of the mean.
            inputs = np.linalg.cholesky(given[name] + 1e-9 * np.eye(len(given[name])))
            moved = float(np.linalg.norm((mean - base[name]) @ inputs))
            assert np.linalg.norm((values - mean) @ inputs) < 1e-4 * moved, name
            tolerance = 1e-4 * float(np.abs(mean - base[name]).max())
        np.testing.assert_allclose(values, mean, rtol=0, atol=tolerance, err_msg=name)
        # It is the equality that does it: with a statistic of each model's own the merge is
        # another, wherever something was measured.
        if name in given and not np.array_equal(given[name], own[name]):
            assert np.abs(apart[name] - mean).max() > 20 * tolerance, name


def test_files_are_used_again(family: Family, method: str, tmp_path: Path) -> None:
    first = calibrated(family, method, tmp_path)
    files = [tmp_path / each.file for each in first.statistics]
    assert [path.name.split(".")[1] for path in files] == [KINDS[method]] * 3
    # Nothing else is left beside them.
    assert {path.name for path in tmp_path.iterdir()} == {
        "calibration.json", "calibration.json.partial", *(path.name for path in files)
    }  # fmt: skip
    times = [path.stat().st_mtime_ns for path in files]
    again = calibrated(family, method, tmp_path)
    assert again.statistics == first.statistics
    assert [path.stat().st_mtime_ns for path in files] == times
    # What is gone or has changed is measured anew, and no other.
    files[1].unlink()
    with files[2].open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"\x01\x02")
    third = calibrated(family, method, tmp_path)
    assert third.statistics == first.statistics
    assert files[0].stat().st_mtime_ns == times[0]
    assert all(path.stat().st_mtime_ns > times[0] for path in files[1:])


def test_a_merge_measures_what_it_needs(
    family: Family, method: str, measured: Calibration, tmp_path: Path
) -> None:
    asked = recipe(family, method)
    sensmerge.merge(asked, tmp_path / "one", measured, progress=False, sync=False)
    sensmerge.merge(asked, tmp_path / "two", progress=False, sync=False)
    one, two = (weights_of(tmp_path / name) for name in ("one", "two"))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_the_commands(family: Family, method: str, tmp_path: Path, capsys: Any) -> None:
    path = str(family.write_recipe(recipe(family, method).source, f"{method}.yaml"))
    calibration = tmp_path / "measured.json"
    assert run("calibrate", path, "-o", str(calibration), "--quiet") == 0
    assert run("calibrate", path, "-o", str(calibration)) == 0
    said = capsys.readouterr().out
    assert f"measured.{KINDS[method]}.0-e0.safetensors" in said
    given = ["--calibration", str(calibration)]
    assert run("merge", path, str(tmp_path / "out"), *given, "--dry-run") == 0
    assert run("plan", path, "-o", str(tmp_path / "plan.json"), *given) == 0
    assert run("merge", path, str(tmp_path / "out"), *given, "--quiet") == 0
    planned = json.loads((tmp_path / "plan.json").read_text())
    text = json.dumps(planned)
    assert '"statistics"' in text
    assert str(tmp_path / f"measured.{KINDS[method]}.2-e2.safetensors") in text
    capsys.readouterr()
    assert run("plan", path, "-o", str(tmp_path / "plan.json")) == 2
    assert "run sensmerge calibrate with this recipe" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(
    family: Family, measured: Calibration, method: str, tmp_path: Path
) -> None:
    asked = recipe(family, method)

    def refused(said: str, found: Any, asked: Recipe = asked) -> None:
        with pytest.raises(InputError, match=said):
            sensmerge.merge(asked, tmp_path / "out", found, progress=False, sync=False)
        assert not (tmp_path / "out").exists()

    plain = Calibration.from_json(measured.to_json())
    plain.statistics.clear()
    refused(f"has no {KINDS[method]} statistics", plain)
    other = next(name for name in KINDS if name != method)
    refused(f"has no {KINDS[other]} statistics", measured, recipe(family, other))

    folder = tmp_path / "changed"
    assert measured.folder is not None
    shutil.copytree(measured.folder, folder)
    path = folder / "calibration.json"
    file = folder / measured.statistics[1].file
    with file.open("r+b") as opened:
        opened.seek(-50, 2)
        opened.write(b"\x07\x07")
    refused("1-e1.safetensors: has changed since it was measured; calibrate again", path)
    file.unlink()
    refused("1-e1.safetensors", path)
    for name in ("../calibration.json", "/etc/hostname"):
        data = json.loads(measured.to_json())
        data["statistics"][0]["file"] = name
        path.write_text(json.dumps(data))
        refused("is no bare file name", path)

    with pytest.raises(InputError, match="too large for memory"):
        sensmerge.calibrate(asked, progress=False)


def test_statistics_of_another_model_are_refused(
    family: Family, measured: Calibration, method: str, tmp_path: Path
) -> None:
    assert measured.folder is not None
    shutil.copytree(measured.folder, tmp_path / "small")
    file = tmp_path / "small" / measured.statistics[0].file
    tensors = load_file(file)
    first = sorted(tensors)[-1]
    rest = {name: tensor for name, tensor in tensors.items() if name != first}
    short, wide = tensors[first][:-1].contiguous(), tensors[first].double()
    for changed, said in (
        (rest | {first: short}, f"'{first}': has shape"),
        (rest | {first: wide}, f"'{first}': is F64; statistics are BF16 or F32"),
        (rest, f"'{first}': is missing; calibrate again"),
    ):
        save_file(changed, file)
        data = json.loads(measured.to_json())
        data["statistics"][0]["fingerprint"] = sensmerge._core.Checkpoint(str(file)).fingerprint()
        path = tmp_path / "small" / "calibration.json"
        path.write_text(json.dumps(data))
        with pytest.raises(InputError, match=said):
            sensmerge.merge(
                recipe(family, method), tmp_path / "out", path, progress=False, sync=False
            )


def test_sensitivity_weighs_the_models(family: Family, tmp_path: Path) -> None:
    asked = recipe(
        family, "fisher", sensitivity=SENSITIVITY | {"mode": "full", "temperature": 0.02},
        out_dtype="float64",
    )  # fmt: skip
    found = sensmerge.calibrate(asked, progress=False, keep=tmp_path / "calibration.json")
    done = sensmerge.merge(asked, tmp_path / "out", found, progress=False, sync=False)
    scale = sensmerge.coefficients(found, asked).scale_of("model.layers.1")
    assert np.ptp(scale) > 0.01
    name = "model.layers.1.mlp.up_proj.weight"
    models = [weights_of(family.folder / f"e{place}")[name] for place in range(3)]
    importances = [statistics(found, place)[name] for place in range(3)]
    expected = reference.fisher(models, importances, list(scale))
    np.testing.assert_allclose(weights_of(done.output)[name], expected, rtol=2e-6, atol=1e-7)


def test_candidates_are_merged_with_statistics(
    family: Family, method: str, measured: Calibration, tmp_path: Path
) -> None:
    judge = Judge(recipe(family, method), calibration=measured, validation=0.0, threads=1)
    scale = None if method == "fisher" else 0.6
    found = judge.losses(Settings(method, scale))
    parameters = {} if scale is None else {"lambda": scale}
    asked = recipe(family, method, parameters=parameters)
    done = sensmerge.merge(asked, tmp_path / "out", measured, progress=False, sync=False)
    model: Any = AutoModelForCausalLM.from_pretrained(done.output, dtype=torch.float32).eval()
    for place in range(3):
        with torch.no_grad():
            samples = oracle.samples_of(family, place)
            losses = [float(oracle.loss(model, sample)) for sample in samples]
        assert found[place] == pytest.approx(np.mean(losses), rel=1e-5)


def test_weights_of_a_fisher_merge_are_learned(tmp_path: Path) -> None:
    from test_learn import check_differences

    family = llama_family(tmp_path, dtype="float64", layers=2)
    asked = recipe(family, "fisher")
    found = sensmerge.calibrate(asked, progress=False, keep=tmp_path / "calibration.json")
    # The merge is no linear function of the weights.
    check_differences(Problem(asked, Options(validation=0.0), calibration=found), rel=3e-3)
    with pytest.raises(InputError, match="needs a calibration"):
        Problem(asked, Options(validation=0.0))


def split_experts(fused: dict[str, Any]) -> dict[str, Any]:
    """The fused parameters of Mixtral's blocks, [experts, ...], as the tensors of its files."""
    found = {}
    for name, values in fused.items():
        stem = name.rpartition(".")[0].replace("mlp", "block_sparse_moe")
        if name.endswith("experts.gate_up_proj"):
            for place, both in enumerate(values):
                half = len(both) // 2
                found[f"{stem}.{place}.w1.weight"] = both[:half]
                found[f"{stem}.{place}.w3.weight"] = both[half:]
        elif name.endswith("experts.down_proj"):
            for place, one in enumerate(values):
                found[f"{stem}.{place}.w2.weight"] = one
        else:
            found[name.replace("mlp.gate", "block_sparse_moe.gate")] = values
    return found


def test_a_mixture_has_fisher_information_of_every_expert(tmp_path: Path) -> None:
    """transformers fuses the experts of a block into one parameter when it loads them."""
    family = llama_family(
        tmp_path, experts=2, layers=2, architecture="Mixtral", num_local_experts=4,
        num_experts_per_tok=2,
    )  # fmt: skip
    found = calibrated(family, "fisher", tmp_path)
    for place in range(2):
        model = oracle.load(family, place)
        expected, scale = fisher_of(model, oracle.samples_of(family, place))
        expected = split_experts(expected)
        weights = split_experts({name: each.detach() for name, each in model.named_parameters()})
        stored = weights_of(family.folder / f"e{place}")
        ours = statistics(found, place)
        assert ours.keys() == expected.keys() == stored.keys()
        assert found.statistics[place].scale == pytest.approx(scale, rel=1e-4)
        for name, values in expected.items():
            # What was taken apart is what the file has.
            np.testing.assert_array_equal(weights[name], stored[name], err_msg=name)
            np.testing.assert_allclose(ours[name], values, rtol=2**-8, atol=1e-6, err_msg=name)
    # What no token was sent to has no gradient; some expert has one.
    assert sum(np.any(ours[name]) for name in ours if ".experts." in name) > 4
    sensmerge.merge(recipe(family, "fisher"), tmp_path / "out", found, progress=False, sync=False)


def test_models_that_are_not_measured_as_stored_are_refused(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    family = llama_family(tmp_path / "llama", experts=2)
    for name in ("base", "e0", "e1"):
        shutil.rmtree(family.folder / name)
        model.save_pretrained(family.folder / name)
        word_tokenizer().save_pretrained(family.folder / name)
    with pytest.raises(InputError, match="GPT2LMHeadModel: has no linear layers of torch"):
        calibrated(family, "regmean", tmp_path)
    half = llama_family(tmp_path / "half", experts=2, dtype="float16")
    asked = recipe(half, "fisher", sensitivity={"samples": 2})
    with pytest.raises(InputError, match="float16 are too coarse"):
        sensmerge.calibrate(asked, progress=False, keep=tmp_path / "half.json")
