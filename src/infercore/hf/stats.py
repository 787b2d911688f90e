"""Counters of an engine since it was built, or since `reset`."""

from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from infercore.hf.request import RequestStats
from infercore.speculative import Acceptance, Drafter, TokenTree, Union


@dataclass(slots=True)
class EngineStats:
    """Sums over all requests. Times are in seconds, on the host's clock.

    `forward_time_s` is the model, `choose_time_s` the operations over `[rows, vocab]` tensors (masks, argmax, sampling,
    verification); what a step takes beyond both is the engine's own: scheduling, page tables, bookkeeping. On a GPU the
    first is the time to start a forward and its choice, the second the wait for it. `gap_time_s` is what lies
    between the moment a step's tokens were read and the launch of the next forward, where that had not been started
    before: a GPU has nothing to do meanwhile. It is part of the other times.
    """

    num_forwards: int = 0
    num_rows: int = 0
    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    num_host_tokens: int = 0
    num_output_tokens: int = 0
    num_forced_tokens: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    num_sampling_turns: int = 0
    num_preemptions: int = 0
    step_time_s: float = 0.0
    forward_time_s: float = 0.0
    choose_time_s: float = 0.0
    draft_time_s: float = 0.0
    gap_time_s: float = 0.0
    _acceptance: dict[tuple[str, ...], Acceptance] = field(default_factory=dict)

    @property
    def accept_length(self) -> float:
        """Tokens gained per sampled row of a request: 1.0 without speculation."""
        return 1 + self.num_accepted_tokens / max(1, self.num_sampling_turns)

    @property
    def overhead_s(self) -> float:
        """Host time of all steps outside the forward, the drafters and the choice of tokens."""
        return self.step_time_s - self.forward_time_s - self.choose_time_s - self.draft_time_s

    @property
    def acceptance(self) -> dict[str, list[tuple[int, int]]]:
        """Per drafter, by the name of its class, and depth from 1: draft tokens verified, draft tokens accepted.

        The parts of a `Union` count one by one; a path that two of them proposed belongs to the one that gave it the
        higher score.
        """
        table: dict[str, list[tuple[int, int]]] = {}
        for names, counts in self._acceptance.items():
            for source, rows in counts.table().items():
                name = names[min(source, len(names) - 1)]
                before = table.get(name, [])
                longest = max(len(before), len(rows))
                padded = [[*some, *[(0, 0)] * (longest - len(some))] for some in (before, rows)]
                table[name] = [(a + c, b + d) for (a, b), (c, d) in zip(*padded, strict=True)]
        return table

    def add_draft(self, drafter: Drafter, tree: TokenTree, path: npt.NDArray[np.int32]) -> None:
        """Count a tree that was verified and the accepted nodes of it that were kept."""
        parts = drafter.drafters if isinstance(drafter, Union) else (drafter,)
        names = tuple(type(part).__name__ for part in parts)
        counts = self._acceptance.get(names)
        if counts is None:
            counts = self._acceptance[names] = Acceptance()
        counts.count(tree, path)

    def add_request(self, stats: RequestStats, num_output_tokens: int) -> None:
        """Count a finished request."""
        self.num_requests += 1
        self.num_prompt_tokens += stats.num_prompt_tokens
        self.num_reused_tokens += stats.num_reused_tokens
        self.num_host_tokens += stats.num_host_tokens
        self.num_output_tokens += num_output_tokens
        self.num_forced_tokens += stats.num_forced_tokens
        self.num_drafted_tokens += stats.num_drafted_tokens
        self.num_accepted_tokens += stats.num_accepted_tokens
        self.num_sampling_turns += stats.num_sampling_forwards
        self.num_preemptions += stats.num_preemptions

    def reset(self) -> None:
        """Start counting anew."""
        for f in fields(self):
            setattr(self, f.name, {} if f.name == "_acceptance" else f.default)

    def as_dict(self) -> dict[str, int | float]:
        """All counters and the derived figures, for logs; `acceptance` is a table of its own."""
        counters = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "_acceptance"}
        return {**counters, "accept_length": self.accept_length, "overhead_s": self.overhead_s}
