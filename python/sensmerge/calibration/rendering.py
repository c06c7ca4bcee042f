"""Chat templates, laid out by a process of its own: a template is a program, by whoever made it.

transformers' sandbox keeps it from files and from Python, not from running on and on or making
gigabytes. Here the time and the memory that a layout takes, and the size of what it makes, have
bounds, and a process that passes them is ended.

Each message between the processes is its length in four bytes, then JSON.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# Seconds of the processor, and characters, that the layout of one conversation takes at most; the
# longest conversation that samples are cut from takes a hundredth of either.
SECONDS = 1.0
CHARACTERS = 4 * 10**6
# Bytes of memory that the process gets beside what it has before its first template.
MEMORY = 64 * 2**20

# Seconds on the clock until it is given up, which a busy machine may take, and to start it.
_PATIENCE = 60.0

_LENGTH = struct.Struct("<I")

# Bytes of an answer: a character takes up to 12 in JSON.
_LONGEST = 12 * CHARACTERS + 10**6


class TemplateError(Exception):
    """A template cannot lay out a conversation."""


@dataclass(frozen=True)
class Rendered:
    """A conversation laid out.

    Attributes:
        text: The text.
        marked: The pieces that the template marks as the assistant's: start and end.
    """

    text: str
    marked: list[tuple[int, int]]


def render(
    template: str,
    messages: list[dict[str, Any]],
    tools: list[Any] | None,
    variables: dict[str, Any],
    *,
    add_generation_prompt: bool = False,
    marks: bool = False,
) -> Rendered:
    """Lay out a conversation.

    Args:
        template: The chat template.
        messages: The turns.
        tools: Descriptions of tools, if there are any.
        variables: What else the template may use: the tokenizer's special tokens.
        add_generation_prompt: Whether the text ends with the beginning of a turn of the assistant.
        marks: Whether to say what the template marks as the assistant's.

    Raises:
        TemplateError: The template refuses it, or takes too much time, memory or text.
    """
    asked = {
        "template": template,
        "messages": messages,
        "tools": tools,
        "variables": variables,
        "prompt": add_generation_prompt,
        "marks": marks,
    }
    said = _Process.current().ask(asked)
    if "error" in said:
        raise TemplateError(said["error"])
    return Rendered(said["text"], [(begin, end) for begin, end in said["marked"]])


class _Process:
    """The process that lays out; another one takes its place where it is ended."""

    _known: _Process | None = None

    def __init__(self) -> None:
        # A process that was forked from the one that started it must not talk to it.
        self.owner = os.getpid()
        # -P: no module is taken from the working folder. Templates need no torch.
        command = [sys.executable, "-P", "-m", "sensmerge.calibration.rendering"]
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"USE_TORCH": "0"},
        )
        atexit.register(self.end)

    @classmethod
    def current(cls) -> _Process:
        """The process that is running."""
        known = cls._known
        if known is None or known.owner != os.getpid() or known._child.poll() is not None:
            known = cls._known = cls()
        return known

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Have a conversation laid out."""
        # Not every system can wait for a pipe for a time: it is read, and ends with the child.
        alarm = threading.Timer(_PATIENCE, self._child.kill)
        alarm.daemon = True
        alarm.start()
        try:
            assert self._child.stdin is not None
            _send(self._child.stdin, asked)
            said = self._answer()
        except (OSError, ValueError):
            said = None
        except BaseException:
            self.end()
            raise
        finally:
            alarm.cancel()
        if said is None:
            self.end()
            raise TemplateError(
                f"it took more than {SECONDS:g} s or {MEMORY // 2**20} MiB of memory"
            )
        return said

    def _answer(self) -> dict[str, Any] | None:
        """What the process says; None if it ends, or says too much."""
        assert self._child.stdout is not None
        length = self._child.stdout.read(_LENGTH.size)
        size = _LENGTH.unpack(length)[0] if len(length) == _LENGTH.size else _LONGEST + 1
        data = self._child.stdout.read(size) if size <= _LONGEST else b""
        found = json.loads(data) if data and len(data) == size else None
        return found if isinstance(found, dict) else None

    def end(self) -> None:
        """End the process."""
        atexit.unregister(self.end)
        if self.owner != os.getpid():
            return
        self._child.kill()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._child.wait()
        if _Process._known is self:
            _Process._known = None


def _send(pipe: IO[bytes], what: dict[str, Any]) -> None:
    data = json.dumps(what).encode()
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _main() -> None:
    """Lay out conversations until there are no more."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    # What the library prints is no answer.
    sys.stdout = sys.stderr
    _laid_out({"template": "{{ messages }}", "messages": [], "tools": None, "variables": {}})
    _bound_memory()
    while length := source.read(_LENGTH.size):
        asked = json.loads(source.read(_LENGTH.unpack(length)[0]))
        _bound_time(SECONDS)
        try:
            said = _laid_out(asked)
        except MemoryError:
            said = {"error": f"it took more than {MEMORY // 2**20} MiB of memory"}
        except Exception as error:
            said = {"error": str(error)[:1000]}
        _bound_time(0.0)
        _send(target, said)


def _laid_out(asked: dict[str, Any]) -> dict[str, Any]:
    from transformers.utils.chat_template_utils import render_jinja_template

    # As in apply_chat_template: what is null is left out.
    messages = [
        {key: value for key, value in turn.items() if value is not None}
        for turn in asked["messages"]
    ]
    rendered: Any = render_jinja_template(
        conversations=[messages],
        tools=asked["tools"],
        chat_template=asked["template"],
        return_assistant_tokens_mask=asked.get("marks", False),
        add_generation_prompt=asked.get("prompt", False),
        **asked["variables"],
    )
    text = str(rendered[0][0])
    if len(text) > CHARACTERS:
        return {"error": f"it made {len(text)} characters, and at most {CHARACTERS} are taken"}
    return {"text": text, "marked": rendered[1][0] if asked.get("marks") else []}


def _bound_memory() -> None:
    """Let the process have some memory more than it has, and no more; where the system can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _bound_time(seconds: float) -> None:
    """End the process after so many seconds of the processor from now; 0: never."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    _main()
