"""Every method compared with the floor, and with mergekit where it is installed.

``python benches/merge.py [--size 1b|7b] [--runs N] [--sync] [--cold] [--threads N] [--record]
[--scaling] [--all] [--output DIR] [--mergekit PATH]``

The floor (``benches/floor``) computes θ₀ + Σ w δ over the same files on all threads and checks
nothing. Both are whole processes, run in turn, each on a new output file; a ratio is taken within
a turn, and the median of the ratios is reported. The first turn warms up and is not counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import checkpoints
import measure
import sensmerge
from checkpoints import FILE, names
from works import EXPERTS, WORKS, Work

WORK = Path(__file__).resolve().parent / "checkpoints"

_TICK = 1e-3

SMALL = (20_000, 1_000)


@dataclass
class Row:
    """The measurements of one merge."""

    floor: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    users: list[tuple[float, float]] = field(default_factory=list)
    anonymous: int = 0
    mergekit: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The median of the ratios to the floor."""
        pairs = zip(self.seconds, self.floor, strict=True)
        return statistics.median(seconds / floor for seconds, floor in pairs)

    @property
    def user(self) -> float:
        """The median of the seconds in user mode."""
        return statistics.median(ours for ours, _ in self.users)

    @property
    def user_ratio(self) -> float:
        """The median of the ratios to the floor of seconds in user mode."""
        # Of tiny models the floor may take less than a tick of the system's clock.
        return statistics.median(ours / max(floor, _TICK) for ours, floor in self.users)


