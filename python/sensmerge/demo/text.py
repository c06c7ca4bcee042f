"""Text for three skills: prose and code that come with every Python, and word problems.

Nothing is downloaded. Prose is Python's language reference (``pydoc_data.topics``) and the
docstrings of its standard library; code is that library's functions without their docstrings;
math is word problems from a seeded generator. Whole modules and topics go to one purpose only
(training, calibration, choosing, evaluation), and a text seen once is never used again, so no
held-back sample occurs in training.
"""

from __future__ import annotations

import ast
import hashlib
import os
import random
import re
import sysconfig
import textwrap
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from sensmerge import InputError

TASKS = ("prose", "math", "code")

# Optional parts, data in the shape of code, and copies of other libraries.
_SKIPPED = {
    "__pycache__",
    "_pyrepl",
    "dist-packages",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}


@dataclass(frozen=True)
class Sample:
    """A prompt and what should follow it; only the completion is scored."""

    prompt: str
    completion: str

    @property
    def text(self) -> str:
        """The prompt with its completion."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Amounts:
    """How much text a task gets: characters for training, samples for the rest."""

    training: int
    calibration: int
    development: int
    held_back: int


@dataclass(frozen=True)
class Corpus:
    """One task's text, in parts that share nothing.

    Attributes:
        training: What the models are trained on.
        calibration: What sensitivity and alignment are measured on.
        development: What the best scale is chosen on.
        held_back: What the table is computed on.
    """

    training: list[Sample]
    calibration: list[Sample]
    development: list[Sample]
    held_back: list[Sample]


def corpora(amounts: Amounts, seed: int) -> dict[str, Corpus]:
    """Collect the text of the three tasks, in the order of ``TASKS``.

    Raises:
        InputError: This Python comes without the source of its standard library.
    """
    prose, code = _Divider(amounts, seed), _Divider(amounts, seed)
    for name, samples in _topics(seed):
        prose.add(name, samples)
    for name, source in _modules(seed):
        if prose.full and code.full:
            break
        tree = _parse(source)
        if tree is not None:
            statements = list(_statements(tree))
            prose.add(name, _docstrings(statements))
            code.add(name, _functions(statements))
    math = _Divider(amounts, seed)
    for number, problems in enumerate(_problems(seed)):
        if math.full:
            break
        math.add(f"problems {number}", problems)
    return {
        "prose": prose.corpus("prose"),
        "math": math.corpus("math"),
        "code": code.corpus("code"),
    }


class _Divider:
    """Deals sources out to the four parts of a corpus and drops what was seen before."""

    def __init__(self, amounts: Amounts, seed: int) -> None:
        self._amounts = amounts
        self._seed = seed
        self._parts: dict[str, list[Sample]] = {
            "training": [],
            "calibration": [],
            "development": [],
            "held_back": [],
        }
        self._characters = 0
        self._seen: set[str] = set()

    @property
    def full(self) -> bool:
        return self._characters >= self._amounts.training and all(
            len(self._parts[part]) >= getattr(self._amounts, part)
            for part in ("calibration", "development", "held_back")
        )

    def add(self, source: str, samples: list[Sample]) -> None:
        part = self._part(source)
        for sample in samples:
            key = " ".join(sample.text.split())
            if key in self._seen:
                continue
            self._seen.add(key)
            if part != "training":
                self._parts[part].append(sample)
            elif self._characters < self._amounts.training:
                self._parts[part].append(sample)
                self._characters += len(sample.text)

    def _part(self, source: str) -> str:
        # A source's name decides, so that its docstrings and its functions go the same way.
        digest = hashlib.sha256(f"{self._seed} {source}".encode()).digest()
        share = digest[0] / 256
        if share < 0.08:
            return "calibration"
        if share < 0.14:
            return "development"
        return "held_back" if share < 0.24 else "training"

    def corpus(self, task: str) -> Corpus:
        shuffled = {}
        for part, samples in self._parts.items():
            wanted = max(1, len(samples)) if part == "training" else getattr(self._amounts, part)
            if len(samples) < wanted:
                raise InputError(
                    f"demo: this Python has too little text for '{task}' "
                    f"({_library()}); use one that has its standard library's source"
                )
            order = random.Random(f"{self._seed} {task} {part}")
            chosen = list(samples)
            order.shuffle(chosen)
            shuffled[part] = chosen[:wanted]
        return Corpus(**shuffled)


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _modules(seed: int) -> Iterator[tuple[str, str]]:
    library = _library()
    paths = []
    for folder, inner, files in os.walk(library):
        inner[:] = [name for name in inner if name not in _SKIPPED]  # not walked at all
        paths += [Path(folder, name) for name in files if name.endswith(".py")]
    paths.sort()
    random.Random(f"{seed} modules").shuffle(paths)
    for path in paths:
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        yield path.relative_to(library).as_posix(), source


def _topics(seed: int) -> Iterator[tuple[str, list[Sample]]]:
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError:  # left out by some distributions; the docstrings remain
        return
    names = sorted(topics)
    random.Random(f"{seed} topics").shuffle(names)
    for name in names:
        yield f"topic {name}", _passages(topics[name])


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError):  # templates that only look like modules
        return None


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and every statement in it, in the order of ``ast.walk``, but faster."""
    left = deque[ast.AST]([tree])
    while left:
        node = left.popleft()
        yield node
        for field in ("body", "handlers", "orelse", "finalbody", "cases"):
            left.extend(getattr(node, field, ()))


