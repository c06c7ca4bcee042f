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
    "Prepared",
    "TensorInfo",
    "check_output",
    "merge",
    "merge_into",
    "plan",
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
class Prepared:
    """A merge whose sparsification is decided, for searches over its weights.

    Args:
        recipe: The core's recipe as JSON; its paths are not looked at.
        models: The base, where the recipe has one, and the experts in its order.
        threads: Threads to use; all cores by default.
        allow_nan: Let NaN through instead of refusing it.

    Raises:
        InputError: The checkpoints cannot be merged as asked.
        KeyboardInterrupt: Ctrl-C was pressed.
    """

    def __new__(
        cls,
        /,
        recipe: str,
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

    def reweigh(self, /, recipe: str) -> bool:
        """Take the weights of another recipe for the same models.

        Args:
            recipe: The core's recipe as JSON. It may differ in weights, lambda, normalize and the
                output's dtype.

        Returns:
            Whether it was taken: not where other entries would be kept.

        Raises:
            InputError: The checkpoints cannot be merged as asked.
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
    recipe: str,
    output: str | PathLike[str],
    max_shard_bytes: SupportsIndex,
    *,
    copies: collections.abc.Sequence[tuple[str, str | os.PathLike[str]]] = ...,
    texts: collections.abc.Sequence[tuple[str, str]] = ...,
    threads: SupportsIndex | None = None,
    chunk_bytes: SupportsIndex | None = None,
    sync: bool = True,
    overwrite: bool = False,
    allow_nan: bool = False,
    progress: collections.abc.Callable[[int, int], object] | None = None,
) -> str:
    """Merge checkpoints and write the result.

    Args:
        recipe: The core's recipe as JSON.
        output: The folder to write.
        max_shard_bytes: Upper bound on the size of an output file.
        copies: Files to copy beside the weights: pairs of name and path.
        texts: Files to write beside the weights: pairs of name and content.
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
    recipe: str,
    models: SupportsGetItem[int, Checkpoint],
    outputs: collections.abc.Mapping[str, numpy.typing.NDArray[numpy.uint8]],
    *,
    threads: SupportsIndex | None = None,
    chunk_bytes: SupportsIndex | None = None,
    allow_nan: bool = False,
) -> None:
    """Merge checkpoints into memory.

    Args:
        recipe: The core's recipe as JSON; its paths are not looked at.
        models: The base, where the recipe has one, and the experts in its order.
        outputs: A contiguous, writable uint8 view for every tensor of the merged model, by name.
        threads: Threads to use; all cores by default.
        chunk_bytes: Bytes a thread works on at a time; does not change the output.
        allow_nan: Let NaN through instead of refusing it.

    Raises:
        InputError: The checkpoints cannot be merged as asked, or an output is missing, of another
            size, read-only, or overlaps another or an input.
        KeyboardInterrupt: Ctrl-C was pressed; some outputs are written, others are not.
    """

def plan(
    recipe: str,
    max_shard_bytes: SupportsIndex,
    models: SupportsGetItem[int, Checkpoint] | None = None,
) -> str:
    """Plan a merge without reading or writing tensor data.

    Args:
        recipe: The core's recipe as JSON.
        max_shard_bytes: Upper bound on the size of an output file.
        models: The base, where the recipe has one, and the experts in its order, where they are open
            already; the recipe's paths are then not looked at.

    Returns:
        JSON: every output tensor with its dtype, file and the terms it is made of, the output
        files, and notes.

    Raises:
        InputError: The checkpoints cannot be merged as asked.
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
