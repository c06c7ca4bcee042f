"""Merge two tiny models with the package that is installed, and compare with plain arithmetic.

For wheels: it needs nothing but what they bring along, and neither torch nor this repository's
sources. The workflow of releases runs it on every platform; RELEASE.md says how to do so by hand.
Every platform has to give the same bytes, but for methods on whole matrices.
"""

from __future__ import annotations

import hashlib
import json
import platform
import struct
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
METHODS = ("task_arithmetic", "ties", "dare_ties", "della", "slerp", "karcher", "sce", "tsv")
# Of these, the ones whose last bits may depend on the processor.
BY_MATRICES = {"tsv"}
# What the others gave on x86-64.
DIGEST = "bdf89aaa8d980c6d0f53eab2938dd01bd524963cfd68d940ae3ea0cc71fa2be7"


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
        # Whole numbers times a power of two: the same on every platform.
        return {
            name: (random.integers(-(2**15), 2**15, shape) * scale).astype(np.float32)
            for name, shape in SHAPES.items()
        }

    base = noise(2.0**-15)
    models = [base]
    for _ in range(2):
        change = noise(2.0**-18)
        models.append({name: base[name] + change[name] for name in SHAPES})
    for name, tensors in zip(("base", "e0", "e1"), models, strict=True):
        write(folder / name, tensors)
    return models


def merge(folder: Path, method: str, threads: int) -> Tensors:
    """Merge the family, and let the command line verify what was written."""
    import sensmerge
    from sensmerge.cli import commands

    parameters = {"slerp": {"t": 0.5}, "karcher": {}, "sce": {}}.get(method, {"lambda": 0.5})
    if method in ("ties", "dare_ties", "della"):
        parameters["density"] = 0.5
    models = [{"model": name} for name in (["e0"] if method == "slerp" else ["e0", "e1"])]
    recipe = {"merge_method": method, "base_model": "base", "models": models}
    path, out = folder / "recipe.json", folder / f"{method}-{threads}"
    path.write_text(json.dumps(recipe | {"parameters": parameters}))
    sensmerge.merge(path, out, threads=threads, progress=False)
    commands(["verify", str(out), "--quiet"], standalone_mode=False)
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
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, first, second = family(folder)
        for method in METHODS:
            merged, again = merge(folder, method, 1), merge(folder, method, 3)
            for tensor in SHAPES:
                if merged[tensor].tobytes() != again[tensor].tobytes():
                    sys.exit(f"error: {method}: {tensor} depends on the number of threads")
                if method not in BY_MATRICES:
                    digest.update(merged[tensor].tobytes())
        plain = read(folder / "task_arithmetic-1")
        for tensor in SHAPES:
            wanted = base[tensor] + 0.5 * (first[tensor] - base[tensor])
            wanted += 0.5 * (second[tensor] - base[tensor])
            if not np.allclose(plain[tensor], wanted, rtol=0, atol=1e-6):
                sys.exit(f"error: task_arithmetic: {tensor} is not the sum of the task vectors")
    if "torch" in sys.modules:
        sys.exit("error: a plain merge imported torch")
    if digest.hexdigest() != DIGEST:
        sys.exit(f"error: the bytes are others than on x86-64: {digest.hexdigest()}")
    place = Path(str(_core.__file__)).name
    kind = "free-threaded " if free else ""
    print(
        f"sensmerge {sensmerge.__version__} ({place}) merges on {kind}Python "
        f"{platform.python_version()}, {platform.platform()}"
    )


if __name__ == "__main__":
    main()
