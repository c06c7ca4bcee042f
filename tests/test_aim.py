"""Activation-informed merging: the base's activations, and task vectors that they damp."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import sensmerge
import torch_oracle as oracle
from families import (
    Family,
    add_tokens,
    edit_weights,
    llama_family,
    word_tokenizer,
    write_samples,
)
from sensmerge import Calibration, InputError, Recipe, reference
from test_bad_input import run
from test_vocabulary import swap
from torch_devices import DEVICES

Array = NDArray[np.float64]
SENSITIVITY = {"samples": oracle.SAMPLES, "dtype": "float32", "mode": "off"}
MIXTURE: dict[str, Any] = {
    "layers": 2,
    "architecture": "Mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def recipe(family: Family, method: str = "task_arithmetic", **keys: Any) -> Recipe:
    keys = {"sensitivity": SENSITIVITY, "aim": {}} | keys
    return Recipe.from_dict(family.recipe(method, **keys), folder=family.folder)


def without(asked: Recipe) -> Recipe:
    data = {key: said for key, said in asked.source.items() if key != "aim"}
    return Recipe.from_dict(data, folder=asked.folder)


def calibrated(asked: Recipe, folder: Path, **keys: Any) -> Calibration:
    path = folder / "calibration.json"
    sensmerge.calibrate(asked, progress=False, keep=path, **keys).save(path)
    return Calibration.load(path)


@pytest.fixture(scope="module")
def measured(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return calibrated(recipe(family), tmp_path_factory.mktemp("aim"))


def activations(found: Calibration) -> dict[str, Array]:
    """What was measured, by the names of the base's tensors."""
    assert found.folder is not None
    assert found.activations is not None
    stored = load_file(found.folder / found.activations.file)
    return {name: tensor.double().numpy() for name, tensor in stored.items()}


def weights_of(folder: Path) -> dict[str, Array]:
    return {
        name: tensor.double().numpy()
        for name, tensor in load_file(folder / "model.safetensors").items()
    }


def merged(asked: Recipe, found: Any, out: Path, **keys: Any) -> dict[str, Array]:
    keys = {"progress": False, "sync": False} | keys
    return weights_of(sensmerge.merge(asked, out, found, **keys).output)


def inputs_of(model: Any, ids: list[list[int]]) -> dict[str, Array]:
    """The mean of |x| over the inputs of every linear layer and norm, by its weight, in float64."""
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        def add(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            x = np.abs(args[0].double().numpy().reshape(-1, args[0].shape[-1]))
            sums[name] = sums.get(name, 0.0) + x.sum(axis=0)
            counts[name] = counts.get(name, 0) + len(x)

        return add

    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), torch.nn.Parameter) and (
            not isinstance(module, torch.nn.Embedding)
        ):
            module.register_forward_pre_hook(hook(f"{name}.weight"))
    with torch.no_grad():
        for sample in ids:
            model(input_ids=torch.tensor([sample]))
    return {name: total / counts[name] for name, total in sums.items()}


def ids_of(family: Family) -> list[list[int]]:
    tasks = range(family.experts)
    return [sample.ids for place in tasks for sample in oracle.samples_of(family, place)]


def base_of(family: Family, dtype: torch.dtype = torch.float64) -> Any:
    path = family.folder / "base"
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory", ["whole", "stream"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_activations_are_those_of_torch(
    tmp_path: Path, memory: str, tied: bool, device: str
) -> None:
    family = llama_family(tmp_path, experts=2, tied=tied, max_shard_size="20KB")
    found = calibrated(recipe(family), tmp_path, memory=memory, device=device)
    expected = inputs_of(base_of(family), ids_of(family))
    if tied:
        # The head is the embedding, which is left alone.
        del expected["lm_head.weight"]
    ours = activations(found)
    assert ours.keys() == expected.keys()
    assert len(ours) == 3 * 9 + 1 + (not tied)
    for name, values in expected.items():
        np.testing.assert_allclose(ours[name], values / values.max(), rtol=1e-4, err_msg=name)
    # The experts are not run.
    assert found.experts == []


