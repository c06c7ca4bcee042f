"""Count the instructions that every kernel takes for 4,096 entries, and compare with the record.

Seconds differ from run to run by more than a careless change costs; instructions do not. They are
counted by valgrind, which does not support AVX-512, so only at the levels below it. Instructions in
the C library (memset, memcpy) are left out, since their number depends on the machine.

The comparison fails for a kernel that takes over 2 % more than recorded, that is recorded but gone,
or that is not recorded. A kernel that takes over 2 % less does not fail, but should be recorded
again: otherwise the gain can be lost unnoticed.

Counts depend on the compiler: if it is not the record's, nothing is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benches" / "records" / "instructions.json"
PROGRAM = "sensmerge-instructions"
COUNTED = "sensmerge_instructions::counted"
LEVELS = ("baseline", "avx2")
TOLERANCE = 0.02
AGAIN = "hint: where that is meant, record anew: python scripts/instructions.py --record"

# Numbers of instructions by kernel and level.
Counts = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Change:
    """The counts of one kernel at one level: ``recorded`` and ``found``; None if there is none."""

    kernel: str
    level: str
    recorded: int | None
    found: int | None

    @property
    def ratio(self) -> float | None:
        """The relative change of the count: 0.03 is 3 % more than recorded."""
        if self.recorded is None or self.found is None:
            return None
        return self.found / self.recorded - 1

    @property
    def verdict(self) -> str:
        """The change in words; empty if it is within the tolerance."""
        if self.recorded is None:
            return "not recorded"
        if self.found is None:
            return "gone"
        more = self.found - self.recorded
        if abs(more) <= TOLERANCE * self.recorded:
            return ""
        return "slower" if more > 0 else "faster"

    def row(self) -> str:
        """One line of the table."""
        recorded, found = (
            "-" if count is None else f"{count:,}" for count in (self.recorded, self.found)
        )
        ratio = "" if self.ratio is None else f"{self.ratio:+.1%}"
        line = f"{self.kernel:<32} {self.level:<9} {recorded:>9} {found:>9} {ratio:>8}"
        return f"{line}  {self.verdict}".rstrip()


def changes(recorded: Counts, found: Counts) -> list[Change]:
    """All differences, at the levels that were counted, in the order of the kernels."""
    levels = [level for level in LEVELS if any(level in counts for counts in found.values())]
    every = [
        Change(kernel, level, recorded.get(kernel, {}).get(level), found.get(kernel, {}).get(level))
        for kernel in [*found, *(kernel for kernel in recorded if kernel not in found)]
        for level in levels
    ]
    return [change for change in every if change.recorded != change.found]


def report(changed: list[Change]) -> int:
    """Print the changes and a hint; return 1 if they are an error."""
    if changed:
        head = f"{'kernel':<32} {'level':<9} {'recorded':>9} {'now':>9} {'change':>8}"
        print("\n".join([head, *(change.row() for change in changed)]))
    verdicts = {change.verdict for change in changed}
    if failures := sorted(verdicts & {"gone", "not recorded", "slower"}):
        print(f"error: kernels are {', '.join(failures)}\n{AGAIN}", file=sys.stderr)
        return 1
    if "faster" in verdicts:
        print(f"instructions: some kernels are faster than recorded\n{AGAIN}")
    return 0


def instructions(profile: str, program: str) -> int:
    """The instructions of a callgrind profile that were spent in ``program`` itself."""
    total, inside, called = 0, False, False
    for line in profile.splitlines():
        if line.startswith("ob="):
            inside = line == f"ob={program}"
        elif line.startswith("calls="):
            # The next line has the cost of the called function, which is counted there.
            called = True
        elif cost := re.fullmatch(r"\d+ (\d+)", line):
            total += 0 if called or not inside else int(cost[1])
            called = False
    return total


def count(program: str, level: str) -> dict[str, int] | None:
    """Instructions by kernel at one level; None if the processor lacks it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={folder}/profile",
            f"--toggle-collect={COUNTED}", f"--dump-before={COUNTED}", "--compress-strings=no",
            "--compress-pos=no", program,
        ]  # fmt: skip
        environment = os.environ | {"SENSMERGE_SIMD": level}
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if run.returncode != 0:
            sys.exit(f"error: {PROGRAM} failed under valgrind")
        ran_at, *kernels = run.stdout.splitlines()
        if ran_at.lower() != level:
            return None
        # A profile is written before each kernel, so the first is empty, and at the end.
        profiles = [Path(folder, f"profile.{place}") for place in range(2, len(kernels) + 1)]
        profiles.append(Path(folder, "profile"))
        found = [instructions(profile.read_text(), program) for profile in profiles]
    return dict(zip(kernels, found, strict=True))


