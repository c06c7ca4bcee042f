"""The compiled core of sensmerge."""

import collections.abc
import os
from os import PathLike
from typing import SupportsIndex, final

import numpy
import numpy.typing
from _typeshed import SupportsGetItem

__all__ = [
    "Checkpoint",
    "Manifest",
    "OutputTensor",
    "Prepared",
    "TensorInfo",
    "check_output",
    "merge",
    "merge_into",
    "methods",
    "row_distances",
    "sum_abs_product",
]

@final
class Checkpoint:
    """A safetensors checkpoint, opened and validated: one file or several shards, mapped read-only.

    Args:
        path: The model's folder, or one ``.safetensors`` file.

    Raises:
        InputError: A file is missing, truncated or malformed.
        OSError: A file cannot be looked at or read.
    """

    def __new__(cls, /, path: str | PathLike[str]) -> Checkpoint: ...
    def fingerprint(self, /) -> str:
        """A short digest of the weights: names, dtypes, shapes and sampled bytes.

        How the tensors are spread over files does not matter.
        """

    @staticmethod
    def from_memory(
        name: str,
        tensors: collections.abc.Sequence[
            tuple[str, str, collections.abc.Sequence[int], numpy.typing.NDArray[numpy.uint8]]
        ],
    ) -> Checkpoint:
        """A checkpoint of tensors in memory, which are not copied and must not change meanwhile.

        Args:
            name: What messages call it.
            tensors: Name, dtype in the safetensors format such as ``BF16``, shape, and a contiguous
                uint8 view of every tensor.

        Raises:
            InputError: A tensor is given twice, or its bytes do not fit its shape.
        """

    @property
    def in_memory(self, /) -> bool:
        """Whether it lies in memory rather than on disk."""

    def is_zero(self, /) -> bool:
        """Whether it holds floats, and all of them are zero: no model, and nothing to merge."""

    @property
    def notes(self, /) -> list[str]:
        """What the caller should be told about which files were read: one sentence each."""

    @property
    def path(self, /) -> str:
        """The folder or file that was opened."""

    def suspicions(self, /) -> list[str]:
        """What a sound file can hold and a trained model does not, one sentence each: tensors of no
        entries, or zeros throughout.

        Data is read until an entry is found that is not zero: one page of a sound model.
        """

    @property
    def tensors(self, /) -> list[TensorInfo]:
        """Its tensors, by name."""

    @property
    def tied(self, /) -> dict[str, str]:
        """Names of tensors in memory that share another's bytes, and that other's name."""

