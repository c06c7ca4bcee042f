"""The environment of every test: one torch thread, no window system, no Hub, no network."""

from __future__ import annotations

import atexit
import ipaddress
import os
import shutil
import socket
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from families import Family, llama_family

if TYPE_CHECKING:
    from sensmerge import Calibration

_DATASETS = tempfile.mkdtemp(prefix="sensmerge-datasets-")
atexit.register(shutil.rmtree, _DATASETS, ignore_errors=True)

# Read by torch, matplotlib, huggingface_hub and datasets when they are first imported, here and in
# the processes that tests start.
os.environ.update(
    HF_DATASETS_CACHE=_DATASETS,
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_OFFLINE="1",
    MKL_NUM_THREADS="1",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    # As the command sets it: threads that spin while others wait for a core take seconds a test.
    OMP_WAIT_POLICY="PASSIVE",
    TOKENIZERS_PARALLELISM="false",
)


def is_here(address: Any) -> bool:
    """Whether a socket's ``address`` is this machine's: a path, or a loopback address."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections to other machines, so that no test depends on one."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    lookup = socket.getaddrinfo

    def refuse(address: Any) -> None:
        if not is_here(address):
            raise RuntimeError(f"a test tried to reach {address}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        refuse(address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        refuse(address)
        return connect_ex(self, address)

    def guarded_lookup(host: Any, *rest: Any, **options: Any) -> Any:
        if host is not None:
            refuse((host,))
        return lookup(host, *rest, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_lookup)


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A base and three experts in float32, with samples; tests that change files copy it."""
    return llama_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def measured(family: Family) -> Calibration:
    """The calibration of that family, with models run in float32."""
    from torch_oracle import calibrated

    return calibrated(family)