def build() -> str:
    """Build the program that runs the kernels and return its path."""
    # With the features of the whole workspace, as in the extension, whose dependencies are used.
    command = ["cargo", "build", "--quiet", "--release", "--locked", "--workspace"]
    command += [f"--bin={PROGRAM}"]
    # A developer's own compiler flags are not used for the shipped extension.
    environment = {name: value for name, value in os.environ.items() if name != "RUSTFLAGS"}
    run = subprocess.run(
        [*command, "--message-format=json-render-diagnostics"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if run.returncode != 0:
        sys.exit(f"error: {PROGRAM} does not compile")
    messages = [json.loads(line) for line in run.stdout.splitlines()]
    return next(str(message["executable"]) for message in messages if message.get("executable"))


def compiler() -> str:
    """The compiler's version and target, such as ``rustc 1.95.0 (…), x86_64-unknown-linux-gnu``."""
    said = subprocess.run(["rustc", "-vV"], cwd=ROOT, capture_output=True, text=True, check=True)
    version, *details = said.stdout.splitlines()
    host = next(line.removeprefix("host: ") for line in details if line.startswith("host: "))
    return f"{version}, {host}"


def why_not(made_with: str | None) -> str | None:
    """The reason why counts cannot be made or compared with the record; None if they can."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    if made_with is not None and made_with != (here := compiler()):
        return f"the record was made with {made_with}; this is {here}"
    return None


def count_all() -> Counts:
    """Count every kernel at every level that the processor has."""
    program = build()
    found: Counts = {}
    for level in LEVELS:
        counts = count(program, level)
        if counts is None:
            print(f"instructions: {level} skipped: this processor lacks it")
            continue
        for kernel, number in counts.items():
            found.setdefault(kernel, {})[level] = number
    return found


def record() -> int:
    """Write the record again; return 1 if that cannot be done here."""
    if reason := why_not(None):
        print(f"error: nothing can be recorded: {reason}", file=sys.stderr)
        return 1
    found = count_all()
    if any(len(counts) < len(LEVELS) for counts in found.values()):
        print("error: nothing is recorded: every level is needed", file=sys.stderr)
        return 1
    content = {"compiler": compiler(), "entries": 4096, "instructions": found}
    # A line a kernel.
    text = re.sub(r"\n {3}|\n {2}(?=})", " ", json.dumps(content, indent=1))
    RECORD.write_text(text + "\n")
    print(f"instructions: recorded {len(found)} kernels")
    return 0


def compare() -> int:
    """Compare with the record; return 1 if the comparison fails."""
    recorded = json.loads(RECORD.read_text())
    if reason := why_not(recorded["compiler"]):
        print(f"instructions: skipped: {reason}")
        return 0
    found = count_all()
    status = report(changes(recorded["instructions"], found))
    if status == 0:
        print(f"instructions: {len(found)} kernels, none over {TOLERANCE:.0%} above its record")
    return status


def main(arguments: list[str] | None = None) -> int:
    """Compare or record, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="write the record anew")
    return record() if parser.parse_args(arguments).record else compare()


if __name__ == "__main__":
    sys.exit(main())
