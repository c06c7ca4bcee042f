"""Recipes for methods that the reference has tensor by tensor, and their merges by it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from sensmerge import reference
from sensmerge.models.layers import block_of, blocks
from sensmerge.recipe.numbers import resolve_first

Array = NDArray[np.float64]
Arrays = dict[str, Array]


# Recipes ----------------------------------------------------------------------------------------


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the recipe of every case."""
    by_part = [{"filter": "self_attn", "value": [0.0, 1.0, 0.25]}, {"value": 0.4}]
    for t in (0.0, 0.3, 0.5, 1.0):
        yield f"slerp t={t}", recipe("slerp", ["e0"], {"t": t})
    yield "slerp t gradient", recipe("slerp", ["e0"], {"t": [0.0, 0.9, 0.2]})
    yield "slerp t filters", recipe("slerp", ["e0"], {"t": by_part})
    yield "slerp base listed first", recipe("slerp", ["base", "e0"], {"t": 0.3})
    yield "slerp base listed last", recipe("slerp", ["e0", "base"], {"t": 0.3})

    for base in ("", "base"):
        where = "with base" if base else "without base"
        for options in (
            {},
            {"nuslerp_row_wise": True},
            {"nuslerp_flatten": False},
            {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        ):
            keys = " ".join(key.removeprefix("nuslerp_") + f"={options[key]}" for key in options)
            yield f"nuslerp {where} {keys}".strip(), nuslerp(0.6, 0.9, options, base)
        yield f"nuslerp {where} weights sum to 0", nuslerp(0.5, -0.5, {}, base)
        yield f"nuslerp {where} negative weight", nuslerp(1.5, -0.5, {}, base)
        yield f"nuslerp {where} gradient and filters", nuslerp([1, 0.2], by_part, {}, base)
    listed = nuslerp(0.6, 0.9, {"nuslerp_flatten": False}, "base")
    listed["models"].insert(1, {"model": "base"})
    yield "nuslerp base listed", listed
    yield "nuslerp weight for all", recipe("nuslerp", ["e0", "e1"], {"weight": 0.7}, base="")

    for count in (2, 3):
        experts = [f"e{place}" for place in range(count)]
        for filter_wise in (None, False, True):
            options = {} if filter_wise is None else {"filter_wise": filter_wise}
            name = f"model_stock of {count} filter_wise={filter_wise}"
            yield name, recipe("model_stock", experts, options)
    yield "model_stock base listed", recipe("model_stock", ["e0", "base", "e1"], {})

    for options in ({}, {"normalize_weights": False}):
        keys = " ".join(f"{key}={options[key]}" for key in options)
        for base in ("", "base"):
            for weights in ((0.6, 0.9), (0.6, 0.9, 1.3), (1.0, -0.4)):
                name = f"multislerp {len(weights)} {min(weights)} {base} {keys}".strip()
                yield name, weighted("multislerp", weights, options, base)
    for count in (2, 3):
        experts = [f"e{place}" for place in range(count)]
        for base in ("", "base"):
            yield f"karcher of {count} {base}".strip(), recipe("karcher", experts, {}, base)
    long = recipe("karcher", ["e0", "e1", "e2"], {"max_iter": 999, "tol": 1e-10}, "")
    yield "karcher long", long
    for bound in (0.0, 0.01, 0.05, [0.0, 0.1]):
        yield f"nearswap t={bound}", recipe("nearswap", ["e0"], {"t": bound})
    yield "arcee_fusion", recipe("arcee_fusion", ["e0"], {})
    for count in (1, 2, 3):
        experts = [f"e{place}" for place in range(count)]
        for select in (None, 0.9, 0.5, 0.1):
            chosen = {} if select is None else {"select_topk": select}
            yield f"sce of {count} select={select}", recipe("sce", experts, chosen)
        for epsilon in (1e-5, 0.05):
            name = f"of {count} epsilon={epsilon}"
            yield f"ram {name}", recipe("ram", experts, {"epsilon": epsilon})
            yield f"ramplus_tl {name}", recipe("ramplus_tl", experts, {"epsilon": epsilon})
    strong = {"epsilon": 0.05, "r": 0.7, "alpha": 2.0}
    yield "ramplus_tl strong", recipe("ramplus_tl", ["e0", "e1", "e2"], strong)

    yield "passthrough", recipe("passthrough", ["e0"], {}, base="")
    yield "passthrough scale=0.3", recipe("passthrough", ["e0"], {"scale": 0.3}, base="")
    own = recipe("passthrough", ["e0"], {"scale": 0.3}, base="")
    zeroed = [{"filter": "down_proj", "value": 0.0}, {"filter": "o_proj", "value": [0.5, -2.0]}]
    own["models"][0]["parameters"] = {"scale": zeroed}
    yield "passthrough scale filters", own
    yield "passthrough base is the model", recipe("passthrough", ["base"], {"scale": 1.7})


def recipe(
    method: str, models: list[str], options: dict[str, Any], base: str = "base"
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": model} for model in models],
    }
    if base:
        data["base_model"] = base
    return data | {"parameters": options, "dtype": "float32", "out_dtype": "bfloat16"}


def nuslerp(first: Any, second: Any, options: dict[str, Any], base: str) -> dict[str, Any]:
    return weighted("nuslerp", (first, second), options, base)


def weighted(
    method: str, weights: tuple[Any, ...], options: dict[str, Any], base: str
) -> dict[str, Any]:
    data = recipe(method, [f"e{place}" for place in range(len(weights))], options, base)
    for model, weight in zip(data["models"], weights, strict=True):
        model["parameters"] = {"weight": weight}
    return data


def exceptions(data: dict[str, Any]) -> float:
    """The fraction of entries that may lie on a threshold, where float32 and float64 differ."""
    selects = data["merge_method"] == "arcee_fusion" or "select_topk" in data["parameters"]
    return 1 / 100 if selects else 0.0


# A family with the special cases of these methods ------------------------------------------------


def with_edges(family: Path, folder: Path) -> None:
    """Copy a family, with tensors and rows that are zero, untouched, equal, at an obtuse angle or
    hardly changed.

    No tensor is opposite to another: both interpolations would divide by nearly 0, and mergekit's
    float32 result would depend on the rounding of a cosine.
    """
    shutil.copytree(family, folder)
    models = {path.name: tensors(path) for path in folder.iterdir() if path.is_dir()}
    base = models["base"]
    untouched, equal = "model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"
    obtuse, rows = "model.layers.2.self_attn.q_proj.weight", "model.embed_tokens.weight"
    models["e0"][untouched] = base[untouched]
    models["e1"][equal] = models["e0"][equal]
    models["e1"][obtuse] = base[obtuse] + 0.6 * models["e1"][obtuse] - 0.6 * models["e0"][obtuse]
    for place, (name, model) in enumerate(sorted(models.items())):
        model[rows][0] = 0
        model[rows][2] = base[rows][2]
        # Changed in one small entry: the product of two such norms is below 1e-6.
        model[rows][3] = base[rows][3]
        model[rows][3, 0] = 1e-4 * (1 + 0.1 * place)
        if name == "e0":
            model[rows][1] = base[rows][1]
    for name, model in models.items():
        for path in (folder / name).glob("*.safetensors"):
            changed = {key: model[key].contiguous() for key in load_file(path)}
            save_file(changed, path, metadata={"format": "pt"})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


# Merges by the reference ------------------------------------------------------------------------


def expected(data: dict[str, Any], family: Path) -> tuple[Arrays, Arrays]:
    """Every tensor of the merged model, in float64, and the largest input of every entry."""
    base_name = data.get("base_model")
    experts = [model for model in data["models"] if model["model"] != base_name]
    if data["merge_method"] == "passthrough":
        experts = data["models"]
    stored = [arrays(family / expert["model"]) for expert in experts]
    base = arrays(family / base_name) if base_name else {}
    merged, largest = {}, {}
    for name in stored[0]:
        values = [model[name] for model in stored]
        position = position_of(name, stored[0])
        merged[name] = one_tensor(data, experts, name, position, base.get(name), values)
        inputs = [*values, base[name]] if base else values
        largest[name] = np.max(np.abs(inputs), axis=0)
    return merged, largest


def one_tensor(
    data: dict[str, Any],
    experts: list[dict[str, Any]],
    name: str,
    position: float,
    base: Array | None,
    values: list[Array],
) -> Array:
    options = data["parameters"]

    def number(key: str, model: dict[str, Any], default: float = 0.0) -> float:
        own = model.get("parameters", {}).get(key)
        return resolve_first([own, options.get(key)], name, position, default)

    method = data["merge_method"]
    if method == "passthrough":
        return reference.passthrough(values[0], number("scale", experts[0], 1.0))
    if method == "nuslerp":
        return reference.nuslerp(
            values[0],
            values[1],
            [number("weight", expert) for expert in experts],
            base=base,
            flatten=options.get("nuslerp_flatten", True),
            row_wise=options.get("nuslerp_row_wise", False),
        )
    if method == "multislerp":
        weights = [number("weight", expert) for expert in experts]
        return reference.multislerp(values, weights, base=base, **options)
    if method == "karcher":
        return reference.karcher(values if base is None else [base, *values], **options)
    assert base is not None
    if method == "nearswap":
        return reference.nearswap(base, values[0], number("t", {}))
    if method == "arcee_fusion":
        return reference.arcee_fusion(base, values[0])
    if method == "sce":
        return reference.sce(base, values, **options)
    if method.startswith("ram"):
        least = options.get("epsilon", 1e-5)
        strengthen = (options.get("r", 0.1), options.get("alpha", 0.2))
        plus = strengthen if method == "ramplus_tl" else None
        return reference.ram(base, values, epsilon=least, strengthen=plus)
    if method == "slerp":
        return reference.slerp(base, values[0], number("t", {}))
    return reference.model_stock(base, values, filter_wise=options.get("filter_wise", False))


def arrays(folder: Path) -> Arrays:
    return {name: value.double().numpy() for name, value in tensors(folder).items()}


def position_of(name: str, model: Arrays) -> float:
    """A tensor's position in the model's depth: first block 0, last block 1, outside 0."""
    block, known = block_of(name), blocks(model)
    return 0.0 if block is None else known.index(block) / (len(known) - 1)


def by_reference(
    found: dict[str, torch.Tensor], wanted: Arrays, largest: Arrays, exceptions: float
) -> tuple[str, bool]:
    """The largest distance of bfloat16 tensors from the reference's, in units of the last place.

    Where inputs cancel, the unit is at least the precision of the largest input in float32.
    """
    different = apart = total = 0
    furthest = 0.0
    for name, values in wanted.items():
        their = found[name].double().numpy()
        rounded = torch.tensor(values).bfloat16().double().numpy()
        size = np.maximum(np.abs(values), np.maximum(2.0**-14 * largest[name], 2.0**-126))
        distance = np.abs(their - values) / 2.0 ** (np.floor(np.log2(size)) - 7)
        different += int((their != rounded).sum())
        apart += int((distance > 1).sum())
        total += their.size
        furthest = max(furthest, float(distance.max()))
    said = (
        f"{total} entries, {different} differ, {apart} by more than one unit, "
        f"furthest {furthest:.3f} units"
    )
    return said, found.keys() == wanted.keys() and apart <= exceptions * total
