"""Random trees, for laws that hold for every tree."""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest

from infercore.speculative import TokenTree


@st.composite
def _token_trees(draw: Any, max_nodes: int = 40, vocab_size: int = 6) -> TokenTree:
    num_nodes = draw(st.integers(0, max_nodes))
    parents = [draw(st.integers(-1, node - 1)) for node in range(num_nodes)]
    token_ids = draw(st.lists(st.integers(0, vocab_size - 1), min_size=num_nodes, max_size=num_nodes))
    # the lean constructor: the type checker of `of` draws random numbers, which Hypothesis forbids in a strategy
    return TokenTree(np.array(token_ids, np.int32), np.array(parents, np.int32))


@pytest.fixture(scope="session")
def token_trees() -> Callable[..., st.SearchStrategy[TokenTree]]:
    return _token_trees


@pytest.fixture(scope="session")
def ancestors() -> Callable[[TokenTree, int], list[int]]:
    """`node` and everything above it, lowest first, by the definition."""

    def above(tree: TokenTree, node: int) -> list[int]:
        found = []
        while node >= 0:
            found.append(node)
            node = int(tree.parents[node])
        return found

    return above
