"""How strong the base's activations are, by input channel (Heyrani Nobari et al. 2025).

For a linear layer with inputs ``x``, and likewise for the entries of a norm::

    s_j = mean |x_j| / max_k mean |x_k|

The means are over all tokens of the samples, in the base; an expert of a mixture has those that
come to it. Sums are float64. Embeddings have no inputs of this kind, and a head that shares their
weights is left out with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sensmerge import _core
from sensmerge.calibration import loading
from sensmerge.calibration.side_files import Entry, write_safetensors
from sensmerge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Functions that multiply inputs and a weight, and whether that is stored as inputs × outputs.
_PRODUCTS: dict[Any, bool] = {
    nn.functional.linear: False,
    torch.matmul: True,
    torch.Tensor.matmul: True,
    torch.Tensor.__matmul__: True,
    torch.bmm: True,
    torch.Tensor.bmm: True,
}

# The key of a config that says how a mixture's experts are computed, and the way in which each is
# multiplied on its own.
_EXPERTS, _ONE_BY_ONE = "_experts_implementation", "eager"


class Activations:
    """Sums of |x| over the inputs of one model's layers."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Find the layers: linear ones, norms, and modules with matrices of their own.

        Args:
            model: The model.

        Raises:
            InputError: It has no such layers.
        """
        self._model = model
        self._sums: dict[str, torch.Tensor] = {}
        self._transposed: set[str] = set()
        embeddings: Any = model.get_input_embeddings()
        self._hooked: dict[str, nn.Module] = {}
        self._others: dict[str, nn.Module] = {}
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            own = dict(module.named_parameters(recurse=False))
            if weight is embeddings.weight or isinstance(module, nn.Embedding) or not own:
                continue
            if isinstance(module, nn.Linear) or (
                isinstance(weight, nn.Parameter) and weight.ndim == 1
            ):
                self._hooked[name] = module
            else:
                self._others[name] = module
        if not self._hooked:
            raise InputError(
                f"{type(model).__name__}: has no linear layers of torch, so that their inputs "
                "cannot be measured; remove aim"
            )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Add the inputs of every layer that is run."""
        with ExitStack() as until, self._experts_one_by_one():
            for name, module in self._hooked.items():
                hook = self._hook(f"{name}.weight", module)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                until.callback(handle.remove)
            for name, module in self._others.items():
                for handle in self._watch_products(name, module):
                    until.callback(handle.remove)
            yield

    @contextmanager
    def _experts_one_by_one(self) -> Iterator[None]:
        configs = {id(each): each for each in map(_config, self._model.modules()) if each}
        before = {place: getattr(each, _EXPERTS) for place, each in configs.items()}
        for each in configs.values():
            setattr(each, _EXPERTS, _ONE_BY_ONE)
        try:
            yield
        finally:
            for place, each in configs.items():
                setattr(each, _EXPERTS, before[place])

    def _hook(
        self, name: str, module: nn.Module
    ) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], None]:
        width = module.in_features if isinstance(module, nn.Linear) else len(module.weight)  # type: ignore[arg-type]

        def add(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            if x.shape[-1] == width:
                self._add(name, x.reshape(-1, width).abs().sum(0, dtype=torch.float64))

        return add

    def _watch_products(self, name: str, module: nn.Module) -> list[Any]:
        """Look at the products with a module's own matrices, while it runs."""
        runs: list[ExitStack] = []

        def enter(_: Any, __: Any) -> None:
            runs.append(ExitStack())
            runs[-1].enter_context(_Products(name, module, self._add_product))

        def leave(*_: Any) -> None:
            if runs:
                runs.pop().close()

        return [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, always_call=True),
        ]

    def _add_product(
        self, name: str, whole: nn.Parameter, place: int | None, x: torch.Tensor, transposed: bool
    ) -> None:
        """Add the inputs of a product with a parameter.

        Args:
            name: The parameter.
            whole: The parameter: a matrix, or one for every expert of a mixture.
            place: The expert whose matrix it is; None for all of the parameter.
            x: The inputs, [..., in]; of all experts at once, [experts, ..., in].
            transposed: Whether the matrices are stored as inputs × outputs.
        """
        width = whole.shape[-2 if transposed else -1]
        if x.shape[-1] != width:
            return
        if transposed:
            self._transposed.add(name)
        experts = len(whole) if whole.ndim > 2 else 1
        sums = x.reshape(experts if place is None else 1, -1, width)
        sums = sums.abs().sum(1, dtype=torch.float64)
        if place is not None:
            of_one, sums = sums, sums.new_zeros(experts, width)
            sums[place] = of_one[0]
        self._add(name, sums if whole.ndim > 2 else sums[0])

    def _add(self, name: str, sums: torch.Tensor) -> None:
        sums = sums.detach().cpu()
        before = self._sums.get(name)
        self._sums[name] = sums if before is None else before + sums

    def write(self, path: Path, checkpoint: _core.Checkpoint) -> tuple[list[str], list[str]]:
        """Write s of every tensor of which something was measured, by its name in the checkpoint.

        Args:
            path: The file.
            checkpoint: The model's tensors.

        Returns:
            The tensors whose inputs are rows rather than columns; and notes for the user.

        Raises:
            InputError: It cannot be written, or some activation is not finite.
        """
        stored = {tensor.name for tensor in checkpoint.tensors}
        entries: list[Entry] = []
        transposed, silent = list[str](), list[str]()
        for name, sums in self._sums.items():
            if not sums.isfinite().all():
                raise InputError(f"{checkpoint.path}: the inputs of '{name}' are not finite")
            # Every layer has a largest channel of its own.
            strongest = sums.amax(-1, keepdim=True)
            share = (sums / strongest.where(strongest > 0, 1)).float()
            parameter = self._model.get_parameter(name)
            spread = share
            if parameter.ndim > 1:
                spread = share.unsqueeze(-1 if name in self._transposed else -2)
                spread = spread.expand(parameter.shape)
            found = loading.stored_tensors(self._model, name, spread, stored)
            for home, part in found.items():
                if home not in stored:
                    continue
                channels, rows = _channels(part)
                if not channels.any():
                    silent.append(home)
                    continue
                entries.append(_entry(home, channels))
                transposed += [home] if rows else []
        write_safetensors(path, entries, {"statistic": "activations"})
        notes = []
        if silent:
            notes.append(
                f"aim: nothing came to {len(silent)} tensors, such as '{silent[0]}': what is "
                "merged there is not damped; give more samples"
            )
        return transposed, notes


