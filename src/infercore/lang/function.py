"""`function`: the decorator that makes a Python function a program, and the ways to run it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from infercore.lang import ir
from infercore.lang.eager import run_eagerly
from infercore.lang.interpreter import DoneEvent, Run, TextEvent, run_programs, stream_program
from infercore.lang.passes import optimise
from infercore.lang.state import State
from infercore.lang.trace import trace, trace_with_parameters
from infercore.lang.types import Backend

Mode: TypeAlias = Literal["auto", "traced", "eager"]
"""How to run a function; "auto" traces it, and runs it op by op where it cannot be traced."""


class Function:
    """A program of prompts. Made by `function`.

    Called with a state, as another program does, it runs as a part of that program. `run`, `run_batch` and `stream` run
    it from an empty state; arguments are passed by name.
    """

    def __init__(self, body: Callable[..., Any]) -> None:
        parameters = list(inspect.signature(body).parameters.values())
        if not parameters:
            raise TypeError(
                f"{body.__name__}() takes no arguments, expected a state first: def {body.__name__}(s, ...)"
            )
        if any(p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY) for p in parameters[1:]):
            raise TypeError(f"{body.__name__}: arguments after the state must be passable by name")
        self.body = body
        self._signature = inspect.Signature(parameters[1:])
        functools.update_wrapper(self, body)
        self.name: str = body.__name__

    def __call__(self, state: Any, /, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(state, State):
            raise TypeError(
                f"{self.name} was called with a {type(state).__name__}, expected the state of a program; "
                f"to start it, use {self.name}.run(backend, ...)"
            )
        return self.body(state, *args, **kwargs)

    def trace(self, **arguments: Any) -> ir.Program:
        """The program for these arguments, before any optimisation. Raises TraceError where it cannot be traced.

        Text that the function only passes on stands in it as a parameter, so it is the same for other texts.
        """
        return trace_with_parameters(self.body, self.name, self._bound(arguments))[0]

    def run(
        self,
        backend: Backend,
        /,
        *,
        seed: int | None = None,
        mode: Mode = "auto",
        optimised: bool = True,
        **arguments: Any,
    ) -> Run:
        """Run once.

        Args:
            seed: makes sampled text repeatable, in every mode.
            optimised: apply the passes of `passes.py` to the traced program.
        Raises: ProgramError, beginning with the program's own line, if a generation fails; TraceError in mode "traced";
            TypeError for arguments that do not fit; whatever the function raises.
        """
        return self.run_batch(backend, [arguments], seed=seed, mode=mode, optimised=optimised)[0]

    def run_batch(
        self,
        backend: Backend,
        arguments: Sequence[Mapping[str, Any]],
        /,
        *,
        seed: int | None = None,
        mode: Mode = "auto",
        optimised: bool = True,
    ) -> list[Run]:
        """Run once per entry of `arguments`, all in one batch; run i draws with seed + i. Else as `run`."""
        bound = [self._bound(entry) for entry in arguments]
        seeds = [None if seed is None else seed + i for i in range(len(bound))]
        if not bound:
            return []
        if mode != "eager":
            try:
                programs = self._programs(bound, optimised=optimised)
            except Exception:  # not only TraceError: a stand-in may be refused by others, as by " ".join(...)
                if mode == "traced":
                    raise
            else:
                return run_programs(backend, programs, seeds=seeds)
        return run_eagerly(backend, self.body, bound, seeds=seeds)

    def stream(
        self, backend: Backend, /, *, seed: int | None = None, optimised: bool = True, **arguments: Any
    ) -> Iterator[TextEvent | DoneEvent]:
        """Run once, giving generated text as it comes and the run at the end. The program must be traceable.

        Leaving the loop early cancels what runs. Raises as `run` with mode "traced".
        """
        (program,) = self._programs([self._bound(arguments)], optimised=optimised)
        return stream_program(backend, program, seed=seed)

    def _bound(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            bound = self._signature.bind(**arguments)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}; it takes {self._signature}") from None
        bound.apply_defaults()
        flat: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                flat.update(value)
            else:
                flat[name] = value
        return flat

    def _programs(self, batch: Sequence[dict[str, Any]], *, optimised: bool) -> list[ir.Program]:
        """The program of each entry, its arguments constants in it.

        Nothing is shared between entries or kept from call to call: a function may look into an argument in ways that
        cannot be seen, and read globals that change; a trace costs a thousandth of a generation.
        """
        programs = [trace(self.body, self.name, arguments) for arguments in batch]
        return [optimise(program) for program in programs] if optimised else programs


def function(body: Callable[..., Any]) -> Function:
    """Make `body(s, ...)` a program: `s` is its state, the other parameters are passed by name when it runs.

    @function
    def capital(s, country):
        s += user("What is the capital of ", country, "?")
        s += assistant(gen("answer", stop="."))
        return s["answer"]

    capital.run(EngineBackend(engine), country="France").value
    """
    return Function(body)
