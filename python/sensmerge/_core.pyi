"""The compiled core of sensmerge."""

import collections.abc
import os
from os import PathLike
from typing import SupportsFloat, SupportsIndex, final

import numpy
import numpy.typing
from _typeshed import SupportsGetItem

__all__ = [
    "Checkpoint",
    "Difference",
    "Manifest",
    "OutputTensor",
    "Packing",
    "Prepared",
    "Quantised",
    "TensorInfo",
    "check_output",
    "check_space",
    "differences",
    "match_units",
    "merge",
    "merge_into",
    "merge_shards",
    "methods",
    "pickle_files",
    "read_into",
    "register_function",
    "register_native",
    "row_distances",
    "sum_abs_product",
    "sum_squares",
    "task_vector",
    "weight_files",
]

@final
class Checkpoint:
    """A checkpoint whose headers are checked: safetensors files, mapped read-only, or tensors in memory.

    Args:
        path: The model's folder, or one ``.safetensors`` file.

    Raises:
        InputError: A file is missing, truncated or malformed, or of another format.
        OSError: A file cannot be read.
    """

    def __new__(cls, /, path: str | PathLike[str]) -> Checkpoint: ...
    @staticmethod
    def adapter(path: str | PathLike[str]) -> Checkpoint:
        """The weights of an adapter, which are no model of their own.

        Args:
            path: The ``.safetensors`` file.

        Raises:
            InputError: The file is truncated or malformed, or of another format.
            OSError: It cannot be read.
        """

    def check_unchanged(self, /) -> None:
        """Refuse the checkpoint if one of its files is no longer what it was when it was opened.

        Raises:
            InputError: A file was written to, truncated, replaced or removed.
            OSError: A file cannot be examined.
        """

    def fingerprint(self, /) -> str:
        """A short digest of the weights: names, dtypes, shapes and sampled bytes.

        The distribution of tensors over files does not matter.
        """

    @staticmethod
    def from_memory(
        name: str,
        tensors: collections.abc.Sequence[
            tuple[str, str, collections.abc.Sequence[int], numpy.typing.NDArray[numpy.uint8]]
        ],
    ) -> Checkpoint:
        """A checkpoint of tensors in memory, which are not copied and must not change while it is used.

        Args:
            name: The checkpoint's name in messages.
            tensors: For every tensor: name, dtype in the safetensors format such as ``BF16``, shape,
                and a contiguous uint8 view.

        Raises:
            InputError: A tensor is given twice, its dtype is unknown, its size does not fit its shape,
                or its view is not contiguous.
        """

    @property
    def in_memory(self, /) -> bool:
        """Whether its tensors are in memory rather than on disk."""

    def is_zero(self, /) -> bool:
        """Whether it holds floats and all of them are zero, so that merging it is pointless."""

    @property
    def notes(self, /) -> list[str]:
        """Notes for the user on the choice of files, one sentence each."""

    @property
    def origin(self, /) -> tuple[str, str] | None:
        """The repository on the Hub and the commit that it was downloaded from; None if it does not lie
        in a Hub cache.
        """

    @property
    def path(self, /) -> str:
        """The folder or file that was opened; the name of a checkpoint in memory."""

    @property
    def quantised(self, /) -> Quantised | None:
        """The quantisation that its config names; None if no tensor is quantised."""

    def read_into(
        self,
        /,
        outputs: collections.abc.Mapping[str, numpy.typing.NDArray[numpy.uint8]],
        *,
        threads: SupportsIndex | None = None,
    ) -> None:
        """Read tensors into memory, quantised ones as what they stand for.

        Args:
            outputs: A contiguous, writable uint8 view for every tensor that is read, by name.
            threads: Threads to use; all cores by default.

        Raises:
            InputError: There is no such tensor, or an output is of another size, read-only, or overlaps
                another.
            KeyboardInterrupt: Ctrl-C was pressed.
        """

    def suspicions(self, /) -> list[str]:
        """Signs that the model was badly saved, one sentence each: empty tensors, or zeros throughout.

        Data is read until an entry is found that is not zero, which is usually in the first page.
        """

    @property
    def tensors(self, /) -> list[TensorInfo]:
        """Its tensors, by name. Quantised ones have the name and shape of what they stand for."""

    @property
    def tied(self, /) -> dict[str, str]:
        """Tensors in memory that are views of another tensor's memory: their names, each with the other
        tensor's name.
        """

