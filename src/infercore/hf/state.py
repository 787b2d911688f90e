"""A request while it runs: its tokens, how far they are computed, its grammar, its draws, and when it ends."""

import time
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import torch

from infercore.hf.features import feature_observers, page_observers
from infercore.hf.grammar_state import GrammarState
from infercore.hf.request import FinishReason, Request, RequestStats, TokenLogprobs
from infercore.hf.stopping import StopStrings, Tokenizer, criterion_stops
from infercore.radix import Sequence
from infercore.speculative import TopTokenObserver


class RequestState:
    """Everything the engine knows of one request.

    `tokens[:num_tokens]` is prompt and output. The sequence's committed tokens, whose KV stands in the pool, are always
    a prefix of them; what is missing is pending, and between two steps the last token always is.
    """

    def __init__(
        self,
        request_id: int,
        request: Request,
        *,
        eos_token_ids: frozenset[int],
        grammar: GrammarState | None,
        tokenizer: Tokenizer | None,
        speculates: bool,
        notes: tuple[str, ...],
    ) -> None:
        self.request_id = request_id
        self.request = request
        self.num_prompt = len(request.prompt_ids)
        scored = request.completion_ids
        self.max_output = request.max_new_tokens if scored is None else len(scored)
        self.tokens = np.empty(self.num_prompt + self.max_output, np.int32)
        self.tokens[: self.num_prompt] = request.prompt_ids
        self.num_tokens = self.num_prompt
        if scored is not None:
            self.tokens[self.num_prompt :] = scored
            self.num_tokens += len(scored)
        self.num_told = self.num_tokens  # those that events have told of, or need not
        self.eos_token_ids = eos_token_ids
        self.grammar = grammar
        self.stop_strings = StopStrings(tokenizer, request.stop) if tokenizer is not None and request.stop else None
        self._ends_simply = grammar is None and self.stop_strings is None and not request.stopping_criteria
        self.speculates = speculates
        self.notes = notes
        drafter = request.drafter  # looked at once: to ask whether it observes takes 10 µs, ten times that in a step
        self.top_observer = drafter if speculates and isinstance(drafter, TopTokenObserver) else None
        self.feature_observers = feature_observers(drafter) if speculates else []
        self.page_observers = page_observers(self.feature_observers)
        self.generator, self.draft_generator = _generators(request)
        self.draws_on_host = False  # its distributions are too flat for the device
        self._undrawn: torch.Tensor | None = None
        self.sequence: Sequence | None = None
        self.source: int | None = None  # of a token that was chosen and not read yet: see `Rows.source`
        self.followers: list[RequestState] = []  # copies of the prompt that take this one's prefill by fork
        self.finish_reason: FinishReason | None = None if scored is None else "length"
        self.stop_string: str | None = None
        self.error: BaseException | None = None
        self.stats = RequestStats(num_prompt_tokens=self.num_prompt)
        self.submitted_at = time.perf_counter()
        self.logprobs: list[TokenLogprobs] = []
        self.logits: list[torch.Tensor] = []
        self.scores: list[torch.Tensor] = []
        self.num_recorded = 0  # output positions whose rows were kept
        self.pending_rows: list[tuple[torch.Tensor, torch.Tensor, int]] = []  # raw, scores, token: see keep_chosen
        self.grammar_log: list[int] | None = [] if request.return_scores and grammar is not None else None

    @property
    def num_output(self) -> int:
        return self.num_tokens - self.num_prompt

    @property
    def output_ids(self) -> npt.NDArray[np.int32]:
        return self.tokens[self.num_prompt : self.num_tokens]

    @property
    def remaining(self) -> int:
        """Tokens that may still be appended to those that are known."""
        return self.max_output - self.num_output

    @property
    def is_done(self) -> bool:
        """Finished, and every row that was asked for has been kept."""
        if self.finish_reason is None:
            return False
        return not self.request.keeps_rows or self.num_recorded >= self.num_output or self.error is not None

    def fail(self, error: BaseException) -> None:
        """End this request with an error; the engine gives its pages back after the step."""
        self.error, self.finish_reason = error, "error"

    def close_sequence(self, *, insert: bool = True) -> None:
        """Give its pages back, those that are whole to the prefix cache unless told not to."""
        assert self.sequence is not None
        try:
            if insert:
                for observer in self.page_observers:
                    observer.publish(self.request_id)
        finally:
            self.sequence.close(insert=insert)
            self.sequence = None

    @property
    def num_to_compute(self) -> int:
        """Rows of the causal chain that are still to run, all of the next steps together.

        A token that is not read yet counts, unless it will be the last one.
        """
        computed = self.sequence.num_tokens if self.sequence is not None else 0
        last = self.num_tokens if self.finish_reason is None else self.num_tokens - 1  # its own row predicts nothing
        if self.source is not None and self.remaining > 1:
            last += 1
        return last - computed

    @property
    def num_reusable(self) -> int:
        """How many leading tokens may come from the prefix cache: not the last, nor any whose row is to be kept."""
        if self.request.keeps_rows:
            return self.num_prompt - 1 + self.num_recorded
        return self.num_tokens - 1

    def append(self, token_ids: Seq[int], *, forced: bool = False) -> int:
        """Add output tokens until one of them ends the output; returns how many were added.

        Grammar, end tokens, stop strings, the caller's criteria and the length limit are asked after each one. Tokens
        that were sampled end as well where the grammar forces some and these are to be appended.
        """
        if self._ends_simply:
            return self._append_simply(token_ids)
        for count, token_id in enumerate(token_ids, 1):
            if self.grammar_log is not None and self.grammar is not None:
                self.grammar_log.append(self.grammar.state)
            self.tokens[self.num_tokens] = token_id
            self.num_tokens += 1
            if forced:
                self.stats.num_forced_tokens += 1
            if token_id in self.eos_token_ids:
                self.finish_reason = "eos"
            elif self.grammar is not None and not self.grammar.accept(token_id):
                raise AssertionError(f"token {token_id} was chosen although the grammar refuses it")
            elif self.stop_strings is not None and (found := self.stop_strings.found(self.output_ids)) is not None:
                self.finish_reason, self.stop_string = "stop", found
            elif self.request.stopping_criteria and criterion_stops(
                self.request.stopping_criteria, self.shown_ids(self.tokens[: self.num_tokens])
            ):
                self.finish_reason = "stop"
            elif self.num_output == self.max_output:
                self.finish_reason = "length"
            elif self.grammar is not None and not self.eos_token_ids and self.grammar.is_finished:
                self.finish_reason = "stop"
            if self.finish_reason is not None:
                return count
            if not forced and count < len(token_ids) and self._appends_forced and len(self._forced_tokens()):
                return count
        return len(token_ids)

    def _append_simply(self, token_ids: Seq[int]) -> int:
        """`append` where nothing but end tokens and the length can end the output."""
        count = min(len(token_ids), self.max_output - self.num_output)
        for i in range(count):
            if token_ids[i] in self.eos_token_ids:
                count, self.finish_reason = i + 1, "eos"
                break
        self.tokens[self.num_tokens : self.num_tokens + count] = token_ids[:count]
        self.num_tokens += count
        if self.num_output == self.max_output and self.finish_reason is None:
            self.finish_reason = "length"
        return count

    def append_forced(self) -> list[int]:
        """Add the tokens that the grammar forces next, if any, as output; returns those added."""
        added: list[int] = []
        if not self._appends_forced:
            return added
        while self.finish_reason is None:
            forced: list[int] = self._forced_tokens()[: self.remaining].tolist()
            if not forced:
                break
            added += forced[: self.append(forced, forced=True)]
        return added

    @property
    def _appends_forced(self) -> bool:
        return self.grammar is not None and self.request.jump_forward

    def _forced_tokens(self) -> npt.NDArray[np.int32]:
        assert self.grammar is not None
        return self.grammar.forced_tokens()

    def draw(self) -> float:
        """A number for its next token, which counts once `keep_draw` was called."""
        self._undrawn = self.generator.get_state()
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def keep_draw(self) -> None:
        """The token of the last draw was read."""
        self._undrawn = None

    def undraw(self) -> None:
        """Take a draw back whose token was not read: the next one gives the same number."""
        if self._undrawn is not None:
            self.generator.set_state(self._undrawn)
            self._undrawn = None

    def fill_known(self, bitmask: torch.Tensor, first_output: int) -> None:
        """The grammar's masks at output positions that stand already, from `first_output` on, one per row."""
        if self.grammar_log is not None and self.grammar is not None:
            self.grammar.fill_states(self.grammar_log[first_output : first_output + len(bitmask)], bitmask)

    def shown_ids(self, token_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """`token_ids` as the caller's processors and criteria expect them: behind the batch's left padding."""
        if not self.request.padding_ids:
            return token_ids
        return np.concatenate([np.asarray(self.request.padding_ids, np.int32), token_ids])


def _generators(request: Request) -> tuple[torch.Generator, torch.Generator]:
    """One for the target's draws, another for a drafter's, so that what is drafted does not shift what is drawn."""
    generators = torch.Generator(), torch.Generator()
    if not request.sampling.is_greedy:
        seed = request.seed if request.seed is not None else int(torch.randint(2**62, ()))
        for i, generator in enumerate(generators):
            generator.manual_seed(seed + i)
    return generators
