"""A server on this machine that speaks as much of the Hub's protocol as huggingface_hub needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_test"


@dataclass
class Repository:
    """Files by name, commits by branch, and who may read them."""

    files: dict[str, bytes]
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    gated: bool = False

    @classmethod
    def of(cls, folder: Path, **options: Any) -> Repository:
        """A repository of a folder's files."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        return cls(files, **options)


@dataclass
class Hub:
    """What the server serves, and what it was asked for."""

    address: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    # Files whose content ends early, and how often.
    cut: dict[str, int] = field(default_factory=dict)
    downloads: list[str] = field(default_factory=list)

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Variables under which huggingface_hub uses this server, with its cache in ``home``."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            **more,
        }


@contextmanager
def serving() -> Iterator[Hub]:
    """A server that runs meanwhile."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = self.path.partition("?")[0]
        if blob := re.fullmatch(r"/cdn/([\w-]+/[\w.-]+)/(.+)", path):
            self.content(hub, blob[2], hub.repositories[blob[1]].files[blob[2]])
            return
        asked = re.fullmatch(
            r"/(?:api/models/([\w-]+/[\w.-]+)/(revision|tree)/([^/]+)"
            r"|([\w-]+/[\w.-]+)/(resolve)/([^/]+)/(.+))",
            path,
        )
        if asked is None:
            self.refuse(404, "EntryNotFound")
            return
        name, verb, revision = (asked[1] or asked[4], asked[2] or asked[5], asked[3] or asked[6])
        repository = hub.repositories.get(name)
        if repository is None:
            # The Hub says this of private repositories too.
            self.refuse(401, "RepoNotFound")
            return
        commit = repository.commits.get(revision, revision)
        if commit not in repository.commits.values():
            self.refuse(404, "RevisionNotFound")
            return
        open_to_all = not repository.gated or TOKEN in self.headers.get("Authorization", "")
        if verb == "revision":
            self.json({"id": name, "sha": commit, "siblings": _siblings(repository)})
        elif verb == "tree":
            self.json(_tree(repository))
        elif not open_to_all:
            self.refuse(401, "GatedRepo")
        elif asked[7] not in repository.files:
            self.refuse(404, "EntryNotFound")
        else:
            self.resolve(hub, name, commit, asked[7])

    def resolve(self, hub: Hub, name: str, commit: str, file: str) -> None:
        content = hub.repositories[name].files[file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(file, content)}"'}
        if not _large(file):
            self.content(hub, file, content, headers)
            return
        headers |= {
            "X-Linked-Etag": headers["ETag"],
            "X-Linked-Size": str(len(content)),
            # Another host, as on the Hub: the client takes the headers of this answer.
            "Location": f"{hub.address}/cdn/{name}/{file}".replace("127.0.0.1", "localhost"),
            "Content-Length": "0",
        }
        self.start(302, headers)

    def content(
        self, hub: Hub, file: str, content: bytes, headers: dict[str, str] | None = None
    ) -> None:
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{_etag(file, content)}"', **(headers or {})}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        status, first = 200, 0
        if asked is not None:
            status, first = 206, int(asked[1])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self.start(status, headers | {"Content-Length": str(len(content) - first)})
        if self.command == "HEAD":
            return
        hub.downloads.append(file)
        if hub.cut.get(file, 0) > 0:
            hub.cut[file] -= 1
            self.wfile.write(content[first : first + (len(content) - first) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(content[first:])

    def json(self, data: Any) -> None:
        text = json.dumps(data).encode()
        self.start(200, {"Content-Type": "application/json", "Content-Length": str(len(text))})
        if self.command == "GET":
            self.wfile.write(text)

    def refuse(self, status: int, code: str) -> None:
        self.start(status, {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0"})

    def start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()


def _large(file: str) -> bool:
    """Whether the Hub keeps a file of this name apart and answers with a redirection."""
    return file.endswith((".safetensors", ".bin"))


def _etag(file: str, content: bytes) -> str:
    return (hashlib.sha256 if _large(file) else hashlib.sha1)(content).hexdigest()


def _siblings(repository: Repository) -> list[dict[str, str]]:
    return [{"rfilename": name} for name in sorted(repository.files)]


def _tree(repository: Repository) -> list[dict[str, Any]]:
    entries = []
    for name, content in sorted(repository.files.items()):
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content)}
        entry["oid"] = hashlib.sha1(content).hexdigest()
        if _large(name):
            entry["lfs"] = {"oid": _etag(name, content), "size": len(content), "pointerSize": 100}
        entries.append(entry)
    return entries