def _docstrings(statements: list[ast.AST]) -> list[Sample]:
    found = []
    for node in statements:
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            found += _passages(text)
    return found


def _passages(text: str) -> list[Sample]:
    """Prose paragraphs, each with its opening words as the prompt."""
    passages = []
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        flat = " ".join(words)
        letters = sum(character.isalpha() or character == " " for character in flat)
        # Paragraphs of running text: no tables, no listings, no examples at a prompt.
        if len(words) < 20 or len(flat) > 900 or letters < 0.88 * len(flat) or ">>>" in flat:
            continue
        opening = max(4, len(words) // 4)
        passages.append(Sample(" ".join(words[:opening]), " " + " ".join(words[opening:])))
    return passages


def _functions(statements: list[ast.AST]) -> list[Sample]:
    """Functions without their docstrings: signature as prompt, body as completion."""
    found = []
    for node in statements:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        if not body:
            continue
        lines = _unparsed(body, 1200)
        if lines is None or len(lines) < 60:
            continue
        node.body = [ast.Pass()]
        signature = ast.unparse(node).rsplit("\n", 1)[0]
        node.body = body
        if len(signature) <= 300:
            found.append(Sample(signature, "\n" + textwrap.indent(lines, "    ")))
    return found


def _unparsed(body: list[ast.stmt], longest: int) -> str | None:
    """The source of statements; None as soon as it is too long."""
    lines = ""
    for statement in body:
        lines += ("\n" if lines else "") + ast.unparse(statement)
        if len(lines) > longest:
            return None
    return lines


_NAMES = (
    *("Ada", "Ben", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana"),
    *("Ivo", "June", "Karl", "Lena", "Mira", "Noah", "Olga", "Paul"),
)
_THINGS = (
    *("apples", "books", "coins", "eggs", "keys", "lamps"),
    *("maps", "nails", "pears", "ropes", "shells", "stamps"),
)
_PLACES = ("box", "bag", "drawer", "basket", "crate", "jar")


def _problems(seed: int) -> Iterator[list[Sample]]:
    numbers = random.Random(f"{seed} problems")
    while True:
        yield [_problem(numbers) for _ in range(100)]


def _problem(numbers: random.Random) -> Sample:
    name, other = numbers.sample(_NAMES, 2)
    thing, place = numbers.choice(_THINGS), numbers.choice(_PLACES)
    first, second = numbers.randint(2, 9), numbers.randint(2, 9)
    small, large = sorted((first, second))
    factor, times = numbers.randint(2, 9), numbers.randint(2, 9)
    question, answer = numbers.choice(
        [
            (
                f"{name} has {first} {thing} and finds {second} more. "
                f"How many {thing} does {name} have now?",
                f"{first} + {second} = {first + second}",
            ),
            (
                f"{name} has {large} {thing} and gives {small} to {other}. "
                f"How many {thing} does {name} have left?",
                f"{large} - {small} = {large - small}",
            ),
            (
                f"There are {factor} {thing} in each {place}, and {name} has {times}. "
                f"How many {thing} is that?",
                f"{factor} * {times} = {factor * times}",
            ),
            (
                f"{name} shares {factor * times} {thing} among {times} friends. "
                f"How many {thing} does each one get?",
                f"{factor * times} / {times} = {factor}",
            ),
        ]
    )
    return Sample(f"Question: {question}\nAnswer:", f" {answer}")
