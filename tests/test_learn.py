"""Learning weights: gradients against oracles, continuing after a stop, the written recipes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

import sensmerge
import torch_oracle as oracle
from families import Family, llama_family
from sensmerge import InputError, Recipe
from sensmerge.cli import commands
from sensmerge.models.layers import layer_of
from sensmerge.recipe.numbers import said_of
from sensmerge.search import descent, memorised, tasks
from sensmerge.search.descent import Options, Problem
from sensmerge.search.history import History, Step
from torch_devices import DEVICES

SAMPLES = {"samples": 4, "mode": "off"}
LAMBDA = 0.6

# Norms and softmax run in float32 whatever the weights are in, and a GPU sums in another order.
TOLERANCE = {"cpu": 1e-6, "cuda": 1e-4}


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family in float64, in which differences of losses are exact enough."""
    return llama_family(tmp_path_factory.mktemp("exact"), dtype="float64", layers=2)


def recipe(family: Family, method: str = "task_arithmetic", **keys: Any) -> Recipe:
    keys = {"sensitivity": SAMPLES, "parameters": {"lambda": LAMBDA, "density": 0.6}, **keys}
    if method == "task_arithmetic":
        keys["parameters"] = {k: v for k, v in keys["parameters"].items() if k != "density"}
    if method == "linear":
        keys["parameters"] = {}
    return Recipe.from_dict(family.recipe(method, **keys), folder=family.folder)


def offsets_of(problem: Problem) -> Any:
    shape = problem.weights.start.shape
    return 0.1 * np.random.default_rng(3).standard_normal(shape)


@pytest.mark.parametrize(
    ("method", "semantics"),
    [
        ("linear", "mergekit"),
        ("ties", "original"),
        ("dare_linear", "mergekit"),
        ("dare_linear", "original"),
        ("pcb", "mergekit"),
        ("widen", "mergekit"),
        # Weighted votes change with weights: the merge then jumps. The core's tests compare
        # derivatives where no vote changes.
        ("dare_ties", "original"),
    ],
)
def test_gradients_of_every_method(exact: Family, method: str, semantics: str) -> None:
    problem = Problem(recipe(exact, method, semantics=semantics), Options(validation=0.0))
    check_differences(problem)


