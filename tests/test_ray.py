"""Merges on a Ray cluster of several nodes on this machine: nodes and drivers may die."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import merges_apart
from merges_apart import COMMAND, hashes
from sensmerge import InputError, plan_merge
from sensmerge.distributed.ray import merge_on_ray, merge_one
from tiers import cases

LAYERS = 12


def patiently(start: Callable[[], Any]) -> Any:
    """Start a part of a cluster; on a busy machine, Ray's half a minute may not be enough."""
    for _ in range(5):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


class Nodes:
    """A cluster whose head runs no tasks, and its nodes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False}
        self.cluster: Any = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.nodes: list[Any] = []
        for _ in range(2):
            self.add()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> None:
        self.nodes.append(patiently(lambda: self.cluster.add_node(num_cpus=1, wait=False)))

    def kill(self, draw: random.Random) -> None:
        node = self.nodes.pop(draw.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.add()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    pytest.importorskip("ray")
    found = Nodes()
    yield found
    found.cluster.shutdown()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge whose cut and signs are those of the whole model: tasks wait for each other."""
    path = merges_apart.write_models(tmp_path_factory.mktemp("models"), LAYERS)
    said = json.loads(path.read_text()) | {"merge_method": "ties", "semantics": "original"}
    for model in said["models"]:
        model["parameters"]["density"] = 0.3
    path.write_text(json.dumps(said))
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the output of one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = merges_apart.merge(recipe, out)
    assert done.returncode == 0, done.stderr
    return hashes(out)


def driver(nodes: Nodes, recipe: Path, out: Path) -> subprocess.Popen[str]:
    """The command that merges on the cluster."""
    where = ["--engine", "ray", "--address", nodes.address, "--threads", "1"]
    command = [*COMMAND, str(recipe), str(out), "--max-shard-size", "600KB", "--quiet", *where]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, said = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, said


def is_right(out: Path, whole: dict[str, str]) -> bool:
    strays = [path.name for path in out.iterdir() if path.name.startswith(".sensmerge-")]
    return hashes(out) == whole and not strays


def test_lost_nodes_change_nothing(
    nodes: Nodes, recipe: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    draw, killed, merges = random.Random(1), 0, 0
    while killed < cases(2, 100):
        out = tmp_path / f"out{merges}"
        process, merges = driver(nodes, recipe, out), merges + 1
        for _ in range(5):
            # Not before the first task is under way.
            while not out.exists() and process.poll() is None:
                time.sleep(0.05)
            time.sleep(draw.uniform(0.1, 3.0))
            if process.poll() is None and killed < cases(2, 100):
                nodes.kill(draw)
                killed += 1
        assert ended(process) == (0, "")
        assert is_right(out, whole)


def test_after_a_lost_driver_the_same_command_goes_on(
    nodes: Nodes, recipe: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    draw = random.Random(2)
    for place in range(cases(1, 25)):
        out = tmp_path / f"out{place}"
        process = driver(nodes, recipe, out)
        while not out.exists() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(draw.uniform(0.0, 3.0))
        process.send_signal(signal.SIGKILL)
        assert ended(process)[0] in (0, -signal.SIGKILL)
        assert ended(driver(nodes, recipe, out)) == (0, "")
        assert is_right(out, whole)


def test_what_would_fail_again_is_not_tried_again(
    nodes: Nodes, recipe: Path, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    plan = plan_merge(recipe, tmp_path / "out", max_shard_size="600KB", progress=False)
    plan.save(path)
    said = json.loads(path.read_text())
    said["manifest"]["models"][0]["fingerprint"] = "sampled-blake3:other"
    path.write_text(json.dumps(said))
    words = "has changed since the manifest was made"
    how = {"method": plan.method, "output": str(tmp_path / "out"), "max_shard_bytes": 600_000}
    state, lines = merge_one(json.dumps(said["manifest"]), 0, how)
    assert state == "refused"
    assert words in lines[0]
    where = ["--engine", "ray", "--address", nodes.address]
    command = [*COMMAND, "--plan", str(path), *where, "--threads", "1"]
    code, told = ended(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    assert code == 2
    assert words in told


def test_a_cluster_that_is_not_there_is_said(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    plan = plan_merge(recipe, tmp_path / "out", max_shard_size="600KB", progress=False)
    with pytest.raises(InputError, match=r"Ray cannot be reached at 127\.0\.0\.1:9"):
        merge_on_ray(plan, "127.0.0.1:9", progress=False)
