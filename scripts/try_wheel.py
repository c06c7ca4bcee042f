"""Merge two tiny models with the package that is installed, and compare with plain arithmetic.

For wheels: it needs nothing but what they bring along, and neither torch nor this repository's
sources. The workflow of releases runs it on every platform; RELEASE.md says how to do so by hand.
"""

from __future__ import annotations

import json
import platform
import struct
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]

SHAPES = {
    "model.embed_tokens.weight": (64, 32),
    "model.layers.0.mlp.up_proj.weight": (48, 32),
    "model.layers.1.mlp.up_proj.weight": (48, 32),
    "lm_head.weight": (64, 32),
}
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2}
METHODS = ("task_arithmetic", "ties", "dare_ties", "slerp", "tsv")


def write(folder: Path, tensors: Tensors) -> None:
    """Write a model's folder in the layout of the Hugging Face Hub."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    header, end = {}, 0
    for name, tensor in tensors.items():
        offsets = [end, end := end + tensor.nbytes]
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": offsets}
    encoded = json.dumps(header).encode()
    data = b"".join(tensor.tobytes() for tensor in tensors.values())
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def read(folder: Path) -> Tensors:
    """The tensors of a model's folder."""
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            flat = np.frombuffer(content[start:end], np.float32)
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def family(folder: Path) -> list[Tensors]:
    """A base and two experts, in the folders ``base``, ``e0`` and ``e1``."""
    random = np.random.default_rng(0)

    def noise(scale: float) -> Tensors:
        return {
            name: (scale * random.standard_normal(shape)).astype(np.float32)
            for name, shape in SHAPES.items()
        }

    base = noise(1.0)
    models = [base]
    for _ in range(2):
        change = noise(0.1)
        models.append({name: base[name] + change[name] for name in SHAPES})
    for name, tensors in zip(("base", "e0", "e1"), models, strict=True):
        write(folder / name, tensors)
    return models


def merge(folder: Path, method: str, threads: int) -> Tensors:
    """Merge the family by the command line."""
    experts = ["e0"] if method == "slerp" else ["e0", "e1"]
    parameters = {"t": 0.5} if method == "slerp" else {"lambda": 0.5}
    if method in ("ties", "dare_ties"):
        parameters["density"] = 0.5
    models = [{"model": name} for name in experts]
    recipe = {"merge_method": method, "base_model": "base", "models": models}
    (folder / "recipe.json").write_text(json.dumps(recipe | {"parameters": parameters}))
    out = folder / f"{method}-{threads}"
    command = [
        sys.executable,
        "-m",
        "sensmerge.cli",
        "merge",
        str(folder / "recipe.json"),
        str(out),
    ]
    subprocess.run([*command, "--threads", str(threads), "--quiet"], check=True)
    subprocess.run([*command[:3], "verify", str(out), "--quiet"], check=True)
    return read(out)


def main() -> None:
    """Merge by a method of every kind, with one thread and with three."""
    import sensmerge
    from sensmerge import _core

    free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    # An extension that is not made for it turns the lock on again.
    locked = getattr(sys, "_is_gil_enabled", lambda: True)()
    if free and locked:
        sys.exit("error: importing the extension turned the interpreter's lock on")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, first, second = family(folder)
        for method in METHODS:
            merged, again = merge(folder, method, 1), merge(folder, method, 3)
            for tensor in SHAPES:
                if merged[tensor].tobytes() != again[tensor].tobytes():
                    sys.exit(f"error: {method}: {tensor} depends on the number of threads")
        plain = read(folder / "task_arithmetic-1")
        for tensor in SHAPES:
            wanted = base[tensor] + 0.5 * (first[tensor] - base[tensor])
            wanted += 0.5 * (second[tensor] - base[tensor])
            if not np.allclose(plain[tensor], wanted, rtol=0, atol=1e-6):
                sys.exit(f"error: task_arithmetic: {tensor} is not the sum of the task vectors")
    if "torch" in sys.modules:
        sys.exit("error: a plain merge imported torch")
    place = Path(str(_core.__file__)).name
    kind = "free-threaded " if free else ""
    print(
        f"sensmerge {sensmerge.__version__} ({place}) merges on {kind}Python "
        f"{platform.python_version()}, {platform.platform()}"
    )


if __name__ == "__main__":
    main()
