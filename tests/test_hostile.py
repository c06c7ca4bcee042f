"""Untrusted models, recipes and samples are data: refused by name or read right."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

import hostile
from hostile_files import INDEX, NAME, Case
from sensmerge import InputError, _core
from test_bad_input import run
from tiers import cases as tier

# Of one case; a case that hangs takes longer on any machine.
SECONDS = 60
# Bytes that one case may take beside what the process has.
MEMORY = 64 * 2**20
# Characters that one case may print.
PRINTED = 20_000

KINDS = 180


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one file, one of a part and an index, and an adapter; and what lies outside."""
    import numpy as np

    folder = tmp_path_factory.mktemp("sound")
    draw = np.random.default_rng(0)
    for name in ("base", "e1", "sharded", "lora"):
        (folder / name).mkdir()
    for name in ("base", "e1"):
        tensors = {
            "a.weight": draw.standard_normal((3, 4), np.float32),
            "b.weight": draw.standard_normal(5, np.float32),
        }
        (folder / name / NAME).write_bytes(save(tensors))
    (folder / "base/config.json").write_text('{"model_type": "any"}')
    (folder / "base/tokenizer.json").write_text('{"model": {"vocab": {"x": 0, "y": 1}}}')
    (folder / "sharded/part.safetensors").write_bytes(save(tensors))
    places = dict.fromkeys(tensors, "part.safetensors")
    (folder / "sharded" / INDEX).write_text(json.dumps({"weight_map": places}))
    factors = {
        "base_model.model.a.lora_A.weight": draw.standard_normal((2, 4), np.float32),
        "base_model.model.a.lora_B.weight": draw.standard_normal((3, 2), np.float32),
    }
    (folder / "lora/adapter_model.safetensors").write_bytes(save(factors))
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (folder / "lora/adapter_config.json").write_text(json.dumps(said))
    (folder / "secret").write_text("secret")
    return folder


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError("the case hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def merged(folder: Path, model: str = "e1", *options: str, **keys: Any) -> int:
    models = [{"model": "base"}, {"model": model}]
    recipe = {"merge_method": "linear", "models": models} | keys
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return merge(folder, *options)


def merge(folder: Path, *options: str) -> int:
    return run("merge", str(folder / "recipe.yaml"), str(folder / "out"), "--no-sync", *options)


def coefficients(folder: Path) -> int:
    recipe = {"merge_method": "linear", "models": [{"model": "base"}, {"model": "e1"}]}
    (folder / "recipe.yaml").write_text(json.dumps(recipe | {"sensitivity": {}}))
    return run("coefficients", str(folder / "recipe.yaml"), "--calibration", str(folder / "c.json"))


def called(read: Callable[[Path], object]) -> Callable[[Path], int]:
    """What is no command, as the command line would end it."""

    def call(folder: Path) -> int:
        try:
            read(folder)
        except InputError as error:
            from sensmerge.cli import printing

            printing.complain(error.lines)
            return 2
        return 0

    return call


def read_samples(folder: Path) -> object:
    from sensmerge.calibration.samples import read

    (path,) = folder.glob("s.*")
    return read(path)


def read_history(folder: Path) -> object:
    import numpy as np

    from sensmerge.search.history import History

    weights: Any = type("Weights", (), {"groups": ["a"], "start": np.zeros((1, 1))})
    return History.resume(folder / "h.json", {}, weights, ["e1"])


def read_study(folder: Path) -> object:
    from sensmerge.search import study

    return study._open(folder / "s.log")


VERBS: dict[str, Callable[[Path], int]] = {
    "inspect": lambda folder: run("inspect", str(folder / "e1")),
    "inspect-sharded": lambda folder: run("inspect", str(folder / "sharded")),
    "merge": merged,
    "adapter": lambda folder: merged(folder, "base+lora"),
    "union": lambda folder: merged(folder, tokenizer_source="union"),
    "force": lambda folder: merged(folder, "e1", "--force"),
    "recipe": merge,
    "calibration": coefficients,
    "samples": called(read_samples),
    "history": called(read_history),
    "study": called(read_study),
}


def memory(which: str, *, forget: bool = False) -> int:
    """Bytes that the process has (VmRSS) or had at most (VmHWM) since the peak was forgotten."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(rf"{which}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def fault(case: Case, code: int, out: str, err: str) -> str | None:
    """What is wrong with the outcome of a case; None if nothing is."""
    if "Traceback" in err or "panicked" in err:
        return "a traceback"
    if len(out) + len(err) > PRINTED:
        return f"prints {len(out) + len(err)} characters"
    unseen = [mark for mark in out + err if mark != "\n" and not (mark.isprintable() or mark == "́")]
    if unseen:
        return f"prints {unseen[0]!r}"
    if any(line.startswith("error: forged") for line in (out + err).splitlines()):
        return "forges a line"
    if case.said is None:
        return None if code == 0 else f"is refused: {err.strip()[-300:]}"
    if code != 2:
        return f"ends with {code}: {(err or out).strip()[-300:]}"
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    if not any(case.file in line for line in errors):
        return f"does not name {case.file}: {err.strip()[-300:]}"
    if not any(case.said in line for line in errors):
        return f"does not say '{case.said}': {err.strip()[-300:]}"
    return None


def differs(folder: Path) -> str | None:
    """How a checkpoint that is accepted differs from what the `safetensors` package reads."""
    path = folder / "e1" / NAME
    data = path.read_bytes()
    try:
        read: Any = deserialize
        theirs = dict(read(data))
    except SafetensorError as error:
        return f"is refused by safetensors: {error}"
    ours = {tensor.name: tensor for tensor in _core.Checkpoint(str(path)).tensors}
    if ours.keys() != theirs.keys():
        return "has other names"
    for name, tensor in ours.items():
        said = theirs[name]
        same = (tensor.dtype, tensor.shape) == (said["dtype"], said["shape"])
        if not same or data[tensor.start : tensor.start + tensor.nbytes] != bytes(said["data"]):
            return f"reads '{name}' otherwise"
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for memory")
@pytest.mark.tiers
def test_every_hostile_file_is_refused_or_read_right(
    sound: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = hostile.cases()
    assert len(corpus) >= KINDS
    assert len({(case.kind, case.name) for case in corpus}) == len(corpus)
    # What is imported on first use is no memory of a case.
    for module in ("pyarrow.parquet", "sensmerge.calibration.samples", "sensmerge.search.history"):
        import_module(module)
    assert memory("VmRSS")
    wrong = []
    for number, case in enumerate(corpus):
        folder = tmp_path / str(number)
        shutil.copytree(sound, folder)
        case.build(folder)
        before = {path.name for path in folder.iterdir()}
        secret = (folder / "secret").read_bytes()
        capfd.readouterr()
        held = memory("VmRSS", forget=True)
        try:
            with bounded(SECONDS):
                code = VERBS[case.kind](folder)
            said = capfd.readouterr()
            found = fault(case, code, said.out, said.err)
            taken = memory("VmHWM") - held
            found = found or (f"takes {taken >> 20} MiB" if taken > MEMORY else None)
        except Exception as error:
            code, found = 1, f"raises {type(error).__name__}: {str(error)[:300]}"
        if found is None and code == 0 and case.kind == "inspect":
            found = differs(folder)
        if found is None and code != 0:
            made = {path.name for path in folder.iterdir()} - before
            found = f"leaves {made}" if made - {"recipe.yaml"} else None
        if found is None and (folder / "secret").read_bytes() != secret:
            found = "writes outside"
        if found is not None:
            wrong.append(f"{case.kind}, {case.name}: {found}")
        shutil.rmtree(folder)
    assert not wrong, f"{len(wrong)} of {len(corpus)}:\n" + "\n".join(wrong)


@pytest.mark.torture
def test_files_that_are_cut_off_are_refused_or_read_right(
    sound: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every kind of file, cut at places all over it: typed errors and nothing else."""
    wrong = []
    for verb, name in (
        ("inspect", f"e1/{NAME}"),
        ("inspect-sharded", f"sharded/{INDEX}"),
        ("adapter", "lora/adapter_model.safetensors"),
        ("adapter", "lora/adapter_config.json"),
        ("union", "base/tokenizer.json"),
    ):
        whole = (sound / name).read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // tier(10, 200))):
            folder = tmp_path / "model"
            shutil.copytree(sound, folder)
            (folder / name).write_bytes(whole[:place])
            code = VERBS[verb](folder)
            said = capfd.readouterr()
            if code not in (0, 2) or "Traceback" in said.err or "panicked" in said.err:
                wrong.append(f"{name}, {place} bytes: {code}: {said.err[-300:]}")
            shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong)


