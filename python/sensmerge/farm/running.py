"""The farm itself: one merge after the other, evaluations beside them, the best models kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensmerge import __version__
from sensmerge.errors import InputError
from sensmerge.farm import jobs, lock
from sensmerge.farm.board import Board
from sensmerge.farm.calibrations import Calibrations
from sensmerge.farm.database import FILE, Candidate, Database
from sensmerge.farm.evaluators import Context, Evaluator
from sensmerge.farm.identity import digest, identity
from sensmerge.farm.jobs import Job, Merged, Outcome, Scores
from sensmerge.farm.kept import Kept
from sensmerge.farm.places import filled
from sensmerge.farm.proposals import Proposals, proposals_of
from sensmerge.farm.settings import FarmFile
from sensmerge.farm.space import Space
from sensmerge.farm.workbench import Workbench
from sensmerge.progress import bar
from sensmerge.scaling.matching import needs_files

if TYPE_CHECKING:
    from sensmerge.recipe import Recipe

# Candidates one after the other for which the disk has no room, at which a farm stops.
_MOST_FULL = 3
# Proposals one after the other that bring nothing new, at which a study has no more.
_MOST_KNOWN = 100
# Refusals of candidates that are named.
_MOST_WRONG = 20

# A candidate before it has a number: its hash, its recipe, and the values of the places that vary.
_New = tuple[str, dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """How a farm is run; none of these changes a score.

    Attributes:
        workers: Evaluations at a time.
        device: The torch device that models run on, such as ``cuda``.
        threads: Threads to merge with; all cores by default.
        retry: Run candidates again that failed.
        progress: Show progress.
    """

    workers: int = 1
    device: str = "cpu"
    threads: int | None = None
    retry: bool = False
    progress: bool = True


def farm(path: str | Path, folder: str | Path, options: Options | None = None) -> Board:
    """Merge and score the candidates of a farm file; go on where an earlier run stopped.

    Args:
        path: The farm file.
        folder: The folder that the farm keeps everything in; it is made if it does not exist.
        options: How it is run.

    Raises:
        InputError: The farm file, its recipe, models or samples cannot be used as they are; another
            farm runs in the folder, or it is of another farm; the disk is full; or all candidates
            failed.
        KeyboardInterrupt: Ctrl-C was pressed. What is finished is kept, and the farm can go on.
    """
    path, folder = Path(path), Path(folder)
    file = FarmFile.load(path)
    template = file.template(path)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}") from None
    try:
        with ExitStack() as stack:
            stack.enter_context(lock.held(folder))
            run = Farm(path, file, template, folder, stack, options or Options())
            run.carry_out()
    except InputError:
        if made and not (folder / FILE).exists():
            # It was refused before anything was done.
            with suppress(OSError):
                (folder / lock.FILE).unlink(missing_ok=True)
                folder.rmdir()
        raise
    return Board.read(folder)


class Farm:
    """One run of a farm."""

    def __init__(
        self,
        path: Path,
        file: FarmFile,
        template: Recipe,
        folder: Path,
        stack: ExitStack,
        options: Options,
    ) -> None:
        """Check everything, then open the database.

        Args:
            path: The farm file.
            file: What it holds.
            template: Its recipe.
            folder: The farm's folder, whose lock is held.
            stack: Closes what is opened.
            options: How the farm is run.

        Raises:
            InputError: As :func:`farm`.
        """
        self._file, self._template, self._folder = file, template, folder
        self._options, self._noted = options, list[str]()
        self._bench, self._space = Workbench(), Space(folder, file.disk)
        self._calibrations = Calibrations(
            folder,
            self._bench,
            given=None if file.calibration is None else path.parent / file.calibration,
            device=options.device,
            threads=options.threads,
            progress=options.progress,
            note=self._note,
        )
        context = Context(
            template,
            path.parent,
            self._bench,
            self._calibrations.of,
            options.workers,
            options.device,
            options.threads,
        )
        self._bench.models(template)
        name, settings = file.evaluate.chosen
        self._evaluator: Evaluator = stack.enter_context(closing(settings.opened(context)))
        self._proposals: Proposals = proposals_of(file, template, self._evaluator.better)
        ahead = self._ahead()
        self._database = stack.enter_context(closing(Database(folder, write=True)))
        self._kept = Kept(self._database, self._space, self._evaluator.better, file.keep)
        self._settle_settings(name)
        self._fill(ahead)
        self._pending: dict[Future[Scores], tuple[Candidate, Merged]] = {}
        self._full = 0

    def _note(self, said: str) -> None:
        if said not in self._noted:
            self._noted.append(said)

    def _new(self, chosen: dict[str, Any]) -> _New:
        """A candidate with these values.

        Raises:
            InputError: They make no recipe, its models cannot be opened, or its output is larger
                than the budget.
        """
        recipe, used = filled(self._template, self._proposals.places, chosen)
        on_disk = self._evaluator.needs_output or self._file.keep > 0
        if self._file.disk is not None and on_disk and not needs_files(recipe):
            self._space.check(self._bench.bytes_of(recipe))
        weights, calibration = self._bench.weights(recipe), self._calibrations.key(recipe)
        return identity(recipe, weights, calibration), recipe.source, used

    def _ahead(self) -> list[_New]:
        """The candidates that are known before any is merged, each once."""
        found: dict[str, _New] = {}
        wrong: list[str] = []
        for chosen in self._proposals.ahead():
            try:
                new = self._new(chosen)
            except InputError as error:
                said = ", ".join(f"{name}: {value}" for name, value in chosen.items())
                wrong += [f"with {said}: {line}" for line in error.lines]
                if len(wrong) >= _MOST_WRONG:
                    break
                continue
            found.setdefault(new[0], new)
        if self._proposals.most and not self._template.auto:
            # Of a study nothing is known yet but its recipe.
            self._new({})
        if wrong:
            raise InputError(list(dict.fromkeys(wrong)))
        return list(found.values())

    def _settle_settings(self, name: str) -> None:
        """Refuse a folder whose scores would not compare with this farm's."""
        wanted = digest([self._evaluator.key(), self._evaluator.better, __version__])
        found = self._database.setting("scored_by")
        if found not in (None, wanted):
            raise InputError(
                f"{self._folder}: its candidates were scored otherwise (by another evaluation, on "
                "other samples, or by another version), so that scores would not compare; name "
                "another folder"
            )
        self._database.set(
            scored_by=wanted,
            evaluator=name,
            better=self._evaluator.better,
            keep=self._file.keep,
            disk=self._file.disk,
            notes=self._evaluator.notes(),
        )

    def _fill(self, ahead: list[_New]) -> None:
        """Add candidates that are new; remove those that waited and are wanted no more."""
        self._database.wait_again("running")
        if self._options.retry:
            self._database.wait_again("failed")
        if self._proposals.most:
            return
        wanted = {key for key, _, _ in ahead}
        waiting = self._database.candidates("waiting")
        self._database.remove([each.number for each in waiting if each.hash not in wanted])
        self._database.add(ahead)

    def carry_out(self) -> None:
        """Run the candidates that wait; then see to it that the best models lie in the folder.

        Raises:
            InputError: As :func:`farm`.
        """
        waiting = []
        for each in self._database.candidates():
            if each.status == "waiting":
                waiting.append(each)
            else:
                self._proposals.told(each.chosen, each.score)
        self._space.clean(each.folder for each in [*self._kept.models(), *waiting])
        there = sum(self._database.counts().values())
        total = max(there, self._proposals.most)
        try:
            with (
                ThreadPoolExecutor(self._options.workers) as pool,
                self._stopping(pool),
                bar(total, "candidates", "candidates", enabled=self._options.progress) as advance,
            ):
                advance(there - len(waiting))
                for candidate in self._next(waiting):
                    self._start(candidate, pool, advance)
                while self._collect(advance, block=True):
                    pass
            self._note(self._kept.settle(self._size, self._merge))
        finally:
            # Where the disk is full, what ran is seen to run no more when the farm goes on.
            with suppress(InputError):
                self._database.wait_again("running")
                self._write_notes()
        self._check_any()

    @contextmanager
    def _stopping(self, pool: ThreadPoolExecutor) -> Iterator[None]:
        """End evaluations where the farm is stopped."""
        try:
            yield
        except BaseException:
            self._evaluator.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise

    def _next(self, waiting: list[Candidate]) -> Iterator[Candidate]:
        """The candidates that are to be run; those that wait first."""
        yield from waiting
        count, known = sum(self._database.counts().values()), 0
        while count < self._proposals.most and known < _MOST_KNOWN:
            chosen = self._proposals.next()
            if chosen is None:
                return
            try:
                key, recipe, used = self._new(chosen)
            except InputError as error:
                key, recipe, used = digest(chosen), self._template.source, chosen
                ((number, new),) = self._database.add([(key, recipe, used)])
                reason = jobs.reason_of(error)
                self._database.end(Outcome(number, reason=reason), kept=False)
                self._proposals.told(chosen, None)
                count, known = (count + 1, 0) if new else (count, known + 1)
                continue
            ((number, new),) = self._database.add([(key, recipe, used)])
            if not new:
                self._proposals.told(chosen, self._database.candidate(number).score)
                known += 1
                continue
            count, known = count + 1, 0
            yield Candidate(number, key, recipe, used, "waiting")
        if known:
            self._note("the study proposes nothing new any more, so that it ends before its trials")

    def _start(
        self, candidate: Candidate, pool: ThreadPoolExecutor, advance: Callable[[int], None]
    ) -> None:
        """Merge a candidate, if it is to lie on the disk, and hand it to the evaluators."""
        while len(self._pending) > self._options.workers:
            self._collect(advance, block=True)
        self._collect(advance, block=False)
        self._database.begin(candidate.number)
        merged, size = Merged(), 0
        try:
            job = self._job(candidate, write=self._evaluator.needs_output)
            if job.output is not None:
                size = self._size(candidate)
                self._kept.make_room(
                    size, candidate.folder, lambda: self._collect(advance, block=True)
                )
                merged = jobs.merge(job, self._bench)
        except Exception as error:
            self._fail(candidate, error, size, advance)
            return
        self._full = 0
        self._pending[pool.submit(jobs.evaluate, job, self._evaluator)] = candidate, merged

    def _job(self, candidate: Candidate, *, write: bool) -> Job:
        """A candidate as a job; its calibration is measured if it is not there yet."""
        plain = Job(candidate.number, candidate.recipe, str(self._template.folder.absolute()))
        calibration = self._calibrations.of(plain.read())
        return Job(
            plain.number,
            plain.recipe,
            plain.folder,
            str(self._space.place(candidate.folder).absolute()) if write else None,
            None if calibration is None else str(calibration.absolute()),
            self._options.threads,
        )

    def _size(self, candidate: Candidate) -> int:
        job = self._job(candidate, write=True)
        return self._bench.bytes_of(job.read(), job.measured)

    def _merge(self, candidate: Candidate) -> Merged:
        return jobs.merge(self._job(candidate, write=True), self._bench)

    def _fail(
        self, candidate: Candidate, error: Exception, size: int, advance: Callable[[int], None]
    ) -> None:
        """Write down why a candidate was not merged; stop if the disk stays full."""
        full = jobs.is_full(error) or (size > 0 and self._space.lacks(size))
        self._space.remove(candidate.folder)
        reason = jobs.reason_of(error)
        self._database.end(Outcome(candidate.number, reason=reason), kept=False)
        self._proposals.told(candidate.chosen, None)
        advance(1)
        self._full = self._full + 1 if full else 0
        if self._full >= _MOST_FULL:
            while self._collect(advance, block=True):
                pass
            raise InputError(
                f"{self._folder}: the disk is full, {_MOST_FULL} candidates one after the other "
                "could not be written; free space, and run the same command again with --retry"
            )

    def _collect(self, advance: Callable[[int], None], *, block: bool) -> bool:
        """Write down evaluations that are done; with ``block``, wait for one.

        Returns:
            Whether there was any under way.
        """
        if not self._pending:
            return False
        seconds = None if block else 0
        done, _ = wait(self._pending, timeout=seconds, return_when=FIRST_COMPLETED)
        for future in done:
            candidate, merged = self._pending.pop(future)
            self._record(candidate, merged, future)
            advance(1)
        return True

    def _record(self, candidate: Candidate, merged: Merged, future: Future[Scores]) -> None:
        """Write down what came of a candidate, and delete what is not among the best any more."""
        error = future.exception()
        if error is not None and not isinstance(error, Exception):
            raise error
        scores = None if error is not None else future.result()
        reason = None if error is None else jobs.reason_of(error)
        own = None if scores is None else scores.merged
        outcome = Outcome(candidate.number, own or merged, scores, reason)
        written = self._evaluator.needs_output
        self._database.end(outcome, kept=written and scores is not None)
        self._proposals.told(candidate.chosen, None if scores is None else scores.score)
        if scores is None:
            self._space.remove(candidate.folder)
        elif written:
            self._kept.trim()

    def _write_notes(self) -> None:
        earlier = self._database.setting("events", [])
        new = [said for said in self._noted if said and said not in earlier]
        self._database.set(events=[*earlier, *new])

    def _check_any(self) -> None:
        """Refuse to call it done where every candidate failed."""
        failed = self._database.candidates("failed")
        if failed and len(failed) == sum(self._database.counts().values()):
            raise InputError(
                f"{self._folder}: every candidate failed; the first: {failed[0].reason}"
            )
