"""Results of stages, kept in the work folder, so that a run that was stopped goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensmerge.demo.family import Say
from sensmerge.files import write_atomically


@dataclass(frozen=True)
class Stage:
    """What a stage took and gave.

    Attributes:
        name: Its name.
        wall: Seconds that passed.
        processor: Seconds of all processors together.
        result: What it gave, as JSON can hold it.
    """

    name: str
    wall: float
    processor: float
    result: Any


class Kept:
    """The stages of a run, in the order in which they were asked for.

    Attributes:
        stages: Those that were carried out or found so far.
    """

    def __init__(self, folder: Path, say: Say) -> None:
        """Keep results in ``folder/stages``.

        Args:
            folder: The work folder.
            say: Told of every stage.
        """
        self._folder = folder / "stages"
        self._say = say
        self.stages: list[Stage] = []

    def stage(
        self,
        name: str,
        settings: dict[str, Any],
        make: Callable[[], Any],
        output: Path | None = None,
    ) -> Any:
        """The result of a stage: the kept one where its settings are the same, else a new one.

        Args:
            name: The stage's name.
            settings: All that its result depends on, as JSON can hold it.
            make: Carries it out.
            output: What it writes beside its result; without it the kept result does not count.
        """
        path = self._folder / f"{name}.json"
        settings = json.loads(json.dumps(settings))
        done = None
        if path.is_file() and (output is None or output.exists()):
            done = json.loads(path.read_text(encoding="utf-8"))
        if done is None or done["settings"] != settings:
            self._say(f"{name} ...")
            wall, processor = time.monotonic(), time.process_time()
            result = json.loads(json.dumps(make()))
            done = {
                "settings": settings,
                "wall": time.monotonic() - wall,
                "processor": time.process_time() - processor,
                "result": result,
            }
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(done, indent=1, ensure_ascii=False) + "\n")
            self._say(f"{name}: {done['wall']:.0f} s, {done['processor']:.0f} s of processors")
        self.stages.append(Stage(name, done["wall"], done["processor"], done["result"]))
        return done["result"]