class _Products(TorchFunctionMode):
    """Tells of products of something and a module's own matrices."""

    def __init__(self, name: str, module: nn.Module, tell: Callable[..., None]) -> None:
        super().__init__()
        self._tell = tell
        prefix = f"{name}." if name else ""
        self._matrices = {
            f"{prefix}{own}": parameter
            for own, parameter in module.named_parameters(recurse=False)
            if parameter.ndim in (2, 3)
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        transposed = _PRODUCTS.get(func)
        if transposed is not None and len(args) > 1 and isinstance(args[1], torch.Tensor):
            self._see(args[0], args[1], transposed)
        elif func is torch.addmm and len(args) == 3:
            self._see(args[1], args[2], True)
        return func(*args, **(kwargs or {}))

    def _see(self, x: torch.Tensor, weight: torch.Tensor, transposed: bool) -> None:
        for name, whole in self._matrices.items():
            offset = (weight.data_ptr() - whole.data_ptr()) // whole.element_size()
            if whole.shape == weight.shape and offset == 0 and whole.stride() == weight.stride():
                self._tell(name, whole, None, x, transposed)
            elif whole.ndim == 3 and whole.shape[1:] == weight.shape:
                place, rest = divmod(offset, whole.stride(0))
                if rest == 0 and 0 <= place < len(whole):
                    self._tell(name, whole, place, x, transposed)


def _config(module: nn.Module) -> Any:
    """A module's config, if it says how experts are computed."""
    config = getattr(module, "config", None)
    return config if hasattr(config, _EXPERTS) else None


def _channels(part: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """The numbers of a tensor's input channels, and whether these are its rows.

    Args:
        part: The number of its input channel in every entry.
    """
    if part.ndim < 2:
        return part, False
    rows = part[..., :1]
    if part.stride(-1) == 0 or not bool((part == part[..., :1, :]).all()):
        return rows.squeeze(-1), True
    return part[..., 0, :], False


def _entry(name: str, channels: torch.Tensor) -> Entry:
    data = channels.contiguous().numpy().tobytes()
    return Entry(name, "F32", tuple(channels.shape), lambda: iter([data]))