class Bench:
    """A family of checkpoints and how merges of it are run."""

    def __init__(self, folder: Path, floor: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self._floor = floor
        self._options = options
        self._written = options.output or folder
        self._out = self._written / "out"

    def inputs(self, work: Work) -> list[Path]:
        """The files of the base and of a work's experts, or of the experts and their statistics."""
        files = [self.folder / name / FILE for name in names(work.experts)]
        return [*files[1:], *self._statistics()] if work.statistics else files

    def floor(self, work: Work) -> measure.Taken:
        """The floor, or with a cold cache plain reading or writing, whichever takes longer."""
        if self._options.cold:
            ways = self._read(work), self._write(work)
            return max(ways, key=lambda taken: taken.seconds)
        out = self._written / "floor.out"
        command: list[str | Path] = [self._floor, "--out", out]
        if self._options.sync:
            command.append("--sync")
        if self._options.threads:
            command += ["--threads", str(self._options.threads)]
        with _new(out):
            return measure.run([*command, *self.inputs(work)])

    def merge(self, work: Work, threads: int = 0) -> measure.Taken:
        """One merge, as a user runs it."""
        threads = threads or self._options.threads
        recipe = self.folder / "recipe.json"
        recipe.write_text(json.dumps(self._recipe(work)))
        command: list[str | Path] = [
            Path(sys.executable).parent / "sensmerge", "merge", recipe, self._out, "--quiet",
        ]  # fmt: skip
        if not self._options.sync:
            # The floor does neither.
            command += ["--no-sync", "--no-hash"]
        if threads:
            command += ["--threads", str(threads)]
        if work.sensitivity or work.statistics:
            command += ["--calibration", self._calibration(statistics=work.statistics)]
        with _new(self._out):
            return measure.run(command, cold=self.inputs(work) if self._options.cold else ())

    def in_memory(self, work: Work, turns: int) -> list[tuple[float, float]]:
        """Seconds of the floor's and of our merge into memory, the files mapped already."""
        recipe = self.folder / "recipe.json"
        recipe.write_text(json.dumps(self._recipe(work)))
        found = []
        for _ in range(turns):
            commands: list[list[str | Path]] = [
                [self._floor, "--memory", *self.inputs(work)],
                [sys.executable, "-c", _IN_MEMORY, recipe],
            ]
            floor, ours = (
                float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                for command in commands
            )
            found.append((floor, ours))
        return found

    def mergekit(self, work: Work) -> float:
        """Seconds of mergekit for the same merge, in float32 arithmetic as ours is."""
        recipe = self.folder / "mergekit.yaml"
        data = self._recipe(work) | {"dtype": "float32", "out_dtype": "bfloat16"}
        data.pop("sensitivity", None)
        recipe.write_text(json.dumps(data))
        with _new(self._out):
            return measure.run([self._options.mergekit, recipe, self._out]).seconds

    def _recipe(self, work: Work) -> dict[str, Any]:
        models: list[dict[str, Any]] = [
            {"model": str(self.folder / name)} for name in names(work.experts)[1:]
        ]
        for model in models if work.weights else []:
            model["parameters"] = {"weight": round(1 / work.experts, 3)}
        recipe: dict[str, Any] = {
            "merge_method": work.method, "models": models, "parameters": work.parameters,
        }  # fmt: skip
        if work.semantics != "mergekit":
            recipe["semantics"] = work.semantics
        if work.base:
            recipe["base_model"] = str(self.folder / "base")
        if work.sensitivity:
            recipe["sensitivity"] = {}
        return recipe

    def _statistics(self) -> list[Path]:
        """Made-up Fisher information: the experts' own entries without their signs."""
        import numpy as np

        made = []
        for name in names(EXPERTS)[1:]:
            path = self.folder / f"{name}.fisher.safetensors"
            made.append(path)
            if path.is_file():
                continue
            with (self.folder / name / FILE).open("rb") as model, path.open("wb") as file:
                size = model.read(8)
                file.write(size + model.read(int.from_bytes(size, "little")))
                while piece := model.read(1 << 26):
                    file.write((np.frombuffer(piece, np.uint16) & 0x7FFF).tobytes())
        return made

    def _calibration(self, *, statistics: bool = False) -> Path:
        """A calibration of these experts with made-up numbers."""
        import numpy as np

        from sensmerge import _core
        from sensmerge.calibration.record import Calibration, Expert, StatisticsFile, TaskRecord
        from sensmerge.models.layers import block_of, layer_of

        path = self.folder / ("statistics.json" if statistics else "calibration.json")
        if path.is_file():
            return path
        order = list(
            dict.fromkeys(
                layer_of(tensor.name)
                for tensor in _core.Checkpoint(str(self.folder / "base")).tensors
            )
        )
        inner = [layer for layer in order if block_of(f"{layer}.weight")]
        outer = [layer for layer in order if layer not in inner]
        task = TaskRecord("made-up", 1, [0], 1, 0, 1, "sha256:0", 512)
        experts = [
            Expert(name, _core.Checkpoint(str(self.folder / name)).fingerprint(), 32_000, 1.0, task)
            for name in names(EXPERTS)[1:]
        ]
        draw = np.random.default_rng(0)
        alignment = draw.random((EXPERTS, EXPERTS)) + 1
        np.fill_diagonal(alignment, 0)
        Calibration(
            base=None,
            experts=experts,
            layers=inner,
            sensitivity=draw.random((EXPERTS, len(inner))) + 1,
            outside_layers=outer,
            outside_sensitivity=draw.random((EXPERTS, len(outer))) + 1,
            order=order,
            alignment=alignment,
            options={},
            statistics=[
                StatisticsFile(
                    "fisher",
                    file.name,
                    _core.Checkpoint(str(file)).fingerprint(),
                    {tensor.name: tensor.name for tensor in _core.Checkpoint(str(file)).tensors},
                    1.0,
                )
                for file in (self._statistics() if statistics else [])
            ],
        ).save(path)
        return path

    def _read(self, work: Work) -> measure.Taken:
        files = self.inputs(work)
        return measure.run([sys.executable, "-c", _READ, *files], cold=files)

    def _write(self, work: Work) -> measure.Taken:
        out = self._written / "plain.out"
        size = str(self.inputs(work)[0].stat().st_size)
        sync = "sync" if self._options.sync else ""
        with _new(out):
            return measure.run([sys.executable, "-c", _WRITE, out, size, sync])


# The second merge is timed: the first one has brought the files' pages into the process.
_IN_MEMORY = """
import sys, time
import torch
import sensmerge
recipe = sensmerge.Recipe.load(sys.argv[1])
models = sensmerge.open_models(recipe)
merged = sensmerge.merge_tensors(recipe, models)
start = time.perf_counter()
sensmerge.merge_into(merged, recipe, models)
print(time.perf_counter() - start)
"""

_READ = """
import sys
buffer = bytearray(1 << 22)
for path in sys.argv[1:]:
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
"""

_WRITE = """
import os, sys
buffer, left = bytes(1 << 22), int(sys.argv[2])
with open(sys.argv[1], "wb", buffering=0) as file:
    while left > 0:
        left -= file.write(buffer[:left])
    if sys.argv[3]:
        os.fsync(file.fileno())
"""


@contextmanager
def _new(path: Path) -> Iterator[None]:
    """Remove an output before and after."""
    _remove(path)
    try:
        yield
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> None:
    """Make checkpoints, run everything in turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(checkpoints.SHAPES), default="1b")
    parser.add_argument("--runs", type=int, default=5, help="turns that count")
    parser.add_argument("--sync", action="store_true", help="flush to the disk, the default's way")
    parser.add_argument("--cold", action="store_true", help="inputs leave the page cache first")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--scaling", action="store_true", help="1, 2 and 8 threads instead")
    parser.add_argument("--mergekit-runs", type=int, default=1, help="turns that it takes part in")
    parser.add_argument("--only", default="", help="part of the names of works to run")
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml of an environment of its own")
    parser.add_argument("--no-small", action="store_true", help="leave the small tensors out")
    parser.add_argument("--record", action="store_true", help="keep the table in benches/records")
    parser.add_argument("--all", action="store_true", help="every method")
    parser.add_argument("--output", type=Path, help="where merges are written, such as /dev/shm")
    parser.add_argument("--folder", type=Path, default=WORK, help="where checkpoints are kept")
    options = parser.parse_args()
    table = bench(options)
    print(table)
    if options.record:
        measure.record(_title(options), table)


def bench(options: argparse.Namespace) -> str:
    """Measure what the options ask for; the table."""
    floor = build_floor()
    folder = options.folder / options.size
    shape = checkpoints.llama(folder, options.size, EXPERTS)
    family = Bench(folder, floor, options)
    works = [work for work in WORKS if options.only in work.name]
    if not (options.all or options.only):
        works = [work for work in works if work.main]
    if options.scaling:
        return _scaling(options, family, works)
    rows = _in_turns(options, {work.name: (family, work) for work in works})
    small = None
    if not (options.no_small or options.only):
        folder = options.folder / "small"
        checkpoints.small_tensors(folder, EXPERTS, *SMALL)
        work = next(work for work in WORKS if work.name == "task_arithmetic")
        work = replace(work, times=None)
        small = _in_turns(options, {"": (Bench(folder, floor, options), work)})[""]
    table = _table(options, shape.bytes() // 2, works, rows, small)
    if not (options.sync or options.cold or options.only):
        work = next(work for work in WORKS if work.name == "task_arithmetic")
        pairs = family.in_memory(work, options.runs)
        floor, ours = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
        ratio = statistics.median(ours / floor for floor, ours in pairs)
        table += (
            f"\nIn memory, task_arithmetic: {ours:.2f} s where the floor without its writes takes "
            f"{floor:.2f} s, ratio {ratio:.2f} (target: 1.25).\n"
        )
    return table


def _in_turns(options: argparse.Namespace, works: dict[str, tuple[Bench, Work]]) -> dict[str, Row]:
    rows = {name: Row() for name in works}
    for turn in range(options.runs + 1):
        for name, (family, work) in works.items():
            floor, taken = family.floor(work), family.merge(work)
            if turn > 0:
                rows[name].floor.append(floor.seconds)
                rows[name].users.append((taken.user, floor.user))
                rows[name].seconds.append(taken.seconds)
                rows[name].anonymous = max(rows[name].anonymous, taken.anonymous)
                if options.mergekit and work.times and turn <= options.mergekit_runs:
                    rows[name].mergekit.append(family.mergekit(work))
    return rows


def _scaling(options: argparse.Namespace, family: Bench, works: list[Work]) -> str:
    """Seconds on one, two and eight threads."""
    counts = (1, 2, 8)
    seconds = {(work.name, count): list[float]() for work in works for count in counts}
    for turn in range(options.runs + 1):
        for work in works:
            for count in counts:
                taken = family.merge(work, count)
                if turn > 0:
                    seconds[work.name, count].append(taken.seconds)
    lines = [
        *_heading(options, f"Threads, {options.size}"),
        f"Whole processes in turn, {options.runs} turns after one that warms up; medians.",
        "",
        "| work | 1 thread | 2 threads | 8 threads | 1 to 2: times as fast | 8 over 2 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for work in works:
        one, two, eight = (statistics.median(seconds[work.name, count]) for count in counts)
        lines.append(
            f"| {work.name} | {one:.2f} | {two:.2f} | {eight:.2f} | {one / two:.2f} | "
            f"{eight / two:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _heading(options: argparse.Namespace, title: str) -> list[str]:
    threads = options.threads or "all"
    state = "page cache cold" if options.cold else "page cache warm"
    flushed = "output flushed and hashed" if options.sync else "output neither flushed nor hashed"
    flushed += f", in {options.output}" if options.output else ""
    return [
        f"# {title}",
        "",
        f"{measure.machine()}; sensmerge {sensmerge.__version__} at {measure.commit()}, "
        f"{time.strftime('%Y-%m-%d')}; {threads} threads; {state}, {flushed}.",
    ]


def build_floor() -> Path:
    """Build the floor program and return its path."""
    command = [
        "cargo", "build", "--quiet", "--release", "--locked", "--package=sensmerge-floor",
        "--message-format=json",
    ]  # fmt: skip
    built = subprocess.run(command, cwd=measure.ROOT, check=True, capture_output=True, text=True)
    messages = map(json.loads, built.stdout.splitlines())
    found = [message["executable"] for message in messages if message.get("executable")]
    return Path(found[-1])


def _title(options: argparse.Namespace) -> str:
    parts = ["merge", options.size]
    parts += [name for name in ("sync", "cold", "scaling", "all") if getattr(options, name)]
    parts += [f"{options.threads}-threads"] if options.threads else []
    return "-".join(parts)


def _table(
    options: argparse.Namespace,
    entries: int,
    works: list[Work],
    rows: dict[str, Row],
    small: Row | None,
) -> str:
    floor = [seconds for row in rows.values() for seconds in row.floor]
    users = statistics.median(floor for row in rows.values() for _, floor in row.users)
    what = "reading the inputs or writing the output, plainly" if options.cold else "the floor"
    lines = [
        *_heading(
            options, f"{entries / 1e6:,.0f} M parameters, bfloat16, base + {EXPERTS} experts"
        ),
        f"Whole processes in turn, {options.runs} turns after one that warms up. Seconds are "
        "medians",
        f"(fastest to slowest), ratios medians of those within a turn to {what}:",
        f"{_seconds(floor)} s, {users:.2f} s of them in user mode over all threads.",
        "",
        "| work | seconds | ratio | target | user mode | ratio | peak anonymous memory |"
        + (" mergekit | times as fast | target |" if options.mergekit else ""),
        "|---|---:|---:|---:|---:|---:|---:|" + ("---:|---:|---:|" if options.mergekit else ""),
    ]
    row_of: Callable[[Work], str] = lambda work: _row(options, work, rows[work.name])  # noqa: E731
    lines += map(row_of, works)
    if small is not None:
        count, each = SMALL
        above = statistics.median(small.seconds) - statistics.median(small.floor)
        lines += [
            "",
            f"{count:,} tensors of {each:,} entries, task_arithmetic: {_seconds(small.seconds)} s, "
            f"{above:.2f} s above the floor's {statistics.median(small.floor):.2f} s "
            "(target: 1 s above).",
        ]
    return "\n".join(lines) + "\n"


def _row(options: argparse.Namespace, work: Work, row: Row) -> str:
    bound_by_disk = (options.sync or options.cold) and work.target == 1.25
    target = 1.15 if bound_by_disk else work.target
    cells = [
        work.name, _seconds(row.seconds), f"{row.ratio:.2f}",
        "" if target is None else f"{target:g}", f"{row.user:.2f}", f"{row.user_ratio:.1f}",
        f"{row.anonymous / 1e6:.0f} MB",
    ]  # fmt: skip
    if options.mergekit:
        if row.mergekit:
            seconds = statistics.median(row.mergekit)
            times = seconds / statistics.median(row.seconds)
            cells += [f"{seconds:.0f} s", f"{times:.0f}", str(work.times)]
        else:
            cells += ["", "", ""]
    return f"| {' | '.join(cells)} |"


def _seconds(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
