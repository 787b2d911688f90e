"""What the language hands to a backend and gets back: transcripts, jobs, results, and the Protocol between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

Role: TypeAlias = Literal["system", "user", "assistant"]
SelectMethod: TypeAlias = Literal["token_length", "greedy", "unconditional"]
"""How `select` compares choices; see `scoring.py`."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a chat turn begins or ends."""

    role: Role
    begins: bool


@dataclass(frozen=True, slots=True)
class Transcript:
    """Everything a state holds so far: pieces of text and marks of turns. Immutable, so that forks share it."""

    items: tuple[str | Mark, ...] = ()

    def add(self, text: str) -> Transcript:
        """With `text` at the end; two texts in a row are one."""
        if not text:
            return self
        if self.items and isinstance(last := self.items[-1], str):
            return Transcript((*self.items[:-1], last + text))
        return Transcript((*self.items, text))

    def mark(self, role: Role, *, begins: bool) -> Transcript:
        return Transcript((*self.items, Mark(role, begins)))

    @property
    def has_roles(self) -> bool:
        return any(isinstance(item, Mark) for item in self.items)

    @property
    def text(self) -> str:
        """The text alone, without what a chat template would put around turns."""
        return "".join(item for item in self.items if isinstance(item, str))

    def messages(self) -> list[dict[str, str]]:
        """Turns as chat messages; the last may still be open. Text outside of turns is left out."""
        messages: list[dict[str, str]] = []
        is_open = False
        for item in self.items:
            if isinstance(item, str):
                if is_open:
                    messages[-1]["content"] += item
            else:
                is_open = item.begins
                if item.begins:
                    messages.append({"role": item.role, "content": ""})
        return messages

    @property
    def open_role(self) -> Role | None:
        """The role of the turn that is open at the end, if one is."""
        for item in reversed(self.items):
            if isinstance(item, Mark):
                return item.role if item.begins else None
        return None


@dataclass(frozen=True, slots=True)
class GenOptions:
    """How to generate: limits, sampling, and at most one constraint.

    schema: a JSON Schema as canonical JSON text, so that options can be compared and hashed.
    """

    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    regex: str | None = None
    schema: str | None = None
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class GenJob:
    """Continue a transcript. `seed` is None where nothing is drawn."""

    transcript: Transcript
    options: GenOptions
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class SelectJob:
    """Pick one of several continuations of a transcript."""

    transcript: Transcript
    choices: tuple[str, ...]
    method: SelectMethod = "token_length"


Job: TypeAlias = GenJob | SelectJob


@dataclass(frozen=True, slots=True)
class GenResult:
    """Generated text, cut before the stop string that ended it."""

    text: str
    finish_reason: str = "stop"


@dataclass(frozen=True, slots=True)
class SelectResult:
    """Which choice, and the score of each (higher is better)."""

    index: int
    scores: tuple[float, ...] = field(default=())


Result: TypeAlias = GenResult | SelectResult


@runtime_checkable
class Backend(Protocol):
    """Runs jobs, many at a time.

    Laws: a job's result depends on the job alone, not on what runs beside it; every submitted ticket is given by
    exactly one later `step`, unless it was cancelled; a failed `submit` or `step` loses no other ticket.
    """

    def submit(self, job: Job) -> int:
        """Queue a job; returns its ticket."""
        ...

    def step(self) -> Mapping[int, Result]:
        """Move all jobs on a little; returns those that finished. Blocks for at most one forward or one response."""
        ...

    def partial(self, ticket: int) -> str:
        """The text that an unfinished generation has so far; "" where that is not known."""
        ...

    def cancel(self, ticket: int) -> None:
        """Forget a job; cancelling one that is finished or unknown does nothing."""
        ...
