"""The process that runs one program that a model wrote; it is started for each, by its path.

It imports nothing of the package. It reads what to run from standard input, gives up what a plain
process can give up, runs the program, and says on standard output what came of it.
"""

from __future__ import annotations

import builtins
import json
import os
import shutil
import signal
import subprocess
import sys
from types import FrameType, ModuleType
from typing import Any

# Files that are open at a time.
_FILES = 64

# What the harness's own metric takes away before it runs a program, so that the same programs pass;
# but for putenv, which NumPy needs when it is imported, and there was imported before.
_TAKEN_AWAY: tuple[tuple[ModuleType, tuple[str, ...]], ...] = (
    (builtins, ("exit", "quit", "help")),
    (
        os,
        (
            "kill", "system", "remove", "removedirs", "rmdir", "fchdir", "setuid", "fork",
            "forkpty", "killpg", "rename", "renames", "truncate", "replace", "unlink", "fchmod",
            "fchown", "chmod", "chown", "chroot", "lchflags", "lchmod", "lchown", "getcwd", "chdir",
        ),
    ),
    (shutil, ("rmtree", "move", "chown")),
    (subprocess, ("Popen",)),
)  # fmt: skip
_NO_MODULES = ("ipdb", "joblib", "resource", "psutil", "tkinter")

# Events of Python's own doings (PEP 578) that are refused, whichever function causes them.
_REFUSED = (
    "ftplib.", "http.", "imaplib.", "nntplib.", "os.chflags", "os.chmod", "os.chown", "os.exec",
    "os.fork", "os.kill", "os.link", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename",
    "os.rmdir", "os.setxattr", "os.spawn", "os.startfile", "os.symlink", "os.system", "os.truncate",
    "poplib.", "pty.", "shutil.", "signal.pthread_kill", "smtplib.", "socket.bind",
    "socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.getnameinfo",
    "socket.sendmsg", "socket.sendto", "sqlite3.enable_load_extension", "subprocess.", "telnetlib.",
    "urllib.", "webbrowser.",
)  # fmt: skip
# These as if there were no such library, which those who can do without one expect.
_NO_LIBRARY = ("ctypes.dlopen", "ctypes.dlsym")

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_NEW_USER = 0x10000000  # CLONE_NEWUSER
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


class OutOfTimeError(Exception):
    """The program ran for longer than it may."""


def main() -> None:
    """Run one program and leave.

    Standard input has a JSON object: ``program``; ``home``, the folder that it may write in;
    ``seconds``, ``memory`` and ``bytes`` (of a file), its limits; ``mark``, the word that begins
    the answer, so that nothing which the program prints is taken for one.
    """
    asked: dict[str, Any] = json.load(sys.stdin)
    answer = _without_output()
    _leave_network()
    _limit(asked["seconds"], asked["memory"], asked["bytes"])
    sys.addaudithook(_guard(asked["home"]))
    _take_away()
    said = "passed"
    try:
        signal.setitimer(signal.ITIMER_REAL, asked["seconds"])
        exec(compile(asked["program"], "<program>", "exec"), {})
        signal.setitimer(signal.ITIMER_REAL, 0)
    except OutOfTimeError:
        said = "timed out"
    except BaseException as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        said = f"failed: {type(error).__name__}: {error}"[:500]
    os.write(answer, f"{asked['mark']} {said}".encode("utf-8", "backslashreplace"))
    # Whatever the program wants done at the end is not.
    os._exit(0)


def _without_output() -> int:
    """Turn all that is printed away; the answer's way out is returned."""
    answer = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    return answer


def _leave_network() -> None:
    """Go where there is no network, if the system lets a plain process do so."""
    try:
        if hasattr(os, "unshare"):
            os.unshare(_NEW_USER | _NEW_NETWORK)
        elif sys.platform == "linux":
            import ctypes

            ctypes.CDLL(None).unshare(_NEW_USER | _NEW_NETWORK)
    except (OSError, AttributeError):
        # In many containers it does not; what is refused below remains.
        return


def _limit(seconds: float, memory: int, size: int) -> None:
    import resource

    def lower(kind: int, most: int) -> None:
        known = resource.getrlimit(kind)[1]
        most = most if known == resource.RLIM_INFINITY else min(most, known)
        resource.setrlimit(kind, (most, most))

    lower(resource.RLIMIT_CORE, 0)
    # Of the processor: more than the clock below allows one thread, for programs that catch it.
    lower(resource.RLIMIT_CPU, int(seconds) + 2)
    lower(resource.RLIMIT_FSIZE, size)
    lower(resource.RLIMIT_NOFILE, _FILES)
    lower(resource.RLIMIT_AS, memory)
    signal.signal(signal.SIGALRM, _ring)


def _ring(_: int, __: FrameType | None) -> None:
    raise OutOfTimeError


def _guard(home: str) -> Any:
    """A hook that refuses what a program has no need for; it stays until the process ends."""
    # Kept here, since the program will find some of them gone.
    inside, real, here = f"{home}{os.sep}", os.path.realpath, os.getcwd
    refused, no_library, writing = _REFUSED, _NO_LIBRARY, _WRITING

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & writing and not isinstance(path, int):
                place = real(os.path.join(here(), os.fsdecode(path)))  # noqa: PTH118
                if not place.startswith(inside) and place != os.devnull:
                    raise PermissionError("files are written in the working folder alone")
        elif event.startswith(no_library):
            raise ImportError("libraries are not loaded here")
        elif event.startswith(refused):
            raise PermissionError(f"{event} is refused here")

    return hook


def _take_away() -> None:
    for module, names in _TAKEN_AWAY:
        for name in names:
            if hasattr(module, name):
                setattr(module, name, None)
    for name in _NO_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]


if __name__ == "__main__":
    main()