@pytest.mark.parametrize("memory", ["whole", "stream"])
def test_every_expert_of_a_mixture_has_its_own_inputs(tmp_path: Path, memory: str) -> None:
    family = llama_family(tmp_path, experts=2, **MIXTURE)
    ours = activations(calibrated(recipe(family), tmp_path, memory=memory))
    model = base_of(family, torch.float32)
    seen: dict[str, list[Array]] = {}

    def look(name: str, module: Any) -> Callable[..., None]:
        def add(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            states, chosen = args[0], args[1]
            for place in range(4):
                x = states[(chosen == place).any(dim=-1)]
                gate, up = (x @ module.gate_up_proj[place].T).chunk(2, dim=-1)
                inner = torch.nn.functional.silu(gate) * up
                stem = f"{name.replace('mlp', 'block_sparse_moe')}.{place}"
                for weight, found in (("w1", x), ("w3", x), ("w2", inner)):
                    seen.setdefault(f"{stem}.{weight}.weight", []).append(found.abs().numpy())

        return add

    for name, module in model.named_modules():
        if name.endswith(".experts"):
            module.register_forward_pre_hook(look(name, module))
    inputs = inputs_of(model, ids_of(family))
    for name, values in inputs.items():
        stored = name.replace("mlp.gate", "block_sparse_moe.gate")
        np.testing.assert_allclose(ours.pop(stored), values / values.max(), rtol=1e-4, err_msg=name)
    for name, each in seen.items():
        values = np.concatenate(each).mean(axis=0)
        np.testing.assert_allclose(ours.pop(name), values / values.max(), rtol=1e-4, err_msg=name)
    assert not ours


def gpt2_family(folder: Path) -> Family:
    """GPT-2, whose matrices are inputs × outputs, and some of them square."""
    tokenizer = word_tokenizer()
    known = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(known)
    for name in ("base", "e0", "e1"):
        model = transformers.GPT2LMHeadModel(known)
        model.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in model.parameters() if name != "base" else ():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for place in range(2):
        write_samples(folder / f"t{place}.jsonl", seed=place)
    return Family(folder, 2)


def expected_of(
    family: Family, asked: Recipe, found: Calibration, omega: float
) -> dict[str, Array]:
    """The merge of two experts' task vectors at half their sum, damped by the reference."""
    base = weights_of(family.folder / "base")
    assert found.activations is not None
    ours, transposed = activations(found), set(found.activations.transposed)
    experts = [weights_of(family.folder / f"e{place}") for place in range(family.experts)]
    wanted = {}
    for name, values in base.items():
        delta = 0.5 * np.sum([expert[name] - values for expert in experts], axis=0)
        if name in ours:
            delta = reference.aim(delta, ours[name], omega, name in transposed)
        wanted[name] = values + delta
    return wanted


@pytest.mark.parametrize("kind", ["Llama", "Mixtral", "GPT-2"])
@pytest.mark.parametrize("omega", [0.4, 0.0])
def test_the_merge_is_the_reference(tmp_path: Path, kind: str, omega: float) -> None:
    if kind == "GPT-2":
        family = gpt2_family(tmp_path)
    else:
        family = llama_family(tmp_path, experts=2, **(MIXTURE if kind == "Mixtral" else {}))
    asked = recipe(family, aim={"omega": omega}, parameters={"lambda": 0.5}, out_dtype="float64")
    found = calibrated(asked, tmp_path)
    assert found.activations is not None
    assert bool(found.activations.transposed) == (kind == "GPT-2")
    values = merged(asked, found, tmp_path / "out")
    plain = merged(without(asked), None, tmp_path / "plain")
    measured = activations(found)
    for name, wanted in expected_of(family, asked, found, omega).items():
        np.testing.assert_allclose(values[name], wanted, rtol=0, atol=1e-6, err_msg=name)
        assert (np.abs(values[name] - plain[name]).max() > 1e-4) == (name in measured), name
    if kind == "GPT-2":
        # The inputs are those of torch too: square matrices are not taken the wrong way round.
        for name, inputs in inputs_of(base_of(family), ids_of(family)).items():
            if name != "lm_head.weight":
                np.testing.assert_allclose(measured[name], inputs / inputs.max(), rtol=1e-4)


METHODS: dict[str, dict[str, Any]] = {
    "ties": {"parameters": {"density": 0.5}},
    "dare_linear": {"parameters": {"density": 0.5}},
    "tsv": {},
    "widen": {},
    "della": {"parameters": {"density": 0.5}},
    "task_arithmetic": {"sensitivity": {"samples": 4, "dtype": "float32"}},
}


@pytest.mark.parametrize("method", list(METHODS))
def test_any_merged_task_vector_is_damped(family: Family, method: str, tmp_path: Path) -> None:
    asked = recipe(family, method, out_dtype="float64", **METHODS[method])
    found = calibrated(asked, tmp_path)
    values = merged(asked, found, tmp_path / "out")
    needed = found if METHODS[method].get("sensitivity") else None
    plain = merged(without(asked), needed, tmp_path / "plain")
    base, measured = weights_of(family.folder / "base"), activations(found)
    for name, wanted in plain.items():
        delta = wanted - base[name]
        if name in measured:
            delta = reference.aim(delta, measured[name])
        np.testing.assert_allclose(values[name], base[name] + delta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["task_arithmetic", "della", "tsv"])
def test_bytes_depend_on_nothing_else(
    family: Family, measured: Calibration, method: str, tmp_path: Path
) -> None:
    asked = recipe(family, method, parameters={"density": 0.5} if method == "della" else {})
    ways: list[dict[str, Any]] = [{}, {"threads": 1}, {"threads": 3, "chunk_bytes": 4096}]
    files = []
    for place, way in enumerate(ways):
        out = tmp_path / str(place)
        merged(asked, measured, out, **way)
        files.append((out / "model.safetensors").read_bytes())
    assert files[0] == files[1] == files[2]
    models = {name: load_file(family.folder / name / "model.safetensors") for name in ("base",)}
    target = {name: torch.empty_like(tensor) for name, tensor in models["base"].items()}
    sensmerge.merge_into(target, asked, calibration=measured)
    for name, values in load_file(tmp_path / "0" / "model.safetensors").items():
        assert torch.equal(target[name], values), name


def test_one_changes_nothing(family: Family, measured: Calibration, tmp_path: Path) -> None:
    merged(recipe(family, aim={"omega": 1}), measured, tmp_path / "one")
    merged(without(recipe(family)), None, tmp_path / "plain")
    one, plain = (tmp_path / name / "model.safetensors" for name in ("one", "plain"))
    assert one.read_bytes() == plain.read_bytes()


def test_rows_and_units_in_another_order_are_damped_like_their_own(tmp_path: Path) -> None:
    family = llama_family(tmp_path, experts=2, layers=2)
    asked = recipe(family, align="permutation", tokenizer_source="base")
    before = merged(asked, calibrated(asked, tmp_path), tmp_path / "before")
    swap(tmp_path / "e1", "w1", "w40")

    def move(tensors: dict[str, torch.Tensor]) -> None:
        order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
        stem = "model.layers.1.mlp"
        for name in ("gate_proj", "up_proj"):
            tensors[f"{stem}.{name}.weight"] = tensors[f"{stem}.{name}.weight"][order]
        down = f"{stem}.down_proj.weight"
        tensors[down] = tensors[down][:, order].contiguous()

    edit_weights(tmp_path / "e1", move)
    found = calibrated(asked, tmp_path)
    after = merged(asked, found, tmp_path / "after")
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, err_msg=name)
    # A head of more rows than the base's has the same input channels.
    add_tokens(tmp_path / "e0", "<new>")
    data = asked.source | {"tokenizer_source": "union"}
    wider = merged(Recipe.from_dict(data, tmp_path), found, tmp_path / "wider")
    head = wider["lm_head.weight"]
    assert len(head) == len(before["lm_head.weight"]) + 1
    np.testing.assert_array_equal(head[:-1], before["lm_head.weight"])


