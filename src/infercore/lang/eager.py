"""Eager mode: the Python function runs op by op, and every `gen` and `select` is done when its line is.

Its values are plain Python values, so any control flow works. Programs of a batch run in a thread each, and one driver
steps the backend for all of them once each waits for a result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infercore.errors import ProgramError
from infercore.lang.interpreter import Run, parsed
from infercore.lang.ir import ArgRef, GenOp, Location, VarRef
from infercore.lang.location import caller
from infercore.lang.nodes import Gen, Select
from infercore.lang.state import State, checked_fork_count, common_names, unknown_name
from infercore.lang.types import Backend, GenJob, GenResult, Job, Result, Role, SelectJob, SelectResult, Transcript
from infercore.lang.values import seed_of

Call = Callable[[Job, Location | None], Result]
"""Runs one job and returns when it is done."""


def run_eagerly(
    backend: Backend, body: Callable[..., Any], arguments: Sequence[Mapping[str, Any]], *, seeds: Sequence[int | None]
) -> list[Run]:
    """Run `body` once per entry of `arguments`; the runs stand in the same order.

    Raises: what the function raises; ProgramError, beginning with the program's line, where a job fails.
    """
    if len(arguments) == 1:
        driver = _Driver(backend, 0)
        return [_run(body, arguments[0], seeds[0], driver.call_alone)]
    driver = _Driver(backend, len(arguments))
    runs: list[Run | None] = [None] * len(arguments)
    errors: list[BaseException] = []

    def work(i: int) -> None:
        try:
            runs[i] = _run(body, arguments[i], seeds[i], driver.call)
        except BaseException as error:
            errors.append(error)
        finally:
            driver.leave()

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(arguments))]
    for thread in threads:
        thread.start()
    driver.drive(lambda: bool(errors))
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, _Abandoned)), errors[0])
    return [run for run in runs if run is not None]


def _run(body: Callable[..., Any], arguments: Mapping[str, Any], seed: int | None, call: Call) -> Run:
    state = EagerState(_Shared(call, seed), Transcript(), {})
    value = body(state, **arguments)
    return Run(state.transcript.text, state.transcript.messages(), dict(state.names), value)


class _Shared:
    """What all states of one run share: how to call the backend, and the count of variables."""

    def __init__(self, call: Call, seed: int | None) -> None:
        self.call = call
        self.seed = seed
        self.num_vars = 0

    def new_var(self) -> int:
        self.num_vars += 1
        return self.num_vars - 1


class EagerState(State["EagerState"]):
    """A state whose variables are plain values."""

    def __init__(self, shared: _Shared, transcript: Transcript, names: dict[str, Any]) -> None:
        self._shared = shared
        self.transcript = transcript
        self.names = names
        self._own_names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise unknown_name(name, list(self.names))
        return self.names[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.names[name] = value
        self._own_names.add(name)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def fork(self, n: int) -> list[EagerState]:
        return [EagerState(self._shared, self.transcript, dict(self.names)) for _ in range(checked_fork_count(n))]

    def join(self, children: Sequence[EagerState]) -> None:
        for name in common_names([list(c._own_names) for c in children], list(children[0].names) if children else []):
            self[name] = tuple(c.names[name] for c in children)

    def _text(self, text: str) -> None:
        self.transcript = self.transcript.add(text)

    def _insert(self, source: VarRef | ArgRef) -> None:
        raise AssertionError(f"{source} in eager mode, where every value is known")

    def _gen(self, node: Gen) -> None:
        where, var = caller(), self._shared.new_var()
        seed = seed_of(self._shared.seed, var, is_greedy=node.options.temperature == 0)
        result = self._shared.call(GenJob(self.transcript, node.options, seed), where)
        assert isinstance(result, GenResult)
        value = parsed(GenOp(0, var, node.name, node.options, node.kind, node.parse, where), result)
        self._text(result.text)
        if node.name is not None:
            self[node.name] = value

    def _select(self, node: Select) -> None:
        self._shared.new_var()
        result = self._shared.call(SelectJob(self.transcript, node.choices, node.method), caller())
        assert isinstance(result, SelectResult)
        choice = node.choices[result.index]
        self._text(choice)
        if node.name is not None:
            self[node.name] = choice

    def _mark(self, role: Role, *, begins: bool) -> None:
        self.transcript = self.transcript.mark(role, begins=begins)


class _Abandoned(Exception):
    """Ends the thread of a program whose batch has failed."""


class _Driver:
    """Steps the backend for several threads. Only the driving thread touches the backend."""

    def __init__(self, backend: Backend, num_programs: int) -> None:
        self._backend = backend
        self._active = num_programs  # programs that neither wait nor are over
        self._alive = num_programs
        self._changed = threading.Condition()
        self._asked: list[tuple[Job, Location | None, dict[str, Any]]] = []
        self._running: dict[int, tuple[Location | None, dict[str, Any]]] = {}
        self._abandoned = False

    def call_alone(self, job: Job, where: Location | None) -> Result:
        """Run a job from the thread that owns the backend."""
        ticket = None
        try:
            ticket = self._backend.submit(job)
            while True:
                done = self._backend.step()
                if ticket in done:
                    result, ticket = done[ticket], None
                    return result
        except ProgramError:
            raise
        except Exception as error:
            raise ProgramError(f"{where}: {type(error).__name__}: {error}") from error
        finally:
            if ticket is not None:
                self._backend.cancel(ticket)

    def call(self, job: Job, where: Location | None) -> Result:
        """Run a job from a program's thread; blocks until the driver has its result."""
        slot: dict[str, Any] = {}
        with self._changed:
            self._asked.append((job, where, slot))
            self._active -= 1
            self._changed.notify_all()
            while not slot and not self._abandoned:
                self._changed.wait()
            if not slot:
                raise _Abandoned
        if "error" in slot:
            raise ProgramError(f"{where}: {type(slot['error']).__name__}: {slot['error']}") from slot["error"]
        return slot["result"]  # type: ignore[no-any-return]

    def leave(self) -> None:
        """A program is over."""
        with self._changed:
            self._active -= 1
            self._alive -= 1
            self._changed.notify_all()

    def drive(self, has_failed: Callable[[], bool]) -> None:
        """Serve the programs until all are over. After a failure, or an exception here, the others are abandoned."""
        try:
            while True:
                with self._changed:
                    while self._active > 0:
                        self._changed.wait()
                    asked, self._asked = self._asked, []
                    if has_failed() or self._alive == 0:
                        return
                for job, where, slot in asked:
                    try:
                        self._running[self._backend.submit(job)] = (where, slot)
                    except Exception as error:
                        self._answer(slot, error=error)
                if not self._running:
                    continue
                try:
                    done = self._backend.step()
                except Exception as error:
                    for ticket, (_, slot) in list(self._running.items()):
                        self._backend.cancel(ticket)
                        del self._running[ticket]
                        self._answer(slot, error=error)
                    continue
                for ticket, result in done.items():
                    self._answer(self._running.pop(ticket)[1], result=result)
        finally:
            for ticket in self._running:
                self._backend.cancel(ticket)
            with self._changed:
                self._abandoned = True
                self._changed.notify_all()

    def _answer(self, slot: dict[str, Any], **content: Any) -> None:
        with self._changed:
            slot.update(content)
            self._active += 1
            self._changed.notify_all()
