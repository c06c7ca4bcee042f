"""Backward passes: the gradients that are passed on, and the number held at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import torch_oracle as oracle
from families import llama_family
from sensmerge.calibration.backward import Gradient, each_gradient, groups, summed_gradients
from sensmerge.calibration.sensitivity import cross_entropy
from sensmerge.calibration.stream import Stream
from sensmerge.models.layers import layer_of


class Case:
    def __init__(self, folder: Path, *, tied: bool) -> None:
        family = llama_family(folder, experts=1, tied=tied)
        self.tied = tied
        self.model: Any = oracle.load(family, 0)
        self.samples = oracle.samples_of(family, 0)
        self.layers = {name: layer_of(name) for name, _ in self.model.named_parameters()}
        self.stream = Stream(self.model, self.layers)
        self.places = list(range(len(self.samples)))

    def loss(self, place: int, logits: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, self.samples[place])

    def held(self) -> set[str]:
        """Parameters that have a gradient."""
        return {name for name, each in self.model.named_parameters() if each.grad is not None}

    def expected(self, places: list[int]) -> dict[str, torch.Tensor]:
        """Gradients of the summed losses, by torch alone."""
        for place in places:
            oracle.loss(self.model, self.samples[place]).backward()
        found = {name: each.grad.clone() for name, each in self.model.named_parameters()}
        self.model.zero_grad()
        return found


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(tmp_path, tied=request.param)


def added(found: dict[Any, torch.Tensor], key: Any, values: torch.Tensor) -> None:
    found[key] = found[key] + values if key in found else values.clone()


@pytest.mark.parametrize("streamed", [False, True])
def test_every_samples_gradients_come_one_at_a_time(case: Case, streamed: bool) -> None:
    found: dict[Any, torch.Tensor] = {}
    pieces = 0

    def take(gradient: Gradient) -> None:
        nonlocal pieces
        assert case.held() == {gradient.name}
        pieces += gradient.is_piece
        added(found, (gradient.place, gradient.name), gradient.values)

    stream = case.stream if streamed else None
    for group in groups(stream, case.samples, case.places, float("inf")):
        each_gradient(case.model, stream, case.samples, group, case.loss, take)
    assert pieces == (len(case.samples) if streamed and case.tied else 0)
    assert not case.held()
    for place in case.places:
        for name, expected in case.expected([place]).items():
            torch.testing.assert_close(found[place, name], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("streamed", [False, True])
def test_summed_gradients_come_part_by_part(case: Case, streamed: bool) -> None:
    found: dict[Any, torch.Tensor] = {}
    most = 0
    parts = 0

    def take(gradient: Gradient) -> None:
        nonlocal most
        assert gradient.place is None
        layers = {case.layers[name] for name in case.held()}
        most = max(most, len({layer for layer in layers if layer.startswith("model.layers.")}))
        added(found, gradient.name, gradient.values)

    def part_done() -> None:
        nonlocal parts
        parts += 1
        assert not case.held()

    stream = case.stream if streamed else None
    for group in groups(stream, case.samples, case.places, float("inf")):
        summed_gradients(
            case.model, stream, case.samples, group, case.loss, take, part_done=part_done
        )
    blocks = len(case.stream.blocks)
    assert most == (1 if streamed else blocks)
    # The head, the blocks and the embeddings; or every sample.
    assert parts == (blocks + 2 if streamed else len(case.samples))
    for name, expected in case.expected(case.places).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7)


def test_samples_go_together_as_far_as_their_kept_inputs_fit(tmp_path: Path) -> None:
    case = Case(tmp_path, tied=False)
    sizes = [case.stream.kept_bytes(len(sample.ids)) for sample in case.samples]
    assert list(groups(case.stream, case.samples, [], 1)) == []
    assert list(groups(None, case.samples, [2, 0], 10**9)) == [[2], [0]]
    assert list(groups(case.stream, case.samples, case.places, 1)) == [[0], [1], [2], [3]]
    assert list(groups(case.stream, case.samples, case.places, sum(sizes[:3]))) == [[0, 1, 2], [3]]
    assert list(groups(case.stream, case.samples, case.places, sum(sizes))) == [case.places]


def test_nothing_is_left_when_a_loss_is_refused(case: Case) -> None:
    def refuse(place: int, logits: torch.Tensor) -> torch.Tensor:
        if place:
            raise ValueError("no")
        return case.loss(place, logits)

    for function, options in ((each_gradient, {}), (summed_gradients, {"part_done": lambda: None})):
        with pytest.raises(ValueError, match="no"):
            function(
                case.model, case.stream, case.samples, case.places, refuse, lambda _: None,
                **options,
            )  # fmt: skip
        assert not case.held()
        assert all(not each._post_accumulate_grad_hooks for each in case.model.parameters())