def test_a_token_that_the_base_lacks_is_named(family: Family, tmp_path: Path) -> None:
    family = family.copy(tmp_path)
    add_tokens(tmp_path / "e0", "<new>")
    (tmp_path / "t0.jsonl").write_text(json.dumps({"text": "w1 w2 <new> w3"}) + "\n")
    with pytest.raises(InputError, match=r"aim: .*'<new>'.*or name samples that the base can read"):
        calibrated(recipe(family), tmp_path)


def test_samples_of_its_own(family: Family, tmp_path: Path) -> None:
    family = family.copy(tmp_path)
    write_samples(tmp_path / "general.jsonl", seed=9)
    data = family.recipe(sensitivity=SENSITIVITY, aim={"calibration": "general.jsonl"})
    for model in data["models"]:
        del model["calibration"]
    asked = Recipe.from_dict(data, folder=tmp_path)
    found = calibrated(asked, tmp_path)
    shutil.copy(tmp_path / "general.jsonl", tmp_path / "t9.jsonl")
    ids = [sample.ids for sample in oracle.samples_of(family, 9)]
    ours = activations(found)
    for name, values in inputs_of(base_of(family), ids).items():
        np.testing.assert_allclose(ours[name], values / values.max(), rtol=1e-4, err_msg=name)
    assert found.activations is not None
    assert found.activations.paths == ["general.jsonl"]
    # Coefficients are not among what was measured.
    more = recipe(family, sensitivity={"dtype": "float32", "samples": oracle.SAMPLES})
    with pytest.raises(InputError, match="has the base's activations alone; calibrate again"):
        sensmerge.merge(more, tmp_path / "out", found, progress=False)