def check_differences(problem: Problem, rel: float = 1e-3) -> None:
    offsets = offsets_of(problem)
    _, gradient = problem.differentiate(offsets)
    places = [(0, 0), (1, gradient.shape[1] // 2), (gradient.shape[0] - 1, gradient.shape[1] - 1)]
    for place in places:
        ends = []
        # Large: norms and softmax run in float32 whatever the weights are in.
        for step in (3e-3, -3e-3):
            near = offsets.copy()
            near[place] += step
            ends.append(np.mean(problem.differentiate(near)[0]))
        expected = (ends[0] - ends[1]) / 6e-3
        # Of losses in float32, the last place over the distance of the two.
        assert gradient[place] == pytest.approx(expected, rel=rel, abs=8e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_gradients_are_those_of_torch(tmp_path: Path, tied: bool, device: str) -> None:
    family = llama_family(tmp_path, dtype="float64", layers=2, tied=tied)
    options = Options(groups="tensor", validation=0.0)
    problem = Problem(recipe(family), options, device=device)
    assert all(each.device.type == device for each in problem._candidate.model.parameters())
    check_with_torch(family, problem, lambda name: name, torch.float64, TOLERANCE[device])


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_where_weights_are_converted(tmp_path: Path, device: str) -> None:
    """transformers fuses the experts of a mixture's block into one parameter when it loads them."""
    family = llama_family(
        tmp_path, layers=2, architecture="Mixtral", num_local_experts=4, num_experts_per_tok=2
    )
    problem = Problem(recipe(family), Options(validation=0.0), device=device)
    check_with_torch(family, problem, layer_of, torch.float32, 1e-4)


def check_with_torch(
    family: Family,
    problem: Problem,
    group_of: Callable[[str], str],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    """Compare losses and gradients with those of torch, which differentiates the merge itself."""
    offsets = offsets_of(problem)
    losses, gradient = problem.differentiate(offsets)

    models = [
        AutoModelForCausalLM.from_pretrained(family.folder / name, dtype=dtype).eval()
        for name in ("base", "e0", "e1", "e2")
    ]
    states = [dict(model.named_parameters()) for model in models]
    places = {name: place for place, name in enumerate(problem.weights.groups)}
    weights = torch.tensor(1.0 + offsets, requires_grad=True)
    merged = {
        name: base.detach()
        + LAMBDA
        * sum(
            weights[expert, places[group_of(name)]].to(dtype)
            * (states[1 + expert][name] - base).detach()
            for expert in range(3)
        )
        for name, base in states[0].items()
    }
    total: Any = torch.zeros((), dtype=dtype)
    expected_losses = []
    for expert in range(3):
        found: list[Any] = []
        for sample in oracle.samples_of(family, expert):
            ids = torch.tensor([sample.ids])
            logits = torch.func.functional_call(models[0], merged, (ids,)).logits[0]
            rows = logits[[place - 1 for place in sample.scored]]
            targets = ids[0, sample.scored]
            found.append(torch.nn.functional.cross_entropy(rows, targets))
        expected_losses.append(float(sum(found).detach() / len(found)))
        total = total + sum(found) / (3 * len(found))
    total.backward()
    assert losses == pytest.approx(expected_losses, rel=tolerance)
    assert weights.grad is not None
    wanted = weights.grad.numpy()
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=tolerance * np.abs(wanted).max())


def divergence(teacher: Any, student: Any, sample: Any) -> float:
    """Mean over the scored positions of KL(teacher ‖ student), by torch alone."""
    ids, where = torch.tensor([sample.ids]), [place - 1 for place in sample.scored]
    with torch.no_grad():
        p, q = (
            torch.log_softmax(model(ids).logits[0, where], dim=1) for model in (teacher, student)
        )
    return float((p.exp() * (p - q)).sum(dim=1).mean())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("positions", ["completion", "all"])
def test_distillation_is_validated_by_completions_where_there_are(
    exact: Family, tmp_path: Path, positions: str, device: str
) -> None:
    asked = recipe(exact, sensitivity=SAMPLES | {"positions": positions})
    problem = Problem(asked, Options(loss="distill", validation=0.25), device=device)
    found, _ = problem.differentiate(np.zeros_like(problem.weights.start))
    validated = problem.validate()
    sensmerge.merge(asked, tmp_path / "out", progress=False, sync=False)

    def load(path: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()

    student = load(tmp_path / "out")
    for place, task in enumerate(problem.tasks):
        teacher = load(exact.folder / f"e{place}")
        apart = [divergence(teacher, student, sample) for sample in task.search]
        assert found[place] == pytest.approx(np.mean(apart), rel=TOLERANCE[device])
        assert len(task.validation) == 1
        with torch.no_grad():
            losses = [float(oracle.loss(student, sample)) for sample in task.validation]
        held = [divergence(teacher, student, sample) for sample in task.validation]
        wanted = losses if positions == "completion" else held
        assert validated[place] == pytest.approx(wanted, rel=TOLERANCE[device])


def test_a_model_that_cannot_be_streamed_gives_the_same(exact: Family) -> None:
    problem = Problem(recipe(exact), Options(validation=0.0))
    offsets = offsets_of(problem)
    losses, gradient = problem.differentiate(offsets)
    problem._stream = None
    whole_losses, whole = problem.differentiate(offsets)
    assert whole_losses == pytest.approx(losses)
    np.testing.assert_allclose(whole, gradient, rtol=1e-9, atol=1e-15)


def learned(family: Family, **keys: Any) -> descent.Learned:
    options = Options(**({"steps": 4, "learning_rate": 0.2} | keys.pop("options", {})))
    return descent.learn(recipe(family), options, progress=False, threads=1, **keys)


def test_losses_fall_and_the_best_is_kept(family: Family, tmp_path: Path) -> None:
    found = learned(family, options={"validation": 0.0}, home=tmp_path)
    assert len(found.history.steps) == 5
    assert found.history.steps[-1].loss < found.history.steps[0].loss
    assert any("nothing was validated" in note for note in found.notes)
    best = found.history.best
    assert best.loss == min(step.loss for step in found.history.steps)

    (path, picture) = found.write(tmp_path / "learned.yaml")
    assert picture.read_bytes().startswith(b"\x89PNG")
    written = Recipe.load(path)
    assert written.sensitivity is None
    result = sensmerge.merge(written, tmp_path / "merged", progress=False, sync=False)
    model: Any = AutoModelForCausalLM.from_pretrained(result.output).eval()
    with torch.no_grad():
        for expert in range(3):
            losses = [oracle.loss(model, sample) for sample in oracle.samples_of(family, expert)]
            mean = float(sum(losses) / len(losses))
            assert mean == pytest.approx(best.losses[expert], rel=1e-5)


def test_what_was_stopped_goes_on(family: Family, tmp_path: Path) -> None:
    unbroken = learned(family)
    path = tmp_path / "history.json"

    class StoppedError(Exception):
        pass

    real = Problem.differentiate
    calls = 0

    def stops(self: Problem, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StoppedError
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Problem, "differentiate", stops)
        with pytest.raises(StoppedError):
            learned(family, history=path)
    assert len(json.loads(path.read_text())["steps"]) == 2
    resumed = learned(family, history=path)
    assert resumed.history.steps == unbroken.history.steps
    assert resumed.recipe == unbroken.recipe
    # More steps follow the same ones; other samples start anew.
    more = learned(family, history=path, options={"steps": 5})
    assert more.history.steps[:5] == unbroken.history.steps
    other = learned(family, history=path, options={"groups": "global", "steps": 1})
    assert len(other.history.steps) == 2


def test_the_start_is_kept_where_validation_gets_worse() -> None:
    held = [[1.9, 2.1]], [[2.0, 2.2]], [[2.2, 2.4]]
    steps = [Step([[at / 10]], [2.0 - at / 2], held[at]) for at in range(3)]
    history = History(["e0"], ["all"], [[1.0]], steps)
    assert history.best is steps[0]
    said = history.sentences()
    assert "the start is kept" in said[0]
    assert "overfitting" in said[1]
    assert history.is_over(2)
    assert not history.is_over(3)


@pytest.mark.parametrize(
    ("held", "taken"),
    [
        # Lower for every sample.
        ([[1.5, 2.6], [3.0, 3.5]], 1),
        # Lower for some and higher for others.
        ([[0.5, 4.4], [3.4, 4.0]], 0),
        # A sample a task: those of all tasks tell how far the difference varies.
        ([[1.5], [3.1]], 1),
        ([[0.9], [4.5]], 0),
        # A single sample tells nothing.
        ([[0.9]], 0),
    ],
)
def test_a_step_is_taken_by_more_than_a_standard_error(held: list[list[float]], taken: int) -> None:
    start = [[2.0, 3.0], [3.5, 4.0]]
    first = [losses[: len(ours)] for losses, ours in zip(start, held, strict=False)]
    steps = [Step([[0.0]], [2.0], first), Step([[0.1]], [1.5], held)]
    history = History(["e0", "e1"][: len(held)], ["all"], [[1.0]], steps)
    assert history.best is steps[1]
    assert history.taken is steps[taken]
    said = history.sentences()[0]
    assert ("no more than its standard error" in said) == (taken == 0)


def test_sums_without_weights_start_at_equal_shares(family: Family) -> None:
    plain = Recipe.from_dict(family.recipe(), folder=family.folder)
    started, notes = descent.started(plain)
    assert started.parameters.weight == pytest.approx(1 / 3)
    assert "weights start at 0.333" in notes[0]
    assert descent.started(recipe(family)) == (recipe(family), [])
    # The largest change is no larger for being one of three.
    choice = Recipe.from_dict(family.recipe("magmax"), folder=family.folder)
    assert descent.started(choice) == (choice, [])


def test_it_starts_from_sensitivity(family: Family, measured: sensmerge.Calibration) -> None:
    options = {"samples": 4, "dtype": "float32", "temperature": 0.01}
    asked = recipe(family, sensitivity=options)
    problem = Problem(asked, Options(), calibration=measured)
    found = sensmerge.coefficients(measured, asked)
    for layer in found.layers:
        place = problem.weights.groups.index(layer)
        np.testing.assert_allclose(problem.weights.start[:, place], found.scale_of(layer))


def test_memorised_samples_are_told() -> None:
    fresh = [1.0, 1.2, 0.8, 1.1]
    assert memorised.judge("e", fresh, [1.1, 0.9, 1.0], [2.0, 2.1]) == []
    (said,) = memorised.judge("e", [0.1, 0.12, 0.09], fresh, [2.0])
    assert "seems to have memorised" in said
    # With few samples, a single hard one is no evidence.
    assert memorised.judge("e", [0.15, 0.16], [0.15, 0.6], [2.0]) == []
    (said,) = memorised.judge("e", [0.01, 0.02], [], [2.0, 2.0])
    assert "below 0.05 times the base's 2.000" in said


def test_parts_share_nothing() -> None:
    samples: Any = list(range(10))
    search, validation = tasks.part(samples, 0.25, 7, "e")
    assert len(validation) == 3
    assert set(search) | set(validation) == set(samples)
    assert len(search) == 7
    assert tasks.part(samples, 0.25, 7, "e") == (search, validation)
    with pytest.raises(InputError, match=r"1 samples are too few"):
        tasks.part([samples[0]], 0.5, 0, "e")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps: 0"),
        ({"groups": "head"}, "groups: 'head'"),
        ({"loss": "l2"}, "loss: 'l2'"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"pull": float("nan")}, "pull"),
        ({"validation": 1.0}, "validation: 1"),
    ],
)
def test_options_that_cannot_be_are_refused(
    family: Family, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        descent.learn(recipe(family), Options(**options), progress=False)


def test_a_scale_of_nothing_is_refused(family: Family) -> None:
    nothing = recipe(family, parameters={"lambda": 0.0})
    with pytest.raises(InputError, match=r"parameters\.lambda: is 0"):
        descent.learn(nothing, progress=False)


def test_weights_are_written_as_they_are_read() -> None:
    weights = {
        "lm_head.weight": 1.0,
        "model.layers.1.a.weight": 2.0,
        "model.layers.1.b.weight": 2.0,
        "model.layers.11.a.weight": 3.0,
        "model.layers.11.b.weight": 4.0,
    }
    found = said_of(weights, layer_of)
    assert {"filter": "model.layers.1.", "value": 2.0} in found
    assert {"filter": "model.layers.11.b.weight", "value": 4.0} in found
    assert said_of({"a.weight": 0.5, "b.weight": 0.5}, layer_of) == 0.5


def test_the_command(family: Family, tmp_path: Path) -> None:
    copy = family.copy(tmp_path / "family")
    path = copy.write_recipe(copy.recipe(sensitivity=SAMPLES, parameters={"lambda": 0.3}))
    out = tmp_path / "out" / "learned.yaml"
    arguments = ["learn", str(path), "-o", str(out), "--steps", "2", "--groups", "global"]
    done = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert sorted(file.name for file in out.parent.iterdir()) == [
        "learned.history.json",
        "learned.png",
        "learned.yaml",
    ]
    sensmerge.merge(Recipe.load(out), tmp_path / "merged", progress=False, sync=False)


def test_a_history_that_is_none_is_refused(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="is not a history of learning"):
        learned(family, history=path)
