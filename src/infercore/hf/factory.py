"""From a caller's arguments to a request, and from a request to the state the engine runs."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from infercore.errors import RequestError
from infercore.hf.grammar_state import GrammarState, IntGrammarState, MatcherGrammarState
from infercore.hf.processors import keeps_state
from infercore.hf.request import Request, as_stop_strings
from infercore.hf.state import RequestState
from infercore.hf.stopping import Tokenizer
from infercore.sampling import SamplingParams
from infercore.speculative import Drafter
from infercore.typing import TokenIds, as_token_ids

Prompt = str | TokenIds | Tensor
"""Text (encoded by the engine's tokenizer), or token ids."""

_ids = count(1)  # of the requests of all engines: a drafter may serve several


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list of prompts."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Tensor | np.ndarray):
        return list(prompts) if prompts.ndim == 2 else [prompts]
    if len(prompts) and isinstance(prompts[0], int | np.integer):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def copy_of(request: Request, index: int) -> Request:
    """The i-th of several continuations of one prompt: it draws with the seed plus i."""
    return request if index == 0 or request.seed is None else replace(request, seed=request.seed + index)


class RequestFactory:
    """Knows the tokenizer, the end tokens, and the grammars that were bound so far."""

    def __init__(self, tokenizer: Tokenizer | None, generation_config: Any, vocab_size: int, vocabulary: Any) -> None:
        self.tokenizer = tokenizer
        self._generation_config = generation_config
        self._vocab_size = vocab_size
        self._vocabulary = vocabulary
        self._grammars: dict[Any, Any] = {}

    @property
    def vocabulary(self) -> Any:
        """`infercore.constrained.Vocabulary` of the tokenizer, made at the first grammar."""
        if self._vocabulary is None:
            if self.tokenizer is None:
                raise RequestError(
                    "a grammar needs the tokenizer's tokens; build the engine with one: Engine(model, tokenizer)"
                )
            from infercore.constrained import Vocabulary  # here: only requests with a grammar need that part

            self._vocabulary = Vocabulary.from_tokenizer(self.tokenizer, vocab_size=self._vocab_size)
        return self._vocabulary

    def encode(self, prompt: Prompt, *, add_special_tokens: bool) -> npt.NDArray[np.int32]:
        """Token ids of a prompt in any of its forms."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError("a text prompt needs a tokenizer; build the engine with one, or pass token ids")
            return np.asarray(self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens), np.int32)
        if isinstance(prompt, Tensor):
            prompt = prompt.detach().cpu().numpy()
        return as_token_ids(prompt, name="the prompt")

    def request(
        self,
        prompt: Prompt,
        max_new_tokens: int,
        sampling: SamplingParams,
        *,
        stop: str | Sequence[str] | None,
        grammar: Any,
        drafter: Drafter | None,
        options: dict[str, Any],
    ) -> Request:
        """A request; `options` are further fields of it. Raises TypeError for a name that is none."""
        known = sorted(set(Request.__dataclass_fields__) - {"prompt_ids", "sampling"})
        if unknown := sorted(set(options) - set(known)):
            raise TypeError(
                f"unknown argument {', '.join(unknown)}; known are temperature, top_k, top_p, min_p, "
                f"repetition_penalty, frequency_penalty, presence_penalty, {', '.join(known)}"
            )
        return Request(
            self.encode(prompt, add_special_tokens=True),
            max_new_tokens,
            sampling,
            stop=as_stop_strings(stop),
            grammar=grammar,
            drafter=drafter,
            **options,
        )

    def state(self, request: Request) -> RequestState:
        """A fresh state. What cannot go together is switched off here, with a note that the completion carries."""
        if request.stop and self.tokenizer is None:
            raise RequestError("stop strings need a tokenizer; build the engine with one: Engine(model, tokenizer)")
        notes: list[str] = []
        grammar = self._grammar_state(request.grammar, request.max_new_tokens)
        if isinstance(grammar, IntGrammarState) and grammar.budget is None:
            notes.append(
                f"the output may be cut off: the shortest one known takes {grammar.least} tokens, "
                f"max_new_tokens is {request.max_new_tokens}"
            )
        speculates = request.drafter is not None and request.max_draft_nodes > 0
        stateful = [p for p in request.logits_processors if keeps_state(p)]
        if stateful:
            name = type(stateful[0]).__name__
            if speculates:
                speculates = False
                notes.append(f"speculation off: {name} may keep state between calls (set keeps_state = False if not)")
            if grammar is not None and request.jump_forward:
                request = replace(request, jump_forward=False)
                notes.append(f"jump-forward off: {name} may keep state between calls")
        if grammar is not None and not grammar.supports_trees:
            if speculates:
                speculates = False
                notes.append(
                    "speculation off: a Matcher has no states for draft nodes; pass a Grammar or a GrammarSpec"
                )
            if request.return_scores and request.jump_forward:
                request = replace(request, jump_forward=False)
                notes.append("jump-forward off: a Matcher cannot give the scores of forced tokens")
        return RequestState(
            next(_ids),
            request,
            eos_token_ids=self._eos_token_ids(request),
            grammar=grammar,
            tokenizer=self.tokenizer,
            speculates=speculates,
            notes=tuple(notes),
        )

    def _grammar_state(self, grammar: Any, max_new_tokens: int) -> GrammarState | None:
        if grammar is None:
            return None
        if hasattr(grammar, "accept"):
            return MatcherGrammarState(grammar.fork())
        if hasattr(grammar, "bind"):
            if grammar not in self._grammars:
                self._grammars[grammar] = grammar.bind(self.vocabulary)
            grammar = self._grammars[grammar]
        if not hasattr(grammar, "advance"):
            raise TypeError(
                f"grammar is a {type(grammar).__name__}, expected what infercore.constrained.regex(), json_schema() or "
                "choices() return, a bound Grammar, or a Matcher"
            )
        return IntGrammarState(grammar, budget=max_new_tokens)

    def _eos_token_ids(self, request: Request) -> frozenset[int]:
        if request.eos_token_ids is not None:
            return frozenset(request.eos_token_ids)
        eos = self._generation_config.eos_token_id
        if eos is None:
            return frozenset()
        return frozenset([eos] if isinstance(eos, int) else eos)