def test_the_commands(family: Family, tmp_path: Path, capsys: Any) -> None:
    path = str(family.write_recipe(recipe(family).source, "aim.yaml"))
    calibration = tmp_path / "measured.json"
    assert run("calibrate", path, "-o", str(calibration), "--quiet") == 0
    file = tmp_path / "measured.activations.base.safetensors"
    before = file.stat().st_mtime_ns
    assert run("calibrate", path, "-o", str(calibration)) == 0
    assert str(file) in capsys.readouterr().out
    # What is there is not measured again.
    assert file.stat().st_mtime_ns == before
    given = ["--calibration", str(calibration)]
    assert run("merge", path, str(tmp_path / "out"), *given, "--dry-run") == 0
    assert run("plan", path, "-o", str(tmp_path / "plan.json"), *given) == 0
    planned = json.loads((tmp_path / "plan.json").read_text())
    damped = [each for each in planned["tensors"] if "damping" in each["content"]["merge"]]
    assert len(damped) == 3 * 9 + 2
    assert {each["content"]["merge"]["damping"]["omega"] for each in damped} == {0.4}
    sources = {str(file)}
    assert sources <= {model["path"] for model in planned["models"]}
    assert all(model["fingerprint"] for model in planned["models"])
    assert run("merge", path, str(tmp_path / "out"), *given, "--quiet") == 0
    assert run("merge", path, str(tmp_path / "measures"), "--quiet") == 0
    one, two = (tmp_path / name / "model.safetensors" for name in ("out", "measures"))
    assert one.read_bytes() == two.read_bytes()
    assert run("explain", path) == 0
    assert "aim: base is run on all experts' samples" in capsys.readouterr().out
    for command in (["plan", path, "-o", str(tmp_path / "p.json")],
                    ["merge", path, str(tmp_path / "x"), "--dry-run"]):  # fmt: skip
        assert run(*command) == 2
        assert "aim needs a calibration" in capsys.readouterr().err
    assert run("coefficients", path, *given) == 2
    assert "no sensitivity section" in capsys.readouterr().err
    assert run("report", str(calibration), "-o", str(tmp_path / "report.html")) == 2
    assert "activations alone" in capsys.readouterr().err


def test_recipes_that_cannot_be_damped(family: Family) -> None:
    def refused(said: str, method: str = "task_arithmetic", **keys: Any) -> None:
        with pytest.raises(InputError, match=said):
            recipe(family, method, **keys)

    refused("aim: linear merges no task vectors here", "linear")
    refused("aim: slerp merges no task vectors here", "slerp")
    refused(r"aim.omega: 1.5 is not from 0 to 1", aim={"omega": 1.5})
    refused(r"aim.omega: expected a number from 0 to 1", aim={"omega": "much"})
    refused("omega", aim={"omga": 0.3})
    refused("merge_method: 'aim': AIM is a step after a method", "aim")


