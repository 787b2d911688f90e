"""`Matcher`: a grammar state with mutable verbs, for a sampling loop that handles one sequence."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from infercore.constrained.bitmask import Bitmask
from infercore.constrained.grammar import Grammar


class GrammarMatcher:
    """Where one output stands in a grammar. A refused token changes nothing.

    Cost: `fork` and `rollback` copy a list of ints; the rest costs what the `Grammar` verb of that name does.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._states = [grammar.start]

    @property
    def state(self) -> int:
        return self._states[-1]

    def accept(self, token_id: int) -> bool:
        """Append a token to the output; False where the grammar refuses it."""
        state = self.grammar.advance(self._states[-1], token_id)
        if state < 0:
            return False
        self._states.append(state)
        return True

    def rollback(self, num_tokens: int) -> None:
        """Undo the last `num_tokens` accepted tokens. Raises: ValueError where there were fewer."""
        if not 0 <= num_tokens < len(self._states):
            raise ValueError(f"cannot roll back {num_tokens} tokens, {len(self._states) - 1} were accepted")
        del self._states[len(self._states) - num_tokens :]

    def fill_bitmask(self, bitmask: Bitmask) -> None:
        """Write the tokens that may come next into one row of a bitmask (int32, [words] or [1, words])."""
        row = bitmask if bitmask.ndim == 2 else bitmask[None]
        self.grammar.fill_bitmask([self._states[-1]], row)

    def forced_tokens(self) -> npt.NDArray[np.int32]:
        return self.grammar.forced_tokens(self._states[-1])

    @property
    def is_accepting(self) -> bool:
        return self.grammar.is_accepting(self._states[-1])

    @property
    def is_finished(self) -> bool:
        return self.grammar.is_finished(self._states[-1])

    def fork(self) -> "GrammarMatcher":
        """An independent matcher at the same place."""
        other = GrammarMatcher(self.grammar)
        other._states = list(self._states)
        return other


class Matcher(Protocol):
    """What the engine asks of a grammar of any origin.

    Laws: a refused token changes nothing; after `accept` of n tokens `rollback(n)` restores the mask; `fork` is
    independent; a token is accepted exactly where the mask allows it.
    """

    def accept(self, token_id: int) -> bool: ...
    def rollback(self, num_tokens: int) -> None: ...
    def fill_bitmask(self, bitmask: Bitmask) -> None: ...
    def forced_tokens(self) -> npt.NDArray[np.int32]: ...
    @property
    def is_finished(self) -> bool: ...
    def fork(self) -> "Matcher": ...
