"""Runs traced programs, many at once: whatever is ready is handed to the backend, longest shared beginnings first.

Each state has a queue of operations. An operation waits for those before it in its state, for the variables that it
inserts, and (`join`) for other states. So generations that do not depend on each other run side by side without being
told to, in one program and across a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from infercore.errors import ProgramError
from infercore.lang.beginnings import common_beginning
from infercore.lang.ir import (
    Block,
    ForkOp,
    GenOp,
    Insert,
    JoinOp,
    Location,
    MarkOp,
    Op,
    Program,
    Return,
    SelectOp,
    Switch,
    Text,
    VarRef,
)
from infercore.lang.types import Backend, GenJob, GenResult, Job, Result, SelectJob, SelectResult, Transcript
from infercore.lang.values import resolve, seed_of


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run of a program.

    text: everything the first state holds, without what a chat template adds. messages: its turns, if it is a chat.
    variables: by name. value: what the function returned.
    """

    text: str
    messages: list[dict[str, str]]
    variables: Mapping[str, Any]
    value: Any = None

    def __getitem__(self, name: str) -> Any:
        return self.variables[name]


@dataclass(frozen=True, slots=True)
class TextEvent:
    """New text of a variable, while a program streams. `var` tells apart variables of one name, as forks have them."""

    name: str | None
    text: str
    var: int = 0


@dataclass(frozen=True, slots=True)
class DoneEvent:
    """The end of a streamed run."""

    run: Run


def run_programs(backend: Backend, programs: Sequence[Program], *, seeds: Sequence[int | None]) -> list[Run]:
    """Run every program, whose arguments are known (`passes.bind`); the runs stand in the same order.

    Raises: ValueError if a program has parameters left. ProgramError, beginning with the program's own line, for the
        first job that fails; the rest is cancelled.
    """
    processes = [Process(program, seed) for program, seed in zip(programs, seeds, strict=True)]
    for _ in _drive(backend, processes):
        pass
    return [process.result() for process in processes]


def stream_program(backend: Backend, program: Program, *, seed: int | None) -> Iterator[TextEvent | DoneEvent]:
    """Run one program; its generated text comes piece by piece, then the run. Leaving the loop cancels what runs."""
    process = Process(program, seed)
    shown: dict[int, int] = {}
    for running in _drive(backend, [process]):
        for ticket, (_, op) in running.items():
            text = backend.partial(ticket)
            if len(text) > (start := shown.get(op.var, 0)):
                shown[op.var] = len(text)
                yield TextEvent(op.name, text[start:], op.var)
        for op, text in process.take_finished():
            if len(text) > (start := shown.get(op.var, 0)):
                yield TextEvent(op.name, text[start:], op.var)
    yield DoneEvent(process.result())


def _drive(backend: Backend, processes: Sequence[Process]) -> Iterator[dict[int, tuple[Process, GenOp | SelectOp]]]:
    """Submit and step until every process is done; yields what runs, after each step."""
    running: dict[int, tuple[Process, GenOp | SelectOp]] = {}
    try:
        ready = [(process, op, job) for process in processes for op, job in process.advance()]
        while True:
            for process, op, job in by_shared_beginning(ready):
                with _at(op.where):
                    running[backend.submit(job)] = (process, op)
            ready = []
            if not running:
                return
            try:
                done = backend.step()
            except ProgramError:
                raise
            except Exception as error:
                wheres = sorted({str(op.where) for _, op in running.values()})
                raise ProgramError(f"{', '.join(wheres)}: {type(error).__name__}: {error}") from error
            for ticket, result in done.items():
                process, op = running.pop(ticket)
                with _at(op.where):
                    process.deliver(op, result)
                ready += [(process, next_op, job) for next_op, job in process.advance()]
            yield running
    finally:
        for ticket in running:
            backend.cancel(ticket)


