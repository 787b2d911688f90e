"""Where a request stands in its grammar: one interface over int states (ours) and mutable matchers (anyone's)."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from infercore.speculative import TokenTree


@runtime_checkable
class GrammarState(Protocol):
    """The grammar of one request, after its output so far."""

    @property
    def state(self) -> int:
        """An int that stands for the output so far; -1 where there is none."""
        ...

    @property
    def supports_trees(self) -> bool:
        """Masks for the nodes of a draft tree can be had."""
        ...

    def accept(self, token_id: int) -> bool: ...
    def forced_tokens(self) -> npt.NDArray[np.int32]: ...
    @property
    def is_finished(self) -> bool:
        """The output is complete and nothing may follow but an end token."""
        ...

    def walk(self, tree: TokenTree) -> npt.NDArray[np.int64]:
        """State after each node of `tree`, -1 where the node or an ancestor is refused."""
        ...

    def forces(self, tree: TokenTree) -> npt.NDArray[np.bool_]:
        """Whether tokens are forced after each node of `tree`, which carries the states of `walk`."""
        ...

    def fill(self, tree: TokenTree, bitmask: Tensor) -> None:
        """Allowed tokens: first row of `bitmask` after the output, then one per node of `tree` (refused ones: all).

        `tree` carries the states of `walk`, unless it is empty.
        """
        ...

    def fill_states(self, states: list[int], bitmask: Tensor) -> None:
        """Allowed tokens in earlier states of this output, one per row."""
        ...


class IntGrammarState:
    """Over `infercore.constrained.Grammar`: a state is an int, so a tree of states costs nothing.

    Args:
        budget: tokens that the output may have; only what can be finished in so many is then allowed. None, or fewer
            than any output takes: no such bound.
    """

    supports_trees = True

    def __init__(self, grammar: Any, *, budget: int | None = None) -> None:
        self.grammar = grammar
        self.state: int = grammar.start
        self.least = 0  # tokens that the shortest known output takes
        if budget is not None:
            self.least = int(grammar.min_tokens(grammar.start))
            if self.least > budget:
                budget = None
        self.budget = budget

    def accept(self, token_id: int) -> bool:
        state = self.grammar.advance(self.state, token_id)
        if state < 0:
            return False
        self.state = state
        if self.budget is not None:
            self.budget -= 1
        return True

    def forced_tokens(self) -> npt.NDArray[np.int32]:
        """None, too, where the canonical tokens of forced text would take more than the budget has."""
        forced: npt.NDArray[np.int32] = self.grammar.forced_tokens(self.state)
        if self.budget is None or not forced.size or int(forced[-1]) in self.grammar.vocabulary.eos_token_ids:
            return forced
        after = self.state
        for token_id in forced.tolist():
            after = self.grammar.advance(after, token_id)
        if not self.grammar.fits(after, self.budget - len(forced)):
            return np.empty(0, np.int32)
        return forced

    @property
    def is_finished(self) -> bool:
        return bool(self.grammar.is_finished(self.state))

    def walk(self, tree: TokenTree) -> npt.NDArray[np.int64]:
        advance = self.grammar.advance
        states = np.empty(tree.num_nodes, np.int64)
        taken = tree.depths - 1  # tokens of the budget that stand before a node
        for node, (token_id, parent) in enumerate(zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True)):
            before = self.state if parent < 0 else int(states[parent])
            after = advance(before, token_id) if before >= 0 else -1
            if after >= 0 and self.budget is not None:
                left = self.budget - int(taken[node])
                bitmask = np.empty((1, self.grammar.vocabulary.num_words), np.int32)
                self.grammar.fill_bitmask([before], bitmask, budgets=[left])
                if not bitmask[0, token_id >> 5] >> (token_id & 31) & 1:
                    after = -1
            states[node] = after
        return states

    def forces(self, tree: TokenTree) -> npt.NDArray[np.bool_]:
        forced_tokens = self.grammar.forced_tokens
        return np.array([s >= 0 and len(forced_tokens(s)) > 0 for s in _states(tree).tolist()], np.bool_)

    def fill(self, tree: TokenTree, bitmask: Tensor) -> None:
        node_states = _states(tree)
        states = [self.state, *node_states.tolist()]
        budgets = None
        if self.budget is not None:
            budgets = [self.budget, *(self.budget - tree.depths).tolist()]
        if (node_states < 0).any():
            bitmask[1:].fill_(-1)
            for row in (0, *(np.flatnonzero(node_states >= 0) + 1).tolist()):
                budget = None if budgets is None else [budgets[row]]
                self.grammar.fill_bitmask([states[row]], bitmask[row : row + 1], budgets=budget)
        else:
            self.grammar.fill_bitmask(states, bitmask, budgets=budgets)

    def fill_states(self, states: list[int], bitmask: Tensor) -> None:
        self.grammar.fill_bitmask(states, bitmask)


class MatcherGrammarState:
    """Over a `Matcher` (ours, or an adapter of llguidance or xgrammar): one position only, so no tree drafts."""

    supports_trees = False
    state = -1

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher

    def accept(self, token_id: int) -> bool:
        return bool(self.matcher.accept(token_id))

    def forced_tokens(self) -> npt.NDArray[np.int32]:
        return np.asarray(self.matcher.forced_tokens(), np.int32)

    @property
    def is_finished(self) -> bool:
        return bool(self.matcher.is_finished)

    def walk(self, tree: TokenTree) -> npt.NDArray[np.int64]:
        raise AssertionError("a matcher has no states for draft nodes")

    def forces(self, tree: TokenTree) -> npt.NDArray[np.bool_]:
        raise AssertionError("a matcher has no states for draft nodes")

    def fill(self, tree: TokenTree, bitmask: Tensor) -> None:
        self.matcher.fill_bitmask(bitmask[0])

    def fill_states(self, states: list[int], bitmask: Tensor) -> None:
        raise AssertionError("a matcher keeps no earlier states")


def _states(tree: TokenTree) -> npt.NDArray[np.int64]:
    if tree.grammar_states is not None:
        return tree.grammar_states
    assert tree.num_nodes == 0, "a draft for a request with a grammar was not walked"
    return np.empty(0, np.int64)
