"""Models and adapters on the Hugging Face Hub: the files that are needed, in the Hub's own cache.

huggingface_hub does the work, and so its settings hold: ``HF_HOME``, ``HF_TOKEN``,
``HF_HUB_OFFLINE``, ``HF_ENDPOINT``.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge import _core
from sensmerge.errors import InputError, first_line
from sensmerge.progress import bytes_bar

if TYPE_CHECKING:
    import tqdm

_NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")

# All but the weights: config, index, tokenizer. They are small.
_SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_IN_FOLDERS = ["*/*"]

_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Reference:
    """A name of a model or adapter on the Hub.

    Attributes:
        repository: The repository, such as ``org/name``.
        revision: A branch, tag or commit; None for the default branch.
    """

    repository: str
    revision: str | None

    @classmethod
    def of(cls, name: str) -> Reference | None:
        """The reference that ``org/name`` or ``org/name@revision`` is; None for other names."""
        found = _NAME.fullmatch(name)
        return None if found is None else cls(found["repository"], found["revision"])

    def __str__(self) -> str:
        return self.repository + ("" if self.revision is None else f"@{self.revision}")


# Folders by everything they depend on: within a process, a name stands for one commit.
_known: dict[tuple[Any, ...], Path] = {}


def download(
    reference: Reference, *, adapter: bool = False, pickles: bool = False, progress: bool = True
) -> Path:
    """The folder in the Hub's cache that holds a model's or an adapter's files; downloads them.

    Of weights in several formats those are downloaded that would be read from a folder. What was
    downloaded before is not asked for again, and without a connection the cache is used as it is.

    Args:
        reference: The name.
        adapter: Whether it is an adapter's.
        pickles: Whether weights that are stored as pickles alone are downloaded.
        progress: Show progress.

    Raises:
        InputError: huggingface_hub is not installed; there is no such repository or revision, or
            access to it is not granted; the download failed; or the repository holds no model.
    """
    try:
        from huggingface_hub import constants
    except ImportError:
        raise InputError(
            f"model '{reference}': no such folder; to read it from the Hugging Face Hub, "
            "pip install 'sensmerge[hub]'"
        ) from None
    key = (constants.ENDPOINT, constants.HF_HUB_CACHE, reference, adapter, pickles)
    if key not in _known:
        with _explained(reference):
            _known[key] = _download(reference, adapter, pickles, progress)
    return _known[key]


def _download(reference: Reference, adapter: bool, pickles: bool, progress: bool) -> Path:
    from huggingface_hub import snapshot_download

    with _bars(str(reference), enabled=progress) as bars:
        # By the revision's name, so that the cache knows its commit when there is no connection.
        folder = Path(
            snapshot_download(
                reference.repository,
                revision=reference.revision,
                allow_patterns=_SMALL,
                ignore_patterns=_IN_FOLDERS,
                tqdm_class=bars,
            )
        )
        names = _names(reference.repository, folder.name)
        if names is None:
            # Without a connection: the folder is what there is.
            return folder
        wanted = _weights(reference, folder, names, adapter, pickles)
        snapshot_download(
            reference.repository,
            revision=folder.name,
            allow_patterns=[_literally(name) for name in wanted],
            tqdm_class=bars,
        )
    return folder


def _names(repository: str, commit: str) -> set[str] | None:
    """Names of a repository's files outside its folders; None without a connection."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        listed = HfApi().list_repo_files(repository, revision=commit)
    except (OfflineModeIsEnabled, ConnectionError, TimeoutError):
        return None
    except Exception as error:
        # The client's library for HTTP has its own errors for this, and changes between releases.
        if type(error).__name__ in ("ConnectError", "ConnectTimeout", "ReadTimeout"):
            return None
        raise
    return {name for name in listed if "/" not in name}


def _weights(
    reference: Reference, folder: Path, names: set[str], adapter: bool, pickles: bool
) -> list[str]:
    """The weight files to download, of those in the repository."""
    if adapter:
        found = [name for name in _ADAPTER_WEIGHTS if name in names][:1]
        if not found or "adapter_config.json" not in names:
            raise InputError(
                f"adapter '{reference}': its repository has no adapter_config.json and "
                f"{_ADAPTER_WEIGHTS[0]}; it is not an adapter in PEFT's format"
            )
        return found
    if pickles and (found := _core.pickle_files(folder, names)):
        return found
    return _core.weight_files(folder, names)


def _literally(name: str) -> str:
    """A pattern that matches a name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


@contextmanager
def _explained(reference: Reference) -> Iterator[None]:
    """Raise huggingface_hub's errors as :class:`InputError`, with what to do."""
    from huggingface_hub import constants, errors

    name = reference.repository
    login = "log in with `hf auth login` or set HF_TOKEN"
    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError:
        reason = (
            f"'{name}' is gated: accept its conditions at {constants.ENDPOINT}/{name}, and {login}"
        )
    except errors.RepositoryNotFoundError:
        reason = (
            f"no such folder, and the Hugging Face Hub has no model '{name}' that you may read: "
            f"check the spelling or, if it is private, {login}"
        )
    except errors.RevisionNotFoundError:
        reason = f"the Hugging Face Hub has no revision '{reference.revision}' of '{name}'"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            reason = (
                f"no such folder, and it is not complete in the Hub's cache, "
                f"{constants.HF_HUB_CACHE}, which alone is used while HF_HUB_OFFLINE is set"
            )
        else:
            reason = f"no such folder, and the Hugging Face Hub does not answer: {_cause(error)}"
    except Exception as error:
        reason = (
            f"downloading it from the Hugging Face Hub failed: {first_line(error)}; what arrived "
            "is kept, and the same command goes on from there"
        )
    else:
        return
    raise InputError(f"model '{reference}': {reason}")


def _cause(error: BaseException) -> str:
    return first_line(error if error.__cause__ is None else error.__cause__)


@contextmanager
def _bars(name: str, *, enabled: bool) -> Iterator[type[tqdm.tqdm[Any]]]:
    """A class of progress bars for huggingface_hub that shows one bar of bytes, as elsewhere."""
    from tqdm import tqdm

    lock = threading.Lock()
    # It warns of a second try, which the bar shows, and of repositories without a config.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)

    with bytes_bar(f"downloading {name}", enabled=enabled) as show:

        class Reported(tqdm):  # type: ignore[misc]
            """Shows nothing itself and reports what it counts."""

            def __init__(self, *args: Any, **options: Any) -> None:
                self._bytes = options.get("unit") == "B"
                super().__init__(*args, **options | {"disable": True})

            def update(self, n: float | None = 1) -> bool | None:
                with lock:
                    self.n += n or 0
                    if self._bytes and self.total:
                        _show(show, int(self.n), int(self.total))
                return None

        try:
            yield Reported
        finally:
            logger.setLevel(level)


def _show(show: Callable[[int, int], None], done: int, total: int) -> None:
    show(min(done, total), total)
