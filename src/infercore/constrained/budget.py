"""`Budgets`: masks that allow only what can still be finished with the tokens that are left.

A state's *plan* is a list of tokens that completes the output: its completion, cut into the longest tokens there are.
With n tokens left a token is allowed where the state behind it has a plan of at most n - 1. A plan's first token always
leads to a state whose plan is shorter, so once an output can be finished in time it will be. Inside a string of nearly
any text, where 100,000 tokens may follow, bounds stand for their plans; near the end fewer tokens are then allowed than
could be.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from infercore.constrained.completion import Completions
from infercore.constrained.loops import loops as c

if TYPE_CHECKING:
    from infercore.constrained.grammar import Grammar

NEVER = 1 << 30
"""Tokens to finish where no completion was found."""

_MARGIN = 4  # with uniqueItems the plan of a config is an estimate (an item may have come before), checked when close
_MANY = 3000  # tokens that are looked at one by one
_ESCAPE_TOKENS = 14  # tokens that finish what a token has begun at most: 3 bytes of a character, or \\uXXXX\\uXXXX


class _Ends(NamedTuple):
    """Where the tokens lead that a config allows."""

    token_ids: npt.NDArray[np.int64]  # those looked at one by one
    ends: npt.NDArray[np.int32]  # different configs behind them
    end_of: npt.NDArray[np.int64]  # of each token, index in `ends`
    string: tuple[int, int, int] | None  # the JSON string that all other tokens continue
    most_bytes: int  # completions behind any token are no longer than this


class _Needs(NamedTuple):
    """How many tokens finish the output behind each token that a state allows."""

    token_ids: npt.NDArray[np.int64]  # those looked at one by one
    needs: npt.NDArray[np.int64]
    clean: int  # bound for tokens of whole characters inside a string
    other: int  # bound for all other tokens inside a string
    most: int


class Budgets:
    """The plans of one grammar, and the masks that follow from them. Plans are found when asked for, and kept."""

    def __init__(self, grammar: "Grammar") -> None:
        self.grammar = grammar
        self.completions = Completions(grammar.machine)
        self._plans: dict[int, list[int] | None] = {}
        self._ends: dict[int, _Ends] = {}
        self._needs: dict[int, _Needs] = {}
        self._config_needs: dict[int, int] = {}

    def plan(self, state: int) -> list[int] | None:
        """Tokens that complete the output, the end token not counted; None where none were found."""
        if state in self._plans:
            return self._plans[state]
        text = self._text(state)
        plan = None if text is None else self._tokens(text)
        self._plans[state] = plan
        if plan:
            after = state
            for i, token_id in enumerate(plan, 1):
                after = self.grammar.advance(after, token_id)
                assert after >= 0, "a completion that the grammar refuses"
                known = self._plans.get(after)
                if known is None or len(known) > len(plan) - i:
                    self._plans[after] = plan[i:]
        return plan

    def min_tokens(self, state: int) -> int:
        """Length of the plan, `NEVER` where there is none."""
        plan = self.plan(state)
        return NEVER if plan is None else len(plan)

    def fits(self, state: int, budget: int) -> bool:
        """Whether the output can be finished in `budget` tokens. Where that is plain, nothing is cut into tokens."""
        text = self.completions.of_config(self.grammar.config(state))
        if text is not None and self._has_bytes and len(text) + self._margin <= budget:
            return True
        return self.min_tokens(state) <= budget

    @property
    def _has_bytes(self) -> bool:
        """Every byte is a token, so no text takes more tokens than it has bytes."""
        return self.grammar.vocabulary.has_all_bytes

    @property
    def _margin(self) -> int:
        return _MARGIN if self.grammar.machine.records_all else 0

    def restrict(self, state: int, budget: int, words: npt.NDArray[np.uint32]) -> None:
        """Clear in `words`, the mask of `state`, what cannot be finished in `budget` tokens.

        Where even the plan takes more, the mask is left as it is.
        """
        left, margin = budget - 1, self._margin
        if self._has_bytes and self._ends_of(state).most_bytes + margin <= left:
            return
        if self.min_tokens(state) > budget:
            return
        needs = self._needs_of(state)
        if left >= needs.most + margin:
            return
        vocabulary = self.grammar.vocabulary
        if left < needs.clean + margin:
            words &= ~vocabulary.clean_mask
        if left < needs.other + margin:
            words &= ~(vocabulary.body_mask & ~vocabulary.clean_mask)
        _clear(words, needs.token_ids[needs.needs > left])
        if margin:
            close = needs.token_ids[(needs.needs <= left) & (needs.needs + margin > left)]
            after = [self.grammar.advance(state, token_id) for token_id in close.tolist()]
            _clear(words, close[[s < 0 or self.min_tokens(s) > left for s in after]])
        plan = self.plan(state)
        if plan:
            words[plan[0] >> 5] |= np.uint32(1 << (plan[0] & 31))

    def _ends_of(self, state: int) -> _Ends:
        grammar, vocabulary, machine = self.grammar, self.grammar.vocabulary, self.grammar.machine
        config = grammar.config(state)
        found = self._ends.get(config)
        if found is not None:
            return found
        mask = grammar.mask(state) & ~vocabulary.eos_mask
        string = machine.string_at(config)
        most = 0
        if string is not None and int(np.bitwise_count(mask & vocabulary.body_mask).sum()) > _MANY:
            mask = mask & ~vocabulary.body_mask
            most = self._body_bytes(config, *string) + _ESCAPE_TOKENS
        else:
            string = None
        ids = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        ends, end_of = np.unique(grammar.ends(config, mask, closing=string is not None)[ids], return_inverse=True)
        for end in ends.tolist():
            text = self.completions.of_config(end)
            most = max(most, NEVER if text is None else len(text))
        found = self._ends[config] = _Ends(ids, ends, end_of, string, most)
        return found

    def _needs_of(self, state: int) -> _Needs:
        config = self.grammar.config(state)
        found = self._needs.get(config)
        if found is not None:
            return found
        ids, ends, end_of, string, _ = self._ends_of(state)
        clean = 0 if string is None else self._bound(state, config, *string)
        other = 0 if string is None else clean + _ESCAPE_TOKENS
        needs = np.array([self._min_tokens_of(end) for end in ends.tolist()], np.int64)[end_of]
        most = max(clean, other, int(needs.max(initial=0)))
        found = self._needs[config] = _Needs(ids, needs, clean, other, most)
        return found

    def _min_tokens_of(self, config: int) -> int:
        """Tokens that complete what `config` has read; `NEVER` where no completion was found."""
        known = self._config_needs.get(config)
        if known is None:
            text = self.completions.of_config(config)
            tokens = None if text is None else self._tokens(text)
            known = self._config_needs[config] = NEVER if tokens is None else len(tokens)
        return known

    def _bound(self, state: int, config: int, spec: int, text: int, count: int) -> int:
        """Tokens that finish the output at most, behind one that continues a JSON string."""
        machine = self.grammar.machine
        missing = max(int(machine.tables.specs[spec, c.MIN_LEN]) - count, 0)
        if text == machine.tables.header[c.ANY_CONFIG]:
            return self.min_tokens(state) + missing
        if int(machine.tables.specs[spec, c.CLOSE]) != c.KEY_DONE:
            return self.min_tokens(state) + missing + 4 * self.grammar.farthest(text)
        most = 0  # what a key opens may take long
        for ending in self.completions.after_keys(config):
            tokens = None if ending is None else self._tokens(ending)
            most = max(most, NEVER if tokens is None else len(tokens) + 1)
        return most

    def _body_bytes(self, config: int, spec: int, text: int, count: int) -> int:
        """Bytes that finish the output at most, behind a token of whole characters that continues a JSON string."""
        machine = self.grammar.machine
        if text != machine.tables.header[c.ANY_CONFIG] and int(machine.tables.specs[spec, c.CLOSE]) == c.KEY_DONE:
            return max(
                (NEVER if end is None else len(end) + 1 for end in self.completions.after_keys(config)), default=0
            )
        ending = self.completions.of_config(config)
        if ending is None:
            return NEVER
        missing = max(int(machine.tables.specs[spec, c.MIN_LEN]) - count, 0)
        any_text = text == machine.tables.header[c.ANY_CONFIG]
        return len(ending) + missing + (0 if any_text else 6 * self.grammar.farthest(text))

    def _text(self, state: int) -> bytes | None:
        """Bytes that complete the output, followed to their end: what is in the way by then is planned anew."""
        grammar = self.grammar
        written = b""
        for _ in range(64):
            text = self.completions.of_config(grammar.config(state))
            if text is None:
                return None
            after = grammar.advance_bytes(state, np.frombuffer(text, np.uint8))
            if after >= 0 and grammar.is_accepting(after):
                return written + text
            size = 0
            for byte in text:
                after = grammar.advance_bytes(state, np.array([byte], np.uint8))
                if after < 0:
                    break
                state = after
                size += 1
            if size == 0:
                return None
            written += text[:size]
        return None

    def _tokens(self, text: bytes) -> list[int] | None:
        """`text` as the longest tokens there are, from its start on; None where a byte is no token."""
        ids, longest = self.grammar.vocabulary.ids_by_bytes, min(self.grammar.vocabulary.max_token_size, 16)
        tokens = []
        at = 0
        while at < len(text):
            for size in range(min(longest, len(text) - at), 0, -1):
                token_id = ids.get(text[at : at + size])
                if token_id is not None:
                    break
            else:
                return None
            tokens.append(token_id)
            at += size
        return tokens


def _clear(words: npt.NDArray[np.uint32], token_ids: npt.NDArray[np.int64]) -> None:
    np.bitwise_and.at(words, token_ids >> 5, ~(np.uint32(1) << (token_ids & 31).astype(np.uint32)))
