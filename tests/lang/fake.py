"""A backend without a model, whose answers depend on the job alone, and random programs for it."""

import hashlib
import random
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from infercore.lang import Function, Job, function, gen, select, user
from infercore.lang.chat import plain
from infercore.lang.types import GenJob, GenResult, Result, SelectResult


class FakeBackend:
    """Answers with text made from a hash of the job, after a number of steps that differs from job to job."""

    def __init__(self, *, seed: int = 0, fails_on: str | None = None) -> None:
        self.random = random.Random(seed)
        self.fails_on = fails_on
        self.jobs: list[Job] = []
        self.most_at_once = 0
        self.running: dict[int, tuple[int, Job]] = {}

    def submit(self, job: Job) -> int:
        ticket = len(self.jobs)
        self.jobs.append(job)
        self.running[ticket] = (self.random.randrange(3), job)
        self.most_at_once = max(self.most_at_once, len(self.running))
        return ticket

    def step(self) -> Mapping[int, Result]:
        done: dict[int, Result] = {}
        for ticket, (left, job) in list(self.running.items()):
            if self.fails_on is not None and self.fails_on in plain(job.transcript):
                del self.running[ticket]
                raise RuntimeError("out of luck")
            if left:
                self.running[ticket] = (left - 1, job)
            else:
                del self.running[ticket]
                done[ticket] = answer(job)
        return done

    def partial(self, ticket: int) -> str:
        result = answer(self.running[ticket][1])
        return result.text[: len(result.text) // 2] if isinstance(result, GenResult) else ""

    def cancel(self, ticket: int) -> None:
        self.running.pop(ticket, None)


class RoundBackend(FakeBackend):
    """Every job takes one step; `rounds` counts the jobs of each."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[int] = []

    def step(self) -> Mapping[int, Result]:
        done = {ticket: answer(job) for ticket, (_, job) in self.running.items()}
        self.running.clear()
        self.rounds.append(len(done))
        return done


def answer(job: Job) -> Result:
    digest = hashlib.sha256(repr((plain(job.transcript), job)[0 if isinstance(job, GenJob) else 1]).encode()).digest()
    if isinstance(job, GenJob):
        if job.options.regex is not None:
            return GenResult(str(digest[0] % 100))
        if job.options.choices is not None:
            return GenResult(job.options.choices[digest[0] % len(job.options.choices)])
        tail = "" if job.seed is None else f"#{job.seed % 97}"
        return GenResult("".join("abc d"[b % 5] for b in digest[: 1 + digest[1] % 6]) + tail)
    return SelectResult(digest[0] % len(job.choices), tuple(float(b) for b in digest[: len(job.choices)]))


_TEXTS = st.sampled_from(["", "x", "Q: ", "\n", "same ", "same start", "same end"])
_NAMES = st.sampled_from(["a", "b", "c"])

_SIMPLE = st.one_of(
    st.tuples(st.just("text"), _TEXTS),
    st.tuples(st.just("argument"), st.sampled_from(["p", "q"])),
    st.tuples(st.just("gen"), _NAMES, st.sampled_from([0.0, 0.7])),
    st.tuples(st.just("number"), _NAMES),
    st.tuples(st.just("one of"), _NAMES, st.sampled_from([("yes",), ("yes", "no")])),
    st.tuples(st.just("select"), _NAMES, st.sampled_from([("yes", "no"), ("one",), ("red", "green", "blue")])),
    st.tuples(st.just("insert"), _NAMES),
    st.tuples(st.just("format"), _NAMES),
    st.tuples(st.just("turn"), _TEXTS),
    st.tuples(st.just("name"), _NAMES),
    st.tuples(st.just("name as text"), _NAMES),
    st.tuples(st.just("add"), _NAMES),
)
INSTRUCTIONS = st.recursive(
    st.lists(_SIMPLE, max_size=6),
    lambda inner: st.lists(
        _SIMPLE
        | st.tuples(st.just("fork"), st.lists(inner, min_size=1, max_size=3), st.booleans())
        | st.tuples(st.just("if"), _NAMES, inner, inner),
        max_size=6,
    ),
    max_leaves=8,
)
"""What a random program does; a "fork" may join, an "if" branches on a variable that `select` made."""


def program_of(instructions: Any) -> Function:
    """The instructions as a program with two arguments."""

    @function
    def random_program(s, p, q):
        run(s, instructions, {"p": p, "q": q}, selected=set())
        return [s[name] for name in ("a", "b", "c") if name in s]

    return random_program


def run(s, instructions, arguments, *, selected, numbers=()):
    """`selected` holds the names whose value is the outcome of a select: the only ones that may be branched on.

    `numbers` holds those whose value is no text, and cannot be added to it.
    """
    numbers = set(numbers)

    def is_one(name):  # a value, not a tuple of forks' values; asking with isinstance would be looking at it
        return name in s and type(s[name]) is not tuple

    for kind, *rest in instructions:
        if kind == "text":
            s += rest[0]
        elif kind == "argument":
            s += "<" + arguments[rest[0]] + ">"
        elif kind in ("gen", "number", "one of"):
            options = {
                "gen": lambda value: {"temperature": value},
                "number": lambda: {"dtype": int},
                "one of": lambda value: {"choices": value},
            }[kind](*rest[1:])
            s += gen(rest[0], **options)
            selected.discard(rest[0])
            (numbers.add if kind == "number" else numbers.discard)(rest[0])
        elif kind == "select":
            s += select(rest[0], rest[1])
            selected.add(rest[0])
            numbers.discard(rest[0])
        elif kind == "insert" and is_one(rest[0]):
            s += s[rest[0]]
        elif kind == "format" and is_one(rest[0]):
            s += f"[{s[rest[0]]}]"
        elif kind == "turn":
            s += user(rest[0], "!")
        elif kind == "name" and is_one(rest[0]):
            s["named"] = f"<{s[rest[0]]}>"
        elif kind == "name as text" and is_one(rest[0]):
            s["named"] = f"{s[rest[0]]}"
        elif kind == "add" and is_one(rest[0]) and rest[0] not in numbers:
            s["sum"] = "(" + s[rest[0]] + ")"
            s += s["sum"] + "."
        elif kind == "fork":
            children = s.fork(len(rest[0]))
            for child, body in zip(children, rest[0], strict=True):
                run(child, body, arguments, selected=set(selected), numbers=numbers)
            if rest[1]:
                s.join(children)
                selected.clear()
        elif kind == "if" and rest[0] in selected and rest[0] in s:
            run(s, rest[1] if s[rest[0]] in ("yes", "red") else rest[2], arguments, selected=selected, numbers=numbers)