@final
class Difference:
    """The comparison of one tensor of two checkpoints, entry by entry.

    Sums are float64, of a fixed shape. With a base, task vectors stand for ``a`` and ``b`` in all but
    ``changed``, ``largest`` and ``squared_difference``, which a base does not change.
    """

    @property
    def agreeing(self, /) -> int:
        """Number of those that have one sign in both."""

    @property
    def changed(self, /) -> int:
        """Number of entries that differ."""

    @property
    def entries(self, /) -> int:
        """Number of entries."""

    @property
    def largest(self, /) -> float:
        """Largest absolute difference; NaN is passed over."""

    @property
    def product(self, /) -> float:
        """Scalar product of ``a`` and ``b``."""

    @property
    def signed(self, /) -> int:
        """Number of entries that are zero in neither."""

    @property
    def squared_a(self, /) -> float:
        """Squared L2 norm of ``a``."""

    @property
    def squared_b(self, /) -> float:
        """Squared L2 norm of ``b``."""

    @property
    def squared_difference(self, /) -> float:
        """Squared L2 norm of ``b - a``."""

@final
class Manifest:
    """A merge as plain data: every output tensor with its inputs and its numbers.

    It is complete and holds no files open, so that another process can carry it out.
    """

    @staticmethod
    def build(request: str, checkpoints: SupportsGetItem[int, Checkpoint]) -> Manifest:
        """Build a manifest from headers alone: no tensor data is read.

        Args:
            request: JSON: ``method``, ``semantics``, ``switches``, ``seed``, ``out_dtype``,
                ``dequantised``, ``notes``, ``omega`` (with it, merged task vectors are damped
                by the base's activations), ``missing`` (``error``, ``base`` or ``skip``: what becomes of
                tensors that only some models have) and ``parts``, which are output tensors that are merged from the same models: ``base`` (or
                null), ``models`` (the index of the ``checkpoint`` of each, and rules for its tensors:
                ``names``, ``aliases``, ``rows``, ``orders``, ``patches``, ``statistics``,
                ``activations``), and ``tensors``: the numbers of every output tensor,
                by parameter.
            checkpoints: The checkpoints that the request names by their index.

        Raises:
            InputError: The request is malformed, or the models cannot be merged as asked.
        """

    @staticmethod
    def conversion(
        view: str, models: SupportsGetItem[int, Checkpoint], dtype: str | None
    ) -> Manifest:
        """Build the manifest of a conversion: one model as it is, its floats stored in another dtype.

        Args:
            view: JSON: the rules for the model's tensors, as in the request of a merge.
            models: The model's checkpoint, and those of its adapters.
            dtype: The dtype, such as ``bfloat16`` or ``int4``; None keeps every tensor's own, and
                quantised ones as they are stored.

        Raises:
            InputError: The rules are malformed, or the dtype is unknown.
        """

    def files(self, /, max_shard_bytes: SupportsIndex) -> list[tuple[str, list[str]]]:
        """The names of the weight files that an output folder would have, each with its tensors' names."""

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read a manifest that was written as JSON.

        Raises:
            InputError: The text is not a manifest, a manifest of another version, or has numbers that
                do not fit its method.
        """

    @property
    def notes(self, /) -> list[str]:
        """Notes for the user on the rules that were applied."""

    @property
    def tensors(self, /) -> list[OutputTensor]:
        """Every output tensor, by name."""

    def to_json(self, /) -> str:
        """The manifest as JSON.

        Raises:
            InputError: A path is not UTF-8.
        """

    def with_fingerprints(self, /, models: SupportsGetItem[int, Checkpoint]) -> Manifest:
        """The same with digests of the weights, so that another process can tell whether the weights have
        changed. ``models`` are the manifest's models, in their order.
        """

@final
class OutputTensor:
    """An output tensor of a manifest."""

    @property
    def dtype(self, /) -> str:
        """Name of the dtype in the safetensors format, such as ``BF16``; of a quantised tensor the one
        that it stands for.
        """

    @property
    def merged(self, /) -> bool:
        """Whether it is merged; otherwise it is a copy."""

    @property
    def name(self, /) -> str:
        """Its name."""

    @property
    def nbytes(self, /) -> int:
        """Size of its data in bytes, scales included."""

    @property
    def packing(self, /) -> Packing | None:
        """How it is quantised; None if it is not."""

    @property
    def parts(self, /) -> list[tuple[str, str, list[int]]]:
        """Name, dtype and shape of the tensors that it is written as: itself, or codes and scales."""

    @property
    def shape(self, /) -> list[int]:
        """Shape."""

@final
class Packing:
    """How an output tensor is quantised."""

    @property
    def code(self, /) -> str:
        """The code of its entries, such as ``int4``."""

    @property
    def powers_of_two(self, /) -> bool:
        """Whether scales are powers of two."""

    @property
    def tile(self, /) -> tuple[int, int]:
        """Rows and columns that share a scale."""

    @property
    def words(self, /) -> str:
        """All of it in a few words."""

@final
class Prepared:
    """A merge whose reductions (thresholds, norms, products) are done, for searches over its weights.

    Args:
        manifest: The merge.
        models: The manifest's models, in their order.
        threads: Threads to use; all cores by default.
        allow_nan: Write NaN and infinite values instead of refusing them.

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
        """The derivatives of a loss by every expert's weight of one tensor.

        The kept entries and the elected signs are held fixed.

        Args:
            tensor: Its name.
            gradient: The gradient of the loss by the merged tensor, as a contiguous uint8 view.
            gradient_dtype: The gradient's dtype, such as ``bfloat16``.

        Returns:
            One derivative per expert, at the current weights.

        Raises:
            InputError: The tensor is not merged, the gradient is of another size, or the weights of
                the method cannot be learned.
        """

    def merge_into(
        self, /, outputs: collections.abc.Mapping[str, numpy.typing.NDArray[numpy.uint8]]
    ) -> None:
        """Merge into memory, in one sweep.

        Args:
            outputs: A contiguous, writable uint8 view for every tensor of the merged model, by name.

        Raises:
            InputError: An output is missing, of another size, read-only, or overlaps another or an
                input; or merged values are not finite.
            KeyboardInterrupt: Ctrl-C was pressed; some outputs are written, others are not.
        """

    def reweigh(self, /, manifest: Manifest) -> bool:
        """Take the weights of another manifest of the same models.

        Args:
            manifest: It may differ in weights, lambda, normalize and the output's dtype.

        Returns:
            Whether it was taken; False if it differs in more, so that other entries might be kept.
        """

