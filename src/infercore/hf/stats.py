"""Counters of an engine since it was built, or since `reset`."""

from dataclasses import asdict, dataclass, fields

from infercore.hf.request import RequestStats


@dataclass(slots=True)
class EngineStats:
    """Sums over all requests. Times are in seconds, on the host's clock.

    `forward_time_s` is the model, `choose_time_s` the operations over `[rows, vocab]` tensors (masks, argmax, sampling,
    verification); what a step takes beyond both is the engine's own: scheduling, page tables, bookkeeping.
    """

    num_forwards: int = 0
    num_rows: int = 0
    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
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

    @property
    def accept_length(self) -> float:
        """Tokens gained per sampled row of a request: 1.0 without speculation."""
        return 1 + self.num_accepted_tokens / max(1, self.num_sampling_turns)

    @property
    def overhead_s(self) -> float:
        """Host time of all steps outside the forward, the drafters and the choice of tokens."""
        return self.step_time_s - self.forward_time_s - self.choose_time_s - self.draft_time_s

    def add_request(self, stats: RequestStats, num_output_tokens: int) -> None:
        """Count a finished request."""
        self.num_requests += 1
        self.num_prompt_tokens += stats.num_prompt_tokens
        self.num_reused_tokens += stats.num_reused_tokens
        self.num_output_tokens += num_output_tokens
        self.num_forced_tokens += stats.num_forced_tokens
        self.num_drafted_tokens += stats.num_drafted_tokens
        self.num_accepted_tokens += stats.num_accepted_tokens
        self.num_sampling_turns += stats.num_sampling_forwards
        self.num_preemptions += stats.num_preemptions

    def reset(self) -> None:
        """Start counting anew."""
        for f in fields(self):
            setattr(self, f.name, f.default)

    def as_dict(self) -> dict[str, int | float]:
        """All counters and the derived figures, for logs."""
        return {**asdict(self), "accept_length": self.accept_length, "overhead_s": self.overhead_s}