@dataclass
class Process:
    """One run of a program: its states' transcripts and queues, and the variables so far."""

    program: Program
    seed: int | None = None
    values: dict[int, Any] = field(default_factory=dict)
    transcripts: dict[int, Transcript] = field(default_factory=lambda: {0: Transcript()})

    def __post_init__(self) -> None:
        if self.program.parameters:
            raise ValueError(
                f"program {self.program.name} still takes {', '.join(self.program.parameters)}; give them with "
                "passes.bind(program, arguments)"
            )
        self._queues: dict[int, deque[Op]] = {}
        self._waiting: set[int] = set()  # states whose generation runs
        self._outcomes: dict[int, str] = {}
        self._finished: list[tuple[GenOp | SelectOp, str]] = []
        self._switch: Switch | None = None
        self._end: Return | None = None
        self._enter(self.program.body)

    def advance(self) -> list[tuple[GenOp | SelectOp, Job]]:
        """Run everything that needs no backend; returns the jobs that became ready."""
        jobs: list[tuple[GenOp | SelectOp, Job]] = []
        progress = True
        while progress:
            progress = False
            for state in list(self._queues):
                queue = self._queues[state]
                while queue and state not in self._waiting and state in self.transcripts and self._is_ready(queue[0]):
                    op = queue.popleft()
                    progress = True
                    if isinstance(op, GenOp | SelectOp):
                        self._waiting.add(state)
                        jobs.append((op, self._job(op)))
                    else:
                        self._run(op)
            if self._switch is not None and self._switch.var in self._outcomes:
                cases = dict(self._switch.cases)
                self._enter(cases[self._outcomes[self._switch.var]])
                progress = True
        return jobs

    def deliver(self, op: GenOp | SelectOp, result: Result) -> None:
        """Take the result of a job of this process."""
        if isinstance(op, SelectOp):
            assert isinstance(result, SelectResult)
            text = op.choices[result.index]
            self._outcomes[op.var] = text
            self.values[op.var] = text
        else:
            assert isinstance(result, GenResult)
            text = result.text
            self.values[op.var] = parsed(op, result)
        self.transcripts[op.state] = self.transcripts[op.state].add(text)
        self._waiting.discard(op.state)
        self._finished.append((op, text))

    def take_finished(self) -> list[tuple[GenOp | SelectOp, str]]:
        """Variables that became known since the last call, with their text."""
        finished, self._finished = self._finished, []
        return finished

    def result(self) -> Run:
        assert self._end is not None, "the program is not at its end"
        variables = {name: resolve(value, self.values) for name, value in self._end.names}
        transcript = self.transcripts[0]
        value = resolve(self._end.value, self.values)
        return Run(transcript.text, transcript.messages(), variables, value)

    def _enter(self, block: Block) -> None:
        for op in block.ops:
            self._queues.setdefault(op.state, deque()).append(op)
        self._switch = block.end if isinstance(block.end, Switch) else None
        self._end = block.end if isinstance(block.end, Return) else None

    def _is_ready(self, op: Op) -> bool:
        match op:
            case Insert(source=VarRef(var=var)):
                return var in self.values
            case JoinOp():
                return not any(c in self._waiting or self._queues.get(c) for c in op.children)
        return True

    def _run(self, op: Op) -> None:
        transcript = self.transcripts[op.state]
        match op:
            case Text():
                self.transcripts[op.state] = transcript.add(op.text)
            case Insert(source=VarRef(var=var)):
                self.transcripts[op.state] = transcript.add(format(self.values[var]))
            case MarkOp():
                self.transcripts[op.state] = transcript.mark(op.role, begins=op.begins)
            case ForkOp():
                self.transcripts.update(dict.fromkeys(op.children, transcript))

    def _job(self, op: GenOp | SelectOp) -> Job:
        transcript = self.transcripts[op.state]
        if isinstance(op, SelectOp):
            return SelectJob(transcript, op.choices, op.method)
        return GenJob(transcript, op.options, seed_of(self.seed, op.var, is_greedy=op.options.temperature == 0))


def parsed(op: GenOp, result: GenResult) -> Any:
    """The value of a generation. Raises ProgramError if its text cannot be read, as when it was cut at `max_tokens`."""
    try:
        return op.parse(result.text)
    except Exception as error:
        why = "; it was cut at max_tokens, give it more" if result.finish_reason == "length" else ""
        raise ProgramError(
            f"{op.where}: gen({op.name!r}) gave {result.text!r}, which is no {op.kind}{why} ({type(error).__name__})"
        ) from error


def by_shared_beginning(
    ready: Sequence[tuple[Process, GenOp | SelectOp, Job]],
) -> list[tuple[Process, GenOp | SelectOp, Job]]:
    """Jobs that begin alike next to each other, those that share most first: the first computes for the rest."""
    if len(ready) < 2:
        return list(ready)
    texts = [entry[2].transcript.text for entry in ready]
    order = sorted(range(len(ready)), key=texts.__getitem__)
    shared = dict.fromkeys(range(len(ready)), 0)
    for a, b in pairwise(order):
        length = len(common_beginning([texts[a], texts[b]]))
        shared[a], shared[b] = max(shared[a], length), max(shared[b], length)
    position = {index: place for place, index in enumerate(order)}
    return [ready[i] for i in sorted(range(len(ready)), key=lambda i: (-shared[i], position[i]))]


class _at:
    """Errors inside become a ProgramError that begins with the program's line."""

    def __init__(self, where: Location | None) -> None:
        self.where = where

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, ProgramError):
            raise ProgramError(f"{self.where}: {type(error).__name__}: {error}") from error