@final
class Quantised:
    """The quantisation of a checkpoint."""

    @property
    def advice(self, /) -> str | None:
        """What to do about it if it is not read; None if it is."""

    @property
    def words(self, /) -> str:
        """It in a few words, such as ``fp8, a scale per 128 × 128``."""

@final
class TensorInfo:
    """A tensor of a checkpoint, as its header describes it."""

    @property
    def code(self, /) -> str | None:
        """The code in which a quantised tensor is stored, such as ``int4``; None for others."""

    @property
    def dtype(self, /) -> str:
        """Name of the dtype in the safetensors format, such as ``BF16``; of a quantised tensor the one
        that it stands for.
        """

    @property
    def file(self, /) -> str:
        """Name of the file that holds it; empty for a checkpoint in memory."""

    @property
    def name(self, /) -> str:
        """Name in the checkpoint."""

    @property
    def nbytes(self, /) -> int:
        """Size of its data in bytes, scales included."""

    @property
    def shape(self, /) -> list[int]:
        """Shape."""

    @property
    def start(self, /) -> int:
        """Offset of its data in that file, in bytes."""

def check_output(
    output: str | PathLike[str],
    inputs: collections.abc.Sequence[str | os.PathLike[str]],
    overwrite: bool,
) -> None:
    """Refuse an output folder that a merge could not write to. Nothing is changed.

    Args:
        output: The folder.
        inputs: Folders and files that are merged.
        overwrite: Whether the output of an earlier merge there may be replaced.

    Raises:
        InputError: The path is not a folder; the folder is not empty (without ``overwrite``), holds
            weights that no earlier merge listed, or is, contains or lies in an input.
        OSError: The folder or an input cannot be examined, or nothing can be written there.
    """