# Beside the models: what the interpreter, its packages and the system's loader open.
_OWN = ("/proc/", "/sys/", "/dev/null", "/dev/urandom", "/dev/tty", "/etc/ld.so", "/etc/localtime",
        "/etc/passwd", "/etc/nsswitch.conf", "/usr/", "/lib", "/bin/")  # fmt: skip


@pytest.mark.torture
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("verb", ["inspect", "merge"])
def test_nothing_else_is_opened(sound: Path, tmp_path: Path, verb: str) -> None:
    folder = tmp_path / "models"
    shutil.copytree(sound, folder)
    config = {"auto_map": {"AutoConfig": "evil.Config"}, "_name_or_path": "/etc/hostname"}
    (folder / "base/config.json").write_text(json.dumps(config))
    (folder / "base/evil.py").write_text("raise SystemExit(9)")
    recipe = {"merge_method": "linear", "models": [{"model": "base"}, {"model": "e1"}]}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    arguments = [str(folder / "base")]
    if verb == "merge":
        arguments = [str(folder / "recipe.yaml"), str(folder / "out")]
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2,creat", "-o", str(trace)]
    command += [sys.executable, "-m", "sensmerge.cli", verb, *arguments]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    package = Path(_core.__file__).parent.parent
    own = [*_OWN, sys.prefix, sys.base_prefix, sys.exec_prefix, str(package), str(folder)]
    own += [os.path.realpath(each) for each in own[len(_OWN) :]]
    opened = set()
    for line in trace.read_text(errors="replace").splitlines():
        parts = line.split('"')
        # What is not there is not opened.
        if len(parts) > 2 and " = -1 " not in parts[-1]:
            opened.add(parts[1])
    foreign = {path for path in opened if path.startswith("/") and not path.startswith(tuple(own))}
    assert opened
    assert not foreign
