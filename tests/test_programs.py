"""Programs that models write: what comes of them, and what the process that runs them cannot do."""

from __future__ import annotations

import itertools
import math
import os
import socket
from pathlib import Path

import pytest

from sensmerge import InputError
from sensmerge.evaluation import programs
from sensmerge.evaluation.programs import PASSED, CodeEval, Limits, estimate, run

FEW = Limits(seconds=2.0, memory=2**30, file_bytes=2**16)


def outcome(program: str, limits: Limits = FEW) -> str:
    return run(program, limits)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("def f():\n    return 1\nassert f() == 1", PASSED),
        ("assert 1 == 2, 'no'", "failed: AssertionError: no"),
        ("def f(:", "failed: SyntaxError"),
        # Leaving is no success, and neither is anything that it prints.
        ("import sys\nsys.exit(0)", "failed: SystemExit"),
        ("import os\nos._exit(0)", "failed: its process was ended"),
        ("print('passed')\nraise ValueError('x')", "failed: ValueError: x"),
        ("import os\nos.write(1, b'0' * 32 + b' passed')\nraise ValueError('y')", "failed: Value"),
        ("if __name__ == '__main__':\n    raise ValueError", PASSED),
        ("x = '\\udc80'\nraise ValueError(x)", "failed: ValueError"),
    ],
)
def test_a_program_passes_if_it_runs_to_its_end(program: str, said: str) -> None:
    assert outcome(program).startswith(said)


def test_it_sees_nothing_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a secret")
    program = (
        "import os, sys\n"
        "assert 'HF_TOKEN' not in os.environ\n"
        "assert os.listdir('.') == []\n"
        "assert 'torch' not in sys.modules and 'sensmerge' not in sys.modules\n"
        f"assert os.getppid() != {os.getppid()}\n"
        "assert sys.stdin.read() == ''\n"
        "open('own', 'w').write('x' * 100)\n"
    )
    assert outcome(program) == PASSED


def test_time_and_memory_have_limits() -> None:
    short = Limits(seconds=0.3, memory=2**30)
    assert outcome("while True:\n    pass", short) == "timed out"
    assert outcome("import time\ntime.sleep(60)", short) == "timed out"
    loop = "while True:\n        pass"
    stubborn = f"try:\n    {loop}\nexcept BaseException:\n    {loop}"
    assert outcome(stubborn, short).startswith("failed: its process was ended")
    assert outcome("bytearray(2 * 2**30)").startswith("failed: MemoryError")
    assert outcome("open('own', 'wb').write(bytes(2**17))").startswith("failed: OSError")


def test_it_writes_starts_and_reaches_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connect = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        for program in (
            connect,
            "import socket\nsocket.getaddrinfo('localhost', 80)",
            f"open({str(kept)!r}, 'w')",
            f"open({str(tmp_path / 'new')!r}, 'x')",
            f"import os\nos.open({str(kept)!r}, os.O_RDWR)",
            f"import posix\nposix.unlink({str(kept)!r})",
            f"import posix\nposix.rename({str(kept)!r}, 'own')",
            "import posix\nposix.fork()",
            "import posix\nposix.system('true')",
            "import _posixsubprocess, subprocess\nsubprocess.run(['true'])",
            "import os\nos.posix_spawn('/bin/true', ['true'], {})",
            "import ctypes\nctypes.CDLL(None).getpid()",
            f"import posix, signal\nposix.kill({os.getpid()}, signal.SIGTERM)",
        ):
            assert outcome(program).startswith("failed: "), program
            assert not outcome(program).startswith("failed: its process"), program
    assert kept.read_text() == "as it was"
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]


def test_what_the_limits_leave_alone_works() -> None:
    # Tests of the benchmarks use these.
    program = (
        "import collections, heapq, math, random, re, itertools, functools, threading\n"
        "import numpy\n"
        "assert numpy.arange(4).sum() == 6\n"
        "done = []\n"
        "thread = threading.Thread(target=done.append, args=(1,))\n"
        "thread.start()\n"
        "thread.join()\n"
        "assert done == [1]\n"
        "assert open('/dev/null').read() == ''\n"
    )
    assert outcome(program, Limits()) == PASSED


def test_the_order_of_sets_is_the_same_in_every_run() -> None:
    words = [f"word{place}" for place in range(50)]
    order = f"raise ValueError(list(set({words!r})))"
    assert outcome(order) == outcome(order)


def test_the_estimate_is_the_share_of_draws_with_a_right_one() -> None:
    for candidates, correct, tries in itertools.product(range(1, 6), range(6), range(1, 6)):
        if correct <= candidates and tries <= candidates:
            draws = list(itertools.combinations(range(candidates), tries))
            right = sum(any(place < correct for place in draw) for draw in draws)
            assert estimate(candidates, correct, tries) == pytest.approx(right / len(draws))


def test_the_metric_counts_what_passes() -> None:
    good, bad = "def f():\n    return 2", "def f():\n    return 3"
    rates, outcomes = CodeEval(FEW).compute(
        references=["assert f() == 2", "assert f() == 3"],
        predictions=[[good, bad, bad], [good, good, good]],
        k=[1, 2, 4],
    )
    # One of three passes, and none: pass@2 of the first is 2/3; nothing has four candidates.
    assert rates == pytest.approx({"pass@1": 1 / 6, "pass@2": 1 / 3})
    assert [each["passed"] for _, each in outcomes[0]] == [True, False, False]
    assert outcomes[0][1][1]["result"].startswith("failed: AssertionError")
    assert math.isclose(sum(each["passed"] for _, each in outcomes[1]), 0)


def test_programs_are_refused_where_they_cannot_be_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs.check_confinement()
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(InputError, match="run such tasks on Linux"):
        programs.check_confinement()