def check_space(output: str | PathLike[str], needed: SupportsIndex) -> None:
    """Refuse an output folder whose file system has too little space left.

    Args:
        output: The folder.
        needed: Bytes of the files to write.

    Raises:
        InputError: There is less.
        OSError: The folder cannot be examined.
    """

def differences(
    a: Checkpoint,
    b: Checkpoint,
    base: Checkpoint | None,
    tensors: collections.abc.Sequence[str],
    *,
    threads: SupportsIndex | None = None,
    progress: collections.abc.Callable[[int, int], object] | None = None,
) -> list[Difference]:
    """Compare tensors of two checkpoints.

    Args:
        a: One checkpoint.
        b: The other.
        base: The model that both were tuned from; None compares the weights themselves.
        tensors: Names of tensors that all of them have, in one shape and as floats.
        threads: Threads to use; all cores by default. The result does not depend on it.
        progress: Called several times a second with the bytes read and the bytes to read.

    Returns:
        The comparison of every tensor, in the order of ``tensors``.

    Raises:
        InputError: A tensor is missing, of another shape, or not of floats.
        KeyboardInterrupt: Ctrl-C was pressed.
    """

def match_units(
    template: str,
    model: str,
    checkpoints: SupportsGetItem[int, Checkpoint],
    symmetries: str,
    *,
    threads: SupportsIndex | None = None,
    progress: collections.abc.Callable[[int, int], object] | None = None,
) -> list[tuple[list[int], list[int]]]:
    """Match the units of a model, such as neurons, with those of another by their weights.

    Args:
        template: JSON: the model whose order counts, as the request of a manifest has it.
        model: JSON: the other model, likewise.
        checkpoints: The checkpoints that the two name by their index.
        symmetries: JSON: a list of units that can change places: ``units`` and ``members`` (how many),
            and ``portions``, the rows (``axis`` 0) or columns (1) of tensors that move with them:
            ``tensor``, ``axis``, ``first``, ``count`` and ``level`` (``units`` or ``members``).
        threads: Threads to use; all cores by default. The result does not depend on it.
        progress: Called several times a second with the bytes done and the bytes to do.

    Returns:
        For every symmetry the units of the model in the order of those of the template, and their
        members, numbered over all units. Nothing moves where the model lacks a tensor or has it in
        another shape.

    Raises:
        InputError: An argument is malformed, or a tensor cannot be read.
        KeyboardInterrupt: Ctrl-C was pressed.
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
    hash: bool = True,
    resume: bool = True,
    overwrite: bool = False,
    allow_nan: bool = False,
    keep: bool = False,
    only_commit: bool = False,
    progress: collections.abc.Callable[[int, int], object] | None = None,
    committed: collections.abc.Callable[[], object] | None = None,
) -> str:
    """Carry a manifest out and write the model.

    Args:
        manifest: The merge.
        output: The folder to write.
        max_shard_bytes: Largest size of a weight file's data; a larger tensor gets a file of its own.
        models: The manifest's models, in their order; by default its own files are opened.
        copies: Files to copy beside the weights: pairs of name and path.
        texts: Files to write beside the weights: pairs of name and content.
        cards: The same, with the notes of the merge listed at the end.
        notes: Notes for the user that are kept with those of the merge.
        threads: Threads to use; all cores by default.
        chunk_bytes: Bytes that a thread works on at a time; does not change the output.
        sync: Flush the output to disk before returning.
        hash: Hash every file that is written; a merge that was killed goes on only from hashed files.
        resume: Whether the same merge may go on if it is killed; not where inputs are temporary.
        overwrite: Replace the output of an earlier merge in the folder.
        allow_nan: Write NaN and infinite values instead of refusing them.
        keep: Leave what is written if the merge fails, for the same merge to go on from.
        only_commit: Merge nothing, and put in place what ``merge_shards`` merged.
        progress: Called several times a second with the bytes read and the expected bytes to read.
        committed: Called once, on another thread, when Ctrl-C cannot cancel the merge any more.

    Returns:
        JSON that describes the written model: ``output``, ``tensors``, ``parameters``, ``bytes``,
        ``shards``, ``notes`` and ``seconds``.

    Raises:
        WaitingError: With ``only_commit``, weight files are missing.
        InputError: The checkpoints cannot be merged as asked, or the folder cannot be written to.
        OSError: A file cannot be read or written.
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
    """Carry a manifest out and merge into memory.

    Args:
        manifest: The merge.
        models: The manifest's models, in their order.
        outputs: A contiguous, writable uint8 view for every tensor of the merged model, by name.
        threads: Threads to use; all cores by default.
        chunk_bytes: Bytes that a thread works on at a time; does not change the output.
        allow_nan: Write NaN and infinite values instead of refusing them.

    Returns:
        Notes for the user, on the rules that were applied and on the inputs.

    Raises:
        InputError: The checkpoints cannot be merged as asked, or an output is missing, of another
            size, read-only, or overlaps another or an input.
        KeyboardInterrupt: Ctrl-C was pressed; some outputs are written, others are not.
    """

