"""The comparison of instruction counts behind `make instructions`, and that it misses no kernel."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import instructions
from instructions import Change, Counts, changes, report

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "rust" / "sensmerge-core" / "src" / "kernel"
PROGRAM = ROOT / "benches" / "instructions" / "src" / "main.rs"

RECORDED: Counts = {
    "subtract": {"baseline": 10_000, "avx2": 5_000},
    "trim": {"baseline": 20_000, "avx2": 8_000},
}


def with_count(kernel: str, level: str, count: int) -> Counts:
    """The record with one count changed."""
    return RECORDED | {kernel: RECORDED[kernel] | {level: count}}


@pytest.mark.parametrize(
    ("count", "verdict", "status"),
    [
        (5_150, "slower", 1),
        (5_101, "slower", 1),
        (5_100, "", 0),
        (4_900, "", 0),
        (4_850, "faster", 0),
    ],
)
def test_a_slower_kernel_fails_and_a_faster_one_asks_for_a_record(
    count: int, verdict: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = changes(RECORDED, with_count("subtract", "avx2", count))
    assert changed == [Change("subtract", "avx2", 5_000, count)]
    assert changed[0].verdict == verdict
    assert report(changed) == status
    said = capsys.readouterr()
    assert f"{count:,}" in said.out
    assert ("--record" in said.out + said.err) == bool(verdict)
    assert ("error: " in said.err) == bool(status)


def test_a_gain_does_not_hide_a_loss() -> None:
    found = with_count("trim", "avx2", 4_000) | {"subtract": {"baseline": 10_300, "avx2": 5_000}}
    assert report(changes(RECORDED, found)) == 1


def test_what_did_not_change_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert changes(RECORDED, RECORDED) == []
    assert report([]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_kernel_that_is_gone_or_not_recorded_fails(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"subtract": RECORDED["subtract"], "fused": {"baseline": 1, "avx2": 1}}
    changed = changes(RECORDED, found)
    assert [(change.kernel, change.verdict) for change in changed] == [
        ("fused", "not recorded"),
        ("fused", "not recorded"),
        ("trim", "gone"),
        ("trim", "gone"),
    ]
    assert report(changed) == 1
    assert "gone, not recorded" in capsys.readouterr().err


def test_a_level_that_the_processor_lacks_is_not_compared() -> None:
    found = {kernel: {"baseline": counts["baseline"]} for kernel, counts in RECORDED.items()}
    assert changes(RECORDED, found) == []


PROFILE = """\
events: Ir

ob=/lib/libc.so.6
fn=memset
167 128
ob=/target/release/program
fn=program::counted
0 3
cfn=kernel
calls=1 0
0 41003

fn=kernel
0 700
cob=/lib/libc.so.6
cfn=memset
calls=32 167
0 128
0 40300

totals: 41131
"""


def test_only_the_programs_own_instructions_count() -> None:
    assert instructions.instructions(PROFILE, "/target/release/program") == 3 + 700 + 40_300


def test_without_valgrind_it_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert instructions.main([]) == 0
    assert "skipped: valgrind is not installed" in capsys.readouterr().out
    assert instructions.main(["--record"]) == 1


def test_with_another_compiler_it_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "instructions.json"
    record.write_text(json.dumps({"compiler": "rustc 1.0.0, some-target", "instructions": {}}))
    monkeypatch.setattr(instructions, "RECORD", record)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/valgrind")
    assert instructions.main([]) == 0
    said = capsys.readouterr().out
    assert f"made with rustc 1.0.0, some-target; this is {instructions.compiler()}" in said


def test_every_kernel_is_counted() -> None:
    sources = [path.read_text() for path in KERNELS.glob("*.rs")]
    generic = re.compile(r"^ *pub fn (\w+)<T: Real>", re.M)
    kernels = {name for source in sources for name in generic.findall(source)}
    called = set(re.findall(r"\b(\w+)(?:::<\w+>)?\(", PROGRAM.read_text()))
    assert "subtract" in kernels
    assert kernels <= called, f"not in {PROGRAM.relative_to(ROOT)}"


def test_every_count_is_recorded() -> None:
    listed = re.findall(r'^    \("([^"]+)", \|', PROGRAM.read_text(), re.M)
    recorded = json.loads(instructions.RECORD.read_text())["instructions"]
    assert sorted(listed) == sorted(recorded)
    assert all(list(counts) == list(instructions.LEVELS) for counts in recorded.values())