def test_what_does_not_fit_is_refused(
    family: Family, measured: Calibration, tmp_path: Path
) -> None:
    asked = recipe(family)
    with pytest.raises(InputError, match="name the file that it will be saved as"):
        sensmerge.calibrate(asked, progress=False)

    def refused(said: str, found: Any, asked: Recipe = asked) -> None:
        with pytest.raises(InputError, match=said):
            sensmerge.merge(asked, tmp_path / "out", found, progress=False, sync=False)
        assert not (tmp_path / "out").exists()

    assert measured.folder is not None
    assert measured.activations is not None
    data = json.loads(measured.to_json())
    plain = oracle.calibrated(family)
    refused("has no activations of the base", plain)
    folder = tmp_path / "changed"
    shutil.copytree(measured.folder, folder)
    path, file = folder / "calibration.json", folder / measured.activations.file
    other = data | {"activations": data["activations"] | {"weights": "of others"}}
    path.write_text(json.dumps(other))
    refused("the weights of base are other ones; calibrate again", path)
    data["activations"]["file"] = "../x"
    path.write_text(json.dumps(data))
    refused("is no bare file name", path)

    tensors = load_file(file)

    def with_tensors(changed: dict[str, torch.Tensor]) -> Path:
        from sensmerge import _core

        save_file(changed, file)
        found = json.loads(measured.to_json())
        found["activations"]["fingerprint"] = _core.Checkpoint(str(file)).fingerprint()
        path.write_text(json.dumps(found))
        return path

    name = "model.layers.0.mlp.down_proj.weight"
    refused(f"{name}.*and the activations that damp it have shape", with_tensors(
        tensors | {name: tensors[name][:-1].contiguous()}))  # fmt: skip
    refused("activations are 0 to 1; calibrate again", with_tensors(
        tensors | {name: tensors[name] * float("nan")}))  # fmt: skip
    refused("is F64; activations are F32", with_tensors(tensors | {name: tensors[name].double()}))
    file.write_bytes(file.read_bytes()[:-4] + b"\x07\x07\x07\x07")
    refused("has changed since it was measured; calibrate again", path)


def test_a_search_merges_with_it(family: Family, measured: Calibration, tmp_path: Path) -> None:
    from sensmerge.search.judge import Judge
    from sensmerge.search.settings import Settings

    judge = Judge(recipe(family), calibration=measured, validation=0.0, threads=1)
    losses = {}
    for omega in (0.0, 0.4, 1.0):
        # All three from one preparation, which they do not change.
        asked = judge.recipe.replaced(judge.recipe.source | {"aim": {"omega": omega}})
        losses[omega] = judge.losses_of(asked)
    assert len({tuple(each) for each in losses.values()}) == 3
    assert judge.losses(Settings.of(judge.recipe)) == losses[0.4]


def test_derivatives_by_weights_are_damped(family: Family, measured: Calibration) -> None:
    from sensmerge import _core
    from sensmerge.merging.manifest import request
    from sensmerge.models import open_models
    from sensmerge.scaling.required import with_measurements

    asked = recipe(family, parameters={"lambda": 0.7}, out_dtype="float64")
    models, _ = with_measurements(asked, measured, open_models(asked))
    whole = request(asked, None, models)
    prepared = _core.Prepared(whole.manifest(), whole.checkpoints)
    name = "model.layers.1.mlp.down_proj.weight"
    base = weights_of(family.folder / "base")[name]
    gradient = np.random.default_rng(0).standard_normal(base.shape)
    found = prepared.derivatives(name, gradient.reshape(-1).view(np.uint8), "float64")
    for place, value in enumerate(found):
        delta = weights_of(family.folder / f"e{place}")[name] - base
        damped = reference.aim(delta, activations(measured)[name])
        assert value == pytest.approx(0.7 * float((gradient * damped).sum()), rel=1e-5)