def merge_shards(
    manifest: Manifest,
    output: str | PathLike[str],
    max_shard_bytes: SupportsIndex,
    shards: collections.abc.Sequence[int],
    *,
    wait: SupportsFloat | SupportsIndex = 0.0,
    threads: SupportsIndex | None = None,
    sync: bool = True,
    overwrite: bool = False,
    allow_nan: bool = False,
    progress: collections.abc.Callable[[int, int], object] | None = None,
) -> str:
    """Merge the tensors of some weight files of a model that other processes merge, too.

    The files stay in the folder under temporary names until ``merge`` with ``commit`` puts all in place.
    Files that are whole already are left as they are, so that a call may be repeated.

    Args:
        manifest: The merge, with digests of the weights; its own files are opened.
        output: The folder, the same for all processes.
        max_shard_bytes: Largest size of a weight file's data, the same for all processes.
        shards: Indices of the weight files, from 0.
        wait: Seconds to wait for other processes, where the method has to know something of the whole
            model.
        threads: Threads to use; all cores by default.
        sync: Flush files to disk before saying that they are whole.
        overwrite: Replace the output of an earlier merge in the folder.
        allow_nan: Write NaN and infinite values instead of refusing them.
        progress: Called several times a second with the bytes read and the expected bytes to read.

    Returns:
        JSON: ``output``, ``merged`` and ``whole`` (names of weight files that were merged now, and of those
        that were whole already), ``bytes`` and ``seconds``.

    Raises:
        WaitingError: Other processes have not done their part in time; call again.
        InputError: The checkpoints cannot be merged as asked, or the folder cannot be written to.
        OSError: A file cannot be read or written.
        KeyboardInterrupt: Ctrl-C was pressed; files that are whole stay.
    """

def methods() -> str:
    """Describe every merge method.

    Returns:
        JSON: for each of the two semantics, ``mergekit`` and ``original``, a list of the methods with
        their parameters, ranges and defaults; and under ``outside_mergekit`` the names of those that
        mergekit does not have; under ``packages``, by name, the package of every registered method.
    """

def pickle_files(folder: str | PathLike[str], names: collections.abc.Set[str]) -> list[str]:
    """Choose the pickled files that hold the weights of a model without safetensors files.

    Args:
        folder: The model's folder, which must hold the index, where there is one.
        names: Names of the model's files, whether the folder holds them or not.

    Returns:
        Names of the files: of the index first, where there is one. Empty where there are safetensors
        files, which are read instead, or no pickles of a model.

    Raises:
        InputError: The index is malformed.
        OSError: The index cannot be read.
    """

def read_into(
    view: str,
    checkpoints: SupportsGetItem[int, Checkpoint],
    outputs: collections.abc.Mapping[str, numpy.typing.NDArray[numpy.uint8]],
    *,
    threads: SupportsIndex | None = None,
) -> None:
    """Write tensors of a model as they enter a merge, with the changes of its adapters.

    Args:
        view: JSON: the model as the request of a manifest has it.
        checkpoints: The checkpoints that the view names by their index.
        outputs: A contiguous, writable uint8 view for every wanted tensor, by its stored name. Each is
            rounded once to the dtype that it is stored in.
        threads: Threads to use; all cores by default.

    Raises:
        InputError: The view is malformed, or a tensor is missing, of another size or not computed with.
        KeyboardInterrupt: Ctrl-C was pressed; some outputs are written, others are not.
    """

