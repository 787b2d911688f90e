"""NGramDrafter proposes what followed before."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from infercore.speculative import DraftRequest, NGramDrafter


def _propose(token_ids: Any, max_nodes: int = 8, **options: Any) -> Any:
    drafter = NGramDrafter(**options)
    return drafter.propose([DraftRequest(0, np.asarray(token_ids, np.int32), max_nodes)])[0]


def test_the_longest_match_comes_first_and_others_branch_off() -> None:
    tree = _propose([1, 2, 3, 9, 5, 2, 3, 8, 1, 2, 3], max_nodes=6, max_depth=2)
    assert tree.token_ids[:2].tolist() == [9, 5], "after 1 2 3"
    assert tree.token_ids[2:4].tolist() == [8, 1], "after 2 3"
    assert tree.parents[:4].tolist() == [-1, 0, -1, 2]
    assert tree.scores[0] > tree.scores[2] > 0


@given(
    token_ids=st.lists(st.integers(0, 3), max_size=60),
    max_nodes=st.integers(-1, 20),
    min_ngram=st.integers(1, 3),
)
def test_every_path_followed_an_occurrence_of_the_suffix(token_ids: Any, max_nodes: int, min_ngram: int) -> None:
    tree = _propose(token_ids, max_nodes, min_ngram=min_ngram, max_ngram=5, max_depth=6)
    assert tree.num_nodes <= max(0, max_nodes)
    text = tuple(token_ids)
    for node in range(tree.num_nodes):
        path: list[int] = []
        walk = node
        while walk >= 0:
            path.insert(0, int(tree.token_ids[walk]))
            walk = int(tree.parents[walk])
        wanted = text[-min_ngram:] + tuple(path)
        assert any(text[i : i + len(wanted)] == wanted for i in range(len(text)))
        assert tree.parents[node] < 0 or tree.scores[node] < tree.scores[tree.parents[node]]
        siblings = tree.token_ids[tree.children(int(tree.parents[node]))].tolist()
        assert len(set(siblings)) == len(siblings)


def test_nothing_to_match_gives_an_empty_tree() -> None:
    assert _propose([]).num_nodes == 0
    assert _propose([1]).num_nodes == 0
    assert _propose([1, 2, 3]).num_nodes == 0


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="min_ngram"):
        NGramDrafter(2, 3)
    with pytest.raises(ValueError, match="max_depth"):
        NGramDrafter(max_depth=0)
