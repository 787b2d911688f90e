"""What a caller asks of the engine, what comes back, and the events in between."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from infercore.errors import RequestError
from infercore.sampling import SamplingParams
from infercore.speculative import Drafter
from infercore.typing import TokenIds, as_token_ids

FinishReason = Literal["eos", "stop", "length", "cancelled", "error"]

LogitsProcessor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Hugging Face's signature: token ids `[1, n]`, scores `[1, vocab]` -> scores."""

StoppingCriterion = Callable[[torch.Tensor, Any], Any]
"""Hugging Face's signature: token ids `[1, n]`, scores or None -> true to stop."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to continue it.

    Args:
        prompt_ids: the prompt's token ids, at least one.
        max_new_tokens: length limit of the output, forced tokens included; at least 1.
        sampling: temperature and the like; greedy by default.
        seed: makes this request's draws repeatable whatever its batch mates; None draws one from torch's global state.
        grammar: a `GrammarSpec`, a `Grammar` or a `Matcher`: which tokens may come.
        drafter: proposes draft trees; None for none. Output never depends on it.
        max_draft_nodes: nodes a draft tree may have.
        jump_forward: append tokens that the grammar forces without sampling them.
        eos_token_ids: tokens that end the output; None takes the model's. () ignores them.
        stop: strings that end the output when the decoded text contains one.
        logprobs: None for none, else log probabilities of each output token and of the k best (0: only its own).
        return_logits, return_scores: keep `[num_output, vocab]` float32 rows, as the model gave or as sampled from.
        logits_processors: Hugging Face processors, applied between penalties and grammar, to every draft node as well.
        stopping_criteria: Hugging Face criteria, asked after every token.
        namespace: separates prefixes that must not share KV (an adapter, a tenant).
        completion_ids: score these tokens instead of generating any.
        padding_ids: shown to processors and criteria in front of the prompt, as `generate` shows its left padding.
    """

    prompt_ids: npt.NDArray[np.int32]
    max_new_tokens: int = 256
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int | None = None
    grammar: Any = None
    drafter: Drafter | None = None
    max_draft_nodes: int = 16
    jump_forward: bool = True
    eos_token_ids: tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    return_logits: bool = False
    return_scores: bool = False
    logits_processors: tuple[LogitsProcessor, ...] = ()
    stopping_criteria: tuple[StoppingCriterion, ...] = ()
    namespace: Any = None
    completion_ids: npt.NDArray[np.int32] | None = None
    padding_ids: tuple[int, ...] = ()

    @property
    def keeps_rows(self) -> bool:
        """Every output position's logits are wanted, so forced tokens need their rows too."""
        return self.logprobs is not None or self.return_logits or self.return_scores


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of one output position: the chosen token's log probability, and the k best as `(token_id, logprob)`, best first.

    They are the model's own (before temperature, penalties, grammar).
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class RequestStats:
    """Counts of one request; `accept_length` is tokens gained per forward that sampled for it.

    `num_host_tokens` came back from host memory, at its start or after a preemption.
    """

    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    num_host_tokens: int = 0
    num_forced_tokens: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    num_forwards: int = 0
    num_sampling_forwards: int = 0
    num_preemptions: int = 0
    time_to_first_token_s: float = 0.0
    total_time_s: float = 0.0

    @property
    def accept_length(self) -> float:
        """1 + accepted draft tokens per sampling forward; 1.0 without speculation."""
        return 1 + self.num_accepted_tokens / max(1, self.num_sampling_forwards)

    def time_per_token_s(self, num_output_tokens: int) -> float:
        """Mean time between output tokens after the first."""
        return (self.total_time_s - self.time_to_first_token_s) / max(1, num_output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request.

    Args:
        token_ids: the output; an eos or the tokens of a stop string are its last.
        text: decoded without special tokens, cut before the stop string; "" where the engine has no tokenizer.
        finish_reason: "eos", "stop" (a stop string or criterion), "length", "cancelled" or "error".
        stop_string: which one ended it, if any.
        logprobs, logits, scores: one entry per output token where asked for.
        notes: what the engine did differently from what was asked, in words (speculation turned off, say).
    """

    request_id: int
    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    stats: RequestStats
    stop_string: str | None = None
    logprobs: list[TokenLogprobs] | None = None
    logits: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    notes: tuple[str, ...] = ()
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """Log probabilities of a completion's tokens under the model, in order."""

    token_ids: list[int]
    logprobs: list[float]

    @property
    def total(self) -> float:
        """Log probability of the whole completion."""
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """Tokens that one step added to a request: sampled, accepted from a draft and forced alike."""

    request_id: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """A request's end, whatever its reason."""

    request_id: int
    completion: Completion


Event = TokenEvent | FinishEvent


def as_stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """A caller's `stop` argument as a tuple."""
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def checked_request(request: Request, *, vocab_size: int, capacity_tokens: int, max_positions: int | None) -> Request:
    """`request` with its ids as int32 arrays; RequestError, naming what to change, if it can never run."""
    prompt = _checked_ids(request.prompt_ids, "the prompt", vocab_size)
    completion = request.completion_ids
    if len(prompt) == 0:
        raise RequestError(
            "the prompt is empty, expected at least one token; pass the tokenizer's bos token to start from nothing"
        )
    if request.max_new_tokens < 1:
        raise RequestError(
            f"max_new_tokens is {request.max_new_tokens}, expected at least 1; use engine.score to score a text"
        )
    if request.max_draft_nodes < 0:
        raise RequestError(f"max_draft_nodes is {request.max_draft_nodes}, expected 0 or more")
    if request.logprobs is not None and not 0 <= request.logprobs <= vocab_size:
        raise RequestError(f"logprobs is {request.logprobs}, expected 0 to {vocab_size} or None")
    if any(not s for s in request.stop):
        raise RequestError("stop holds an empty string, which would end every output; remove it")
    new_tokens = request.max_new_tokens if completion is None else len(completion)
    needed = len(prompt) + new_tokens
    if needed > capacity_tokens:
        raise RequestError(
            f"prompt ({len(prompt)} tokens) and output ({new_tokens}) need {needed} slots, but the KV pool holds "
            f"{capacity_tokens}; shorten the prompt, lower max_new_tokens, or build the engine with more num_pages"
        )
    if max_positions is not None and needed > max_positions:
        raise RequestError(
            f"prompt ({len(prompt)} tokens) and output ({new_tokens}) reach position {needed}, but the model knows "
            f"{max_positions}; shorten the prompt or lower max_new_tokens"
        )
    if completion is not None:
        completion = _checked_ids(completion, "the completion", vocab_size)
        if len(completion) == 0:
            raise RequestError("the completion to score is empty, expected at least one token")
    return replace(request, prompt_ids=prompt, completion_ids=completion)


def _checked_ids(token_ids: TokenIds, name: str, vocab_size: int) -> npt.NDArray[np.int32]:
    ids = as_token_ids(token_ids, name=name)
    if len(ids) and (ids.max() >= vocab_size or ids.min() < 0):
        raise RequestError(
            f"{name} holds token id {int(ids.max())}, but the model's vocabulary has {vocab_size}; "
            "was it encoded with another model's tokenizer?"
        )
    return ids