@final
class Manifest:
    """A merge in plain data: every output tensor with its inputs by role and its numbers.

    Complete, with nothing held open: another process can carry it out.
    """

    @staticmethod
    def build(request: str, models: SupportsGetItem[int, Checkpoint]) -> Manifest:
        """Decide what every output tensor is made of, from headers alone.

        Args:
            request: JSON: ``method``, ``semantics``, ``switches``, ``base`` (whether the first model is
                the base), ``models`` (``aliases`` and ``leading_rows`` of each), ``seed``,
                ``out_dtype``, and ``tensors``: the numbers of every output tensor, by parameter.
            models: The base, where there is one, and the models that are merged.

        Raises:
            InputError: They cannot be merged as asked.
        """

    def files(self, /, max_shard_bytes: SupportsIndex) -> list[tuple[str, list[str]]]:
        """The weight files that an output folder would have, and the names of the tensors in each."""

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read a manifest that was written as JSON.

        Raises:
            InputError: The text is no manifest, or one of another version.
        """

    @property
    def notes(self, /) -> list[str]:
        """What the user should be told: rules that were applied."""

    @property
    def tensors(self, /) -> list[OutputTensor]:
        """Every output tensor, by name."""

    def to_json(self, /) -> str:
        """The manifest as JSON."""

    def with_fingerprints(self, /, models: SupportsGetItem[int, Checkpoint]) -> Manifest:
        """The same with digests of the models' weights, so that whoever carries it out can tell whether
        they are still the same.
        """

@final
class OutputTensor:
    """One output tensor of a manifest."""

    @property
    def dtype(self, /) -> str:
        """Name of the dtype in the safetensors format, such as ``BF16``."""

    @property
    def merged(self, /) -> bool:
        """Whether the method makes it; a copy if not."""

    @property
    def name(self, /) -> str:
        """Its name."""

    @property
    def nbytes(self, /) -> int:
        """Size of its data in bytes."""

    @property
    def shape(self, /) -> list[int]:
        """Shape."""

@final
class Prepared:
    """A merge whose sparsification is decided, for searches over its weights.

    Args:
        manifest: What to merge.
        models: The manifest's models, open.
        threads: Threads to use; all cores by default.
        allow_nan: Let NaN through instead of refusing it.

    Raises:
        InputError: The checkpoints cannot be merged as asked.
        KeyboardInterrupt: Ctrl-C was pressed.
    """

    def __new__(
        cls,
        /,
        manifest: Manifest,
        models: SupportsGetItem[int, Checkpoint],
        *,
        threads: SupportsIndex | None = None,
        allow_nan: bool = False,
    ) -> Prepared: ...
    def derivatives(
        self, /, tensor: str, gradient: numpy.typing.NDArray[numpy.uint8], gradient_dtype: str
    ) -> list[float]:
        """How the loss changes with every expert's weight of one tensor.

        What is kept, and the signs that are elected, are held fixed.

        Args:
            tensor: Its name.
            gradient: The loss's gradient by the merged tensor, as a contiguous uint8 view.
            gradient_dtype: The gradient's dtype, such as ``bfloat16``.

        Returns:
            One derivative an expert, at the current weights.

        Raises:
            InputError: There is no such tensor, or the gradient is of another size.
        """

    def merge_into(
        self, /, outputs: collections.abc.Mapping[str, numpy.typing.NDArray[numpy.uint8]]
    ) -> None:
        """Merge into memory, in one sweep.

        Args:
            outputs: A contiguous, writable uint8 view for every tensor of the merged model, by name.

        Raises:
            InputError: An output is missing, of another size, read-only, or overlaps another or an
                input.
            KeyboardInterrupt: Ctrl-C was pressed; some outputs are written, others are not.
        """

    def reweigh(self, /, manifest: Manifest) -> bool:
        """Take the weights of another manifest of the same models.

        Args:
            manifest: It may differ in weights, lambda, normalize and the output's dtype.

        Returns:
            Whether it was taken: not where other entries would be kept.
        """

@final
class TensorInfo:
    """One tensor of a checkpoint, as its header describes it."""

    @property
    def dtype(self, /) -> str:
        """Name of the dtype in the safetensors format, such as ``BF16``."""

    @property
    def file(self, /) -> str:
        """Name of the file that holds it."""

    @property
    def name(self, /) -> str:
        """Name in the checkpoint."""

    @property
    def nbytes(self, /) -> int:
        """Size of its data in bytes."""

    @property
    def shape(self, /) -> list[int]:
        """Shape."""

    @property
    def start(self, /) -> int:
        """Where its data starts in that file, in bytes."""

def check_output(
    output: str | PathLike[str],
    inputs: collections.abc.Sequence[str | os.PathLike[str]],
    overwrite: bool,
) -> None:
    """Refuse an output folder that a merge could not write to, without touching anything.

    Args:
        output: The folder.
        inputs: Folders and files that are merged.
        overwrite: Whether what an earlier merge wrote there may be replaced.

    Raises:
        InputError: The folder is not empty, is no folder, holds weights that no merge listed, or
            is, contains or lies in an input.
        OSError: The folder or an input cannot be looked at.
    """

def merge(
    manifest: Manifest,
    output: str | PathLike[str],
    max_shard_bytes: SupportsIndex,
    models: SupportsGetItem[int, Checkpoint] | None = None,
    *,
    copies: collections.abc.Sequence[tuple[str, str | os.PathLike[str]]] = ...,
    texts: collections.abc.Sequence[tuple[str, str]] = ...,
    cards: collections.abc.Sequence[tuple[str, str]] = ...,
    notes: collections.abc.Sequence[str] = ...,
    threads: SupportsIndex | None = None,
    chunk_bytes: SupportsIndex | None = None,
    sync: bool = True,
    overwrite: bool = False,
    allow_nan: bool = False,
    progress: collections.abc.Callable[[int, int], object] | None = None,
) -> str:
    """Carry a manifest out and write the model.

    Args:
        manifest: What to merge.
        output: The folder to write.
        max_shard_bytes: Upper bound on the size of an output file.
        models: The manifest's models, where they are open already; its own files by default.
        copies: Files to copy beside the weights: pairs of name and path.
        texts: Files to write beside the weights: pairs of name and content.
        cards: The same, with the notes of the merge listed at the end.
        notes: What is known already and kept with what the merge finds.
        threads: Threads to use; all cores by default.
        chunk_bytes: Bytes a thread works on at a time; does not change the output.
        sync: Flush the output to disk before returning.
        overwrite: Replace a model that is already in the folder.
        allow_nan: Let NaN through instead of refusing it.
        progress: Called now and then with bytes read and bytes to read.

    Returns:
        JSON: what was written.

    Raises:
        InputError: The checkpoints cannot be merged as asked, or the folder cannot be written.
        OSError: The disk failed.
        KeyboardInterrupt: Ctrl-C was pressed; nothing is left behind.
    """

def merge_into(
    manifest: Manifest,
    models: SupportsGetItem[int, Checkpoint],
    outputs: collections.abc.Mapping[str, numpy.typing.NDArray[numpy.uint8]],
    *,
    threads: SupportsIndex | None = None,
    chunk_bytes: SupportsIndex | None = None,
    allow_nan: bool = False,
) -> list[str]:
    """Carry a manifest out into memory.

    Args:
        manifest: What to merge.
        models: The manifest's models, open.
        outputs: A contiguous, writable uint8 view for every tensor of the merged model, by name.
        threads: Threads to use; all cores by default.
        chunk_bytes: Bytes a thread works on at a time; does not change the output.
        allow_nan: Let NaN through instead of refusing it.

    Returns:
        What the user should be told: rules that were applied, and what was found in the inputs.

    Raises:
        InputError: The checkpoints cannot be merged as asked, or an output is missing, of another
            size, read-only, or overlaps another or an input.
        KeyboardInterrupt: Ctrl-C was pressed; some outputs are written, others are not.
    """

def methods() -> str:
    """Describe every merge method.

    Returns:
        JSON: for each of the two semantics, ``mergekit`` and ``original``, a list of the methods with
        their parameters, ranges and defaults.
    """

def row_distances(
    a: numpy.typing.NDArray[numpy.uint8],
    b: numpy.typing.NDArray[numpy.uint8],
    dtype: str,
    rows: SupportsIndex,
    threads: SupportsIndex | None = None,
) -> list[float]:
    """L2 norm of every row of ``a - b`` (Sens-Merging, Eq. 4).

    Args:
        a: A row-major ``[rows, columns]`` matrix, as a contiguous uint8 view.
        b: Another of the same shape and dtype.
        dtype: Their dtype, such as ``float32``.
        rows: Number of rows.
        threads: Threads to use; all cores by default.

    Raises:
        InputError: Lengths differ or are no multiple of ``rows``.
    """

def sum_abs_product(
    theta: numpy.typing.NDArray[numpy.uint8],
    theta_dtype: str,
    gradient: numpy.typing.NDArray[numpy.uint8],
    gradient_dtype: str,
    threads: SupportsIndex | None = None,
) -> float:
    """Sum of ``|theta * gradient|`` over one parameter tensor (Sens-Merging, Eq. 1 and 3).

    Products are float32 (float64 where an input is), sums float64; the result does not depend on
    the number of threads.

    Args:
        theta: The parameter, as a contiguous uint8 view.
        theta_dtype: Its dtype, such as ``bfloat16``.
        gradient: Its gradient, of as many entries, as a contiguous uint8 view.
        gradient_dtype: The gradient's dtype.
        threads: Threads to use; all cores by default.

    Raises:
        InputError: Lengths differ, or a buffer is not contiguous.
    """
