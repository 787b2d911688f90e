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
    """Over `infercore.constrained.Grammar`: a state is an int, so a tree of states costs nothing."""

    supports_trees = True

    def __init__(self, grammar: Any) -> None:
        self.grammar = grammar
        self.state: int = grammar.start

    def accept(self, token_id: int) -> bool:
        state = self.grammar.advance(self.state, token_id)
        if state < 0:
            return False
        self.state = state
        return True

    def forced_tokens(self) -> npt.NDArray[np.int32]:
        return self.grammar.forced_tokens(self.state)  # type: ignore[no-any-return]

    @property
    def is_finished(self) -> bool:
        return bool(self.grammar.is_finished(self.state))

    def walk(self, tree: TokenTree) -> npt.NDArray[np.int64]:
        advance = self.grammar.advance
        states = np.empty(tree.num_nodes, np.int64)
        for node, (token_id, parent) in enumerate(zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True)):
            before = self.state if parent < 0 else int(states[parent])
            states[node] = advance(before, token_id) if before >= 0 else -1
        return states

    def forces(self, tree: TokenTree) -> npt.NDArray[np.bool_]:
        forced_tokens = self.grammar.forced_tokens
        return np.array([s >= 0 and len(forced_tokens(s)) > 0 for s in _states(tree).tolist()], np.bool_)

    def fill(self, tree: TokenTree, bitmask: Tensor) -> None:
        node_states = _states(tree)
        states = [self.state, *node_states.tolist()]
        if (node_states < 0).any():
            bitmask[1:].fill_(-1)
            for row in (0, *(np.flatnonzero(node_states >= 0) + 1).tolist()):
                self.grammar.fill_bitmask([states[row]], bitmask[row : row + 1])
        else:
            self.grammar.fill_bitmask(states, bitmask)

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
