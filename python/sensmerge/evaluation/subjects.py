"""What is evaluated: a model's folder, a recipe that is merged in memory, or a model that is there.

Configs, tokenizers and weights are read as calibration reads them: no code of a model is run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sensmerge.calibration import loading, vetted
from sensmerge.errors import InputError
from sensmerge.merging import memory
from sensmerge.merging.manifest import request
from sensmerge.merging.sidecars import GENERATION_FILE, sidecars
from sensmerge.models import open_models
from sensmerge.models.folders import tokenizer_files
from sensmerge.models.opened import open_model
from sensmerge.reading import is_folder, mode_of, object_of, own_file
from sensmerge.recipe import Recipe
from sensmerge.workflow import Settled, settle, sketched

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sensmerge import _core
    from sensmerge.calibration import Calibration
    from sensmerge.models import Models

# Ids of tokens that a model's folder may name for generation.
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Running:
    """A model that can be evaluated.

    Attributes:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        fingerprint: A digest of its weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str


@dataclass(frozen=True)
class Manner:
    """How models are opened.

    Attributes:
        device: The device that they run on.
        dtype: The dtype that they run in: ``stored`` or ``float32``.
        threads: Threads to merge with; None for all cores.
        progress: Whether to show progress.
    """

    device: torch.device
    dtype: str
    threads: int | None
    progress: bool


@dataclass
class Subject(ABC):
    """One model to evaluate.

    Attributes:
        name: Its name in the results.
        notes: Notes for the user.
    """

    name: str
    notes: list[str] = field(default_factory=list)

    @abstractmethod
    def check(self, how: Manner) -> None:
        """Refuse a model that cannot be evaluated, from headers and small files alone.

        Raises:
            InputError: It cannot; the message says why.
        """

    def identity(self) -> tuple[str, str] | None:
        """Digests of its weights and of its tokenizer; None if they are known once it is open."""
        return None

    @abstractmethod
    def opened(self, how: Manner) -> Any:
        """A context in which the model can be run; yields a :class:`Running`."""


@dataclass(kw_only=True)
class Folder(Subject):
    """A model in a folder or on the Hub, perhaps with adapters that are added to it."""

    source: str
    _opened: loading.Source | None = None

    def check(self, how: Manner) -> None:
        """See :class:`Subject`."""
        opened = open_model(self.source, Path(), progress=how.progress)
        path = opened.path
        if not is_folder(path):
            raise InputError(f"{path}: evaluation needs the model's folder, not a weight file")
        _check_folder(path)
        self._opened = loading.open_source(self.name, path, None, opened)
        self.notes += [*opened.checkpoint.notes, *opened.adapter_notes]

    def identity(self) -> tuple[str, str] | None:
        """See :class:`Subject`."""
        assert self._opened is not None
        return self._opened.fingerprint(), digest_of(self._opened.tokenizer)

    @contextmanager
    def opened(self, how: Manner) -> Iterator[Running]:
        """See :class:`Subject`."""
        assert self._opened is not None
        model = loading.load(self._opened, how.dtype)
        _set_tokens(model, self._opened.path)
        yield Running(_on(model, how), self._opened.tokenizer, self._opened.fingerprint())


