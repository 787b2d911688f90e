"""`GrammarProcessor`: a grammar in plain `model.generate`, for models and modes that the engine does not serve."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import LogitsProcessor

from infercore.kernels import apply_token_bitmask_


class GrammarProcessor(LogitsProcessor):  # type: ignore[misc]
    """Masks every row's scores to the tokens its grammar allows: any model, any batch size, beams too.

        processor = GrammarProcessor(json_schema(Person).bind(Vocabulary.from_tokenizer(tokenizer)))
        model.generate(**inputs, num_beams=3, logits_processor=[processor])

    The grammar starts where the prompt ends, that is at the length of the ids of the first call after `reset`. A row's
    state is found from its ids, so rows may be reordered, repeated or dropped between calls, as beam search does.

    Args:
        grammar: a bound `infercore.constrained.Grammar`.
        max_new_tokens: as given to `generate`; only what can be finished in so many tokens is then allowed, so that the
            output is whole. None: no such bound.
    Cost: a mask a row; states of earlier tokens are remembered, one int each.
    """

    keeps_state = False

    def __init__(self, grammar: Any, *, max_new_tokens: int | None = None) -> None:
        if not hasattr(grammar, "advance"):
            raise TypeError(
                f"grammar is a {type(grammar).__name__}, expected a bound Grammar; call .bind(vocabulary) on it first"
            )
        self.grammar = grammar
        self.max_new_tokens = max_new_tokens
        self.reset()

    def reset(self) -> None:
        """Forget the prompt length, before the processor is used in another `generate`."""
        self._prompt_length: int | None = None
        self._states: dict[tuple[int, ...], int] = {}

    def __call__(
        self, input_ids: Int64[Tensor, "rows length"], scores: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows vocab"]:
        """Scores with -inf for tokens that the grammar refuses. A row that has ended keeps its scores.

        Raises: ValueError if the grammar's vocabulary and the scores differ in size.
        """
        vocab_size = self.grammar.vocabulary.vocab_size
        if scores.shape[1] != vocab_size:
            raise ValueError(
                f"scores have {scores.shape[1]} entries a row, but the grammar's vocabulary has {vocab_size}; "
                f"build it with Vocabulary.from_tokenizer(tokenizer, vocab_size={scores.shape[1]})"
            )
        if self._prompt_length is None or input_ids.shape[1] < self._prompt_length:
            self.reset()
            self._prompt_length = input_ids.shape[1]
        states = [self._state(tuple(row)) for row in input_ids[:, self._prompt_length :].tolist()]
        written = input_ids.shape[1] - self._prompt_length
        budgets = None if self.max_new_tokens is None else [self.max_new_tokens - written]
        bitmask = torch.full((len(states), (vocab_size + 31) // 32), -1, dtype=torch.int32)
        for row, state in enumerate(states):
            if state >= 0:
                self.grammar.fill_bitmask([state], bitmask[row : row + 1], budgets=budgets)
        return apply_token_bitmask_(scores.clone(), bitmask.to(scores.device))

    def _state(self, output: tuple[int, ...]) -> int:
        """State after `output`; -1 once it has ended (what follows is padding) or was refused (a beam of no weight)."""
        if not output:
            return int(self.grammar.start)
        state = self._states.get(output)
        if state is None:
            before = self._state(output[:-1])
            ended = output[-1] in self.grammar.vocabulary.eos_token_ids
            state = -1 if before < 0 or ended else int(self.grammar.advance(before, output[-1]))
            self._states[output] = state
        return state