def register_function(described: str, function: collections.abc.Callable[..., bytes]) -> None:
    """Register a method whose function is a Python function, for the rest of the process.

    Args:
        described: JSON: the method's schema, its package, and whether it wants whole tensors.
        function: Called under the interpreter's lock, by any thread, with the tensor's name and shape,
            the number of models, whether entries are float64, bytes of the entries of all models, bytes
            of the base's or None, and the numbers by parameter. Returns bytes of the merged entries.

    Raises:
        InputError: There is a method of this name, or the description cannot be used.
    """

def register_native(described: str, address: SupportsIndex) -> None:
    """Register a method whose function is a C function, for the rest of the process.

    Args:
        described: JSON: the method's schema, its package, and whether it wants whole tensors.
        address: The function's address, in a library that stays loaded.

    Raises:
        InputError: There is a method of this name, the description cannot be used, or the address is 0.
    """

def row_distances(
    a: numpy.typing.NDArray[numpy.uint8],
    b: numpy.typing.NDArray[numpy.uint8],
    dtype: str,
    rows: SupportsIndex,
    columns: SupportsGetItem[int, tuple[SupportsIndex, SupportsIndex, SupportsIndex]],
    threads: SupportsIndex | None = None,
) -> list[float]:
    """L2 norm of every row of ``a - b`` (Sens-Merging, Eq. 4).

    Differences are float32 (float64 for float64 matrices), squares and sums float64; the result does
    not depend on the number of threads.

    Args:
        a: A row-major matrix, as a contiguous uint8 view.
        b: Another of as many rows and the same dtype.
        dtype: Their dtype, such as ``float32``.
        rows: Number of rows.
        columns: The columns that are compared, in runs: the first in ``a``, the first in ``b``, and
            how many. The result does not depend on where they stand.
        threads: Threads to use; all cores by default.

    Raises:
        InputError: A length is not a multiple of ``rows``, a column does not exist, a view is not
            contiguous, or the dtype is unknown.
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
        InputError: Lengths differ, a view is not contiguous, or a dtype is unknown.
    """

def sum_squares(
    gradient: numpy.typing.NDArray[numpy.uint8],
    gradient_dtype: str,
    threads: SupportsIndex | None = None,
) -> float:
    """Sum of ``gradient ** 2`` over one parameter tensor: the trace of the empirical Fisher information.

    Squares and sums are float64; the result does not depend on the number of threads.

    Args:
        gradient: The gradient, as a contiguous uint8 view.
        gradient_dtype: Its dtype, such as ``bfloat16``.
        threads: Threads to use; all cores by default.

    Raises:
        InputError: The view is not contiguous, or the dtype is unknown.
    """

def task_vector(
    expert: Checkpoint,
    base: Checkpoint,
    tensor: str,
    first: SupportsIndex,
    output: numpy.typing.NDArray[numpy.uint8],
    *,
    threads: SupportsIndex | None = None,
) -> None:
    """Write entries of the task vector of one tensor, ``expert - base``, as float32.

    Args:
        expert: The model that was tuned.
        base: The model that it was tuned from.
        tensor: Name of the tensor.
        first: Index of the first entry.
        output: A contiguous, writable uint8 view of as many float32 entries as are wanted.
        threads: Threads to use; all cores by default.

    Raises:
        InputError: The tensor is missing, of another shape, or not of floats; or the output
            reaches beyond it or is read-only.
    """

def weight_files(folder: str | PathLike[str], names: collections.abc.Set[str]) -> list[str]:
    """Choose the files that hold the weights of a model.

    Args:
        folder: The model's folder. It must hold the config and the index, and may lack weights, as
            before a download.
        names: Names of the model's files, whether the folder holds them or not.

    Returns:
        Names of the files that are read: of the index first, where there is one.

    Raises:
        InputError: The files hold no model, more than one, or one of another format.
        OSError: The config or the index cannot be read.
    """