@dataclass(kw_only=True)
class Merged(Subject):
    """A recipe, merged in memory: neither weights nor anything else of it stays on the disk."""

    recipe: Recipe
    calibration: Calibration | str | Path | None = None
    _models: Models | None = None

    def check(self, how: Manner) -> None:
        """See :class:`Subject`."""
        self._models = open_models(self.recipe, progress=how.progress)
        _check_folder(self._models.template.path)
        if self.recipe.method.statistic is not None:
            return
        # From headers alone, before a long measurement.
        asked = request(sketched(self.recipe), None, self._models, weights=False)
        if any(tensor.packing is not None for tensor in asked.dequantised().manifest().tensors):
            raise InputError(
                f"{self.name}: out_dtype: {self.recipe.out_dtype} is written, and not merged in "
                "memory; merge the recipe, and evaluate the folder"
            )
        if any(tensor.packing is not None for tensor in asked.manifest().tensors):
            self.notes.append(
                f"{self.name}: the base is quantised, and so would be what a merge writes; what "
                "was evaluated is not"
            )

    @contextmanager
    def opened(self, how: Manner) -> Iterator[Running]:
        """See :class:`Subject`."""
        # The tensors are the model's from then on, and held by nobody else.
        yield self._merged(how)

    def _merged(self, how: Manner) -> Running:
        assert self._models is not None
        with tempfile.TemporaryDirectory(prefix="sensmerge-") as name:
            folder, measured = Path(name, "model"), Path(name, "measured")
            folder.mkdir()
            measured.mkdir()
            settled = settle(
                self.recipe,
                self._models,
                self.calibration,
                device=str(how.device),
                keep=measured / "calibration.json",
                threads=how.threads,
                progress=how.progress,
            )
            asked = request(
                settled.recipe,
                settled.coefficients,
                settled.models,
                threads=how.threads,
                progress=how.progress,
            ).dequantised()
            manifest = asked.manifest()
            self.notes += _written_beside(settled, manifest, folder)
            tensors, notes = memory.merged(asked, manifest, threads=how.threads)
            self.notes += [*settled.notes, *settled.models.notes, *manifest.notes, *notes]
            checkpoint = memory.checkpoint_of(self.name, tensors)
            kind = loading.main_dtype(self.name, checkpoint) if how.dtype == "stored" else None
            model = loading.assemble(folder, tensors, kind or torch.float32)
            _set_tokens(model, folder)
            tokenizer = vetted.tokenizer_of(folder)
            return Running(_on(model, how), tokenizer, checkpoint.fingerprint())


def _written_beside(settled: Settled, manifest: _core.Manifest, folder: Path) -> list[str]:
    """Write the small files that a merge would put beside the weights; notes on them."""
    beside = sidecars(
        settled.recipe, settled.models, settled.coefficients, None, manifest, card=False
    )
    for file, path in beside.copies:
        shutil.copyfile(path, folder / file)
    for file, text in beside.texts:
        (folder / file).write_text(text, encoding="utf-8")
    _check_folder(folder)
    return beside.notes


@dataclass(kw_only=True)
class Given(Subject):
    """A model that is in memory already."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def check(self, how: Manner) -> None:
        """See :class:`Subject`."""

    @contextmanager
    def opened(self, how: Manner) -> Iterator[Running]:
        """See :class:`Subject`."""
        held = {name: tensor.cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        fingerprint = memory.checkpoint_of(self.name, held).fingerprint()
        training = self.model.training
        self.model.eval()
        try:
            yield Running(self.model, self.tokenizer, fingerprint)
        finally:
            self.model.train(training)


def digest_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short digest of what a tokenizer makes of texts."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())
    parts = [rules, json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)]
    parts.append(str(tokenizer.chat_template))
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _check_folder(path: Path) -> None:
    """Refuse a folder without what it takes to run a model and to write its prompts."""
    if is_folder(path) and mode_of(path / "config.json") is None:
        raise InputError(f"{path}: has no config.json, so the model cannot be run")
    if not is_folder(path) or not tokenizer_files(path):
        raise InputError(
            f"{path}: has no tokenizer files, so the model cannot be evaluated; copy those of its "
            "base into the folder"
        )


def _set_tokens(model: PreTrainedModel, folder: Path) -> None:
    """Tell a model which tokens end what it generates, as its folder says."""
    path = own_file(folder, GENERATION_FILE)
    if path is None or model.generation_config is None:
        return
    for key, value in object_of(path).items():
        ids = value if isinstance(value, list) else [value]
        if key in _TOKENS and all(type(each) is int for each in ids):
            setattr(model.generation_config, key, value)


def _on(model: PreTrainedModel, how: Manner) -> PreTrainedModel:
    if how.device.type == "cpu":
        return model
    moved: PreTrainedModel = model.to(how.device)  # type: ignore[arg-type]
    return moved
