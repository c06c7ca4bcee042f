"""Units of a model that can change places without a change in what it computes.

Neurons of an MLP: they are rows of the gate and up projections and columns of the down projection.
Attention heads: query heads within the group that shares keys and values, and these groups with all
their heads. The entries within a head stay: rotary embeddings tell them apart. So do those of the
residual stream, which all blocks share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sensmerge.models.layers import block_of, decoder_of, text_config

Shapes = Mapping[str, list[int]]
Level = Literal["units", "members"]

# The linear layers of MLPs that are known: those whose rows are neurons, each with the number of
# times that it has all of them one after the other, and the one whose columns are neurons.
_MLPS: tuple[tuple[dict[str, int], str], ...] = (
    ({"gate_proj": 1, "up_proj": 1}, "down_proj"),
    ({"gate_up_proj": 2}, "down_proj"),
    ({"w1": 1, "w3": 1}, "w2"),
)
# The same for attention, in whose fused projection queries, keys and values follow one another.
_SPLIT = ("q_proj", "k_proj", "v_proj")
_FUSED = "qkv_proj"
_OUTPUT = "o_proj"
# Tensors of attention that may be there beside projections: norms over a head, which all heads
# share, or over all of them; a number for every head.
_NORMS: tuple[tuple[str, Level], ...] = (("q_norm.weight", "members"), ("k_norm.weight", "units"))
_SINKS = "sinks"
# Buffers that old checkpoints store; they are the same for all heads.
_BUFFERS = ("rotary_emb.inv_freq",)

KNOWN = (
    "MLPs of gate_proj, up_proj (or gate_up_proj) and down_proj, or of w1, w3 and w2; attention of "
    "q_proj, k_proj, v_proj (or qkv_proj) and o_proj"
)


@dataclass(frozen=True)
class Portion:
    """Rows or columns of a tensor that move with units.

    Attributes:
        tensor: The tensor.
        axis: 0 for rows, 1 for columns.
        first: The first of them.
        count: Their number: as many for each unit, one unit after the other.
        level: Whether they belong to the units or to their members.
    """

    tensor: str
    axis: int
    first: int
    count: int
    level: Level = "units"


@dataclass(frozen=True)
class Symmetry:
    """Units of one module that can change places.

    Attributes:
        module: The module, such as ``model.layers.0.mlp``.
        kind: ``neurons``, or ``heads``, whose units are the groups that share keys and values.
        units: Number of units.
        members: Number of members of each unit: the heads of a group; 0 for neurons.
        portions: All parts of tensors that move with them.
    """

    module: str
    kind: Literal["neurons", "heads"]
    units: int
    members: int
    portions: list[Portion]

    def plain(self) -> dict[str, Any]:
        """The symmetry as the core has it."""
        portions = [asdict(portion) for portion in self.portions]
        return {"units": self.units, "members": self.members, "portions": portions}


@dataclass(frozen=True)
class Symmetries:
    """The symmetries of a model.

    Attributes:
        known: Those that were found.
        others: Matrices of its blocks that belong to none.
        unread: Attention that would be known if the config said how many heads there are.
    """

    known: list[Symmetry]
    others: list[str]
    unread: list[str]


def symmetries(shapes: Shapes, config: dict[str, Any]) -> Symmetries:
    """Find the symmetries of a model by the names and shapes of its tensors.

    Args:
        shapes: The shape of every tensor.
        config: The model's config, which says how many attention heads there are.
    """
    decoder = decoder_of(shapes, config)
    found, unread = [], []
    for module, tensors in _modules(shapes).items():
        symmetry = _neurons(module, tensors)
        block = block_of(f"{module}.")
        of_text = decoder is not None and decoder.layer(f"{block}.x") is not None
        if symmetry is None and of_text and _is_attention(tensors):
            heads = _heads_of(config)
            symmetry = None if heads is None else _attention(module, tensors, *heads)
            unread += [module] if heads is None else []
        found += [] if symmetry is None else [symmetry]
    moved = {portion.tensor for symmetry in found for portion in symmetry.portions}
    others = [
        name
        for name, shape in shapes.items()
        if len(shape) > 1 and name not in moved and block_of(name) is not None
    ]
    return Symmetries(found, others, unread)


def _modules(shapes: Shapes) -> dict[str, dict[str, list[int]]]:
    """The tensors of every module that has a last projection, by their names within it."""
    ends = {f"{name}.weight" for _, name in _MLPS} | {f"{_OUTPUT}.weight"}
    found: dict[str, dict[str, list[int]]] = {}
    for name in shapes:
        module, _, rest = name.rpartition(".")[0].rpartition(".")
        if f"{rest}.weight" in ends and name.endswith(".weight") and block_of(name) is not None:
            found[module] = {}
    for name, shape in shapes.items():
        home = name
        while home := home.rpartition(".")[0]:
            if home in found:
                found[home][name.removeprefix(f"{home}.")] = shape
    return found


def _neurons(module: str, tensors: dict[str, list[int]]) -> Symmetry | None:
    """The neurons of an MLP of known tensors; None for any other module."""
    for rows, columns in _MLPS:
        names = {f"{name}.{kind}" for name in (*rows, columns) for kind in ("weight", "bias")}
        if not set(tensors) <= names or any(f"{name}.weight" not in tensors for name in rows):
            continue
        down = tensors.get(f"{columns}.weight", [])
        if len(down) != 2:
            return None
        count = down[1]
        portions = [Portion(f"{module}.{columns}.weight", 1, 0, count)]
        for name, times in rows.items():
            for kind in ("weight", "bias"):
                shape = tensors.get(f"{name}.{kind}")
                if shape is not None and shape[:1] != [times * count]:
                    return None
                portions += [
                    Portion(f"{module}.{name}.{kind}", 0, part * count, count)
                    for part in range(times if shape is not None else 0)
                ]
        return Symmetry(module, "neurons", count, 0, portions)
    return None


def _is_attention(tensors: dict[str, list[int]]) -> bool:
    projections = (*_SPLIT, _FUSED, _OUTPUT)
    known = {f"{name}.{kind}" for name in projections for kind in ("weight", "bias")}
    known |= {name for name, _ in _NORMS} | {_SINKS, *_BUFFERS}
    split = all(f"{name}.weight" in tensors for name in _SPLIT)
    return set(tensors) <= known and split != (f"{_FUSED}.weight" in tensors)


def _heads_of(config: dict[str, Any]) -> tuple[int, int, int] | None:
    """The numbers of heads and of groups, and the size of a head; None if the config lacks them."""
    said = text_config(config)
    heads, size = said.get("num_attention_heads"), said.get("head_dim")
    if not isinstance(heads, int) or heads < 1:
        return None
    groups = said.get("num_key_value_heads")
    groups = heads if groups is None else groups
    if size is None and isinstance(said.get("hidden_size"), int):
        size = said["hidden_size"] // heads
    if not isinstance(groups, int) or not isinstance(size, int) or groups < 1 or heads % groups:
        return None
    return heads, groups, size


def _attention(
    module: str, tensors: dict[str, list[int]], heads: int, groups: int, size: int
) -> Symmetry | None:
    """The heads of an attention of known tensors; None if the config says other shapes."""
    output = tensors[f"{_OUTPUT}.weight"]
    if len(output) != 2 or output[1] != heads * size:
        return None
    portions = [Portion(f"{module}.{_OUTPUT}.weight", 1, 0, output[1], "members")]
    for name, shape in tensors.items():
        parts = list(_rows(name, shape, heads, groups, size))
        if parts and sum(count for _, count in parts) != shape[0]:
            return None
        first = 0
        for level, count in parts:
            portions.append(Portion(f"{module}.{name}", 0, first, count, level))
            first += count
    return Symmetry(module, "heads", groups, heads // groups, portions)


def _rows(
    name: str, shape: list[int], heads: int, groups: int, size: int
) -> Iterator[tuple[Level, int]]:
    """The rows of a tensor of attention, one kind after the other; none if they do not move."""
    linear = name.partition(".")[0]
    if linear == _FUSED:
        yield "members", heads * size
        yield "units", groups * size
        yield "units", groups * size
    elif linear == "q_proj":
        # Some models have a gate beside every query, in the same rows.
        whole = shape[0] % (heads * size) == 0 and shape[0] // (heads * size) <= 2
        yield "members", shape[0] if whole else heads * size
    elif linear in _SPLIT:
        yield "units", groups * size
    elif name == _SINKS:
        yield "members", heads
    for norm, level in _NORMS:
        if name == norm and shape != [size]:
            yield level, (heads if level == "members" else groups) * size
