"""SuffixDrafter reads on from earlier occurrences, its own and shared ones."""

import itertools
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from infercore.speculative import DraftRequest, SuffixDrafter, TokenTree


def _propose(drafter: SuffixDrafter, text: Any, max_nodes: int = 16, request_id: int = 0) -> TokenTree:
    return drafter.propose([DraftRequest(request_id, np.asarray(text, np.int32), max_nodes)])[0]


def _paths(tree: TokenTree) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def test_the_longest_context_is_trusted_most() -> None:
    tree = _propose(SuffixDrafter(), [7, 1, 2, 3, 9, 5, 2, 3, 8, 6, 7, 1, 2, 3])
    assert _paths(tree)[:2] == [(9,), (9, 5)], "after 7 1 2 3"
    assert (8,) in _paths(tree), "after 2 3"


def test_more_occurrences_score_higher() -> None:
    tree = _propose(SuffixDrafter(), [1, 4, 0, 1, 4, 2, 1, 5, 3, 1])
    scores = dict(zip(_paths(tree), tree.scores.tolist(), strict=True))  # type: ignore[union-attr]
    assert scores[(4,)] > scores[(5,)]


@given(
    corpus=st.lists(st.lists(st.integers(0, 3), max_size=20), max_size=3),
    text=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    max_nodes=st.integers(1, 40),
)
def test_every_edge_of_a_tree_was_seen(corpus: Any, text: Any, max_nodes: int) -> None:
    """Each node follows its parent's token (or the pending one) somewhere in the text or the corpus."""
    tree = _propose(SuffixDrafter(corpus, max_depth=6), text, max_nodes)
    seen = {pair for known in [text, *corpus] for pair in itertools.pairwise(known)}
    for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        assert (text[-1] if parent < 0 else int(tree.token_ids[parent]), token) in seen
    assert tree.num_nodes == max_nodes or {(text[-1], t) for t in range(4)} & seen <= {
        (text[-1], int(t)) for t in tree.token_ids[tree.children()]
    }


@given(data=st.data())
def test_growing_a_text_step_by_step_changes_nothing_but_trust(data: Any) -> None:
    corpus = [data.draw(st.lists(st.integers(0, 2), max_size=15))]
    text = data.draw(st.lists(st.integers(0, 2), min_size=2, max_size=40))
    grown = _trusting(SuffixDrafter(corpus))
    for length in range(1, len(text)):
        _propose(grown, text[:length])
        if data.draw(st.booleans()):
            grown.commit(0, np.array(text[length : length + 1], np.int32))
    _propose(grown, text)
    _trusting(grown)  # it learnt on the way which levels to trust
    at_once = _propose(_trusting(SuffixDrafter(corpus)), text)
    assert _paths(_propose(grown, text)) == _paths(at_once)


def _trusting(drafter: SuffixDrafter) -> SuffixDrafter:
    """Trust every level alike, whatever was learnt before."""
    drafter._trust[:] = 0.5
    return drafter


def test_trust_follows_what_the_levels_were_worth() -> None:
    drafter = SuffixDrafter()
    before = drafter._trust.copy()
    text = [1, 2, 3, 1, 2]
    _propose(drafter, text)
    for _ in range(20):
        drafter.commit(0, np.array([9, 1, 2], np.int32))  # 9 follows 1 2 every time after the first
    assert drafter._trust[0, 3:].max() > before[0, 3:].max()
    assert drafter._trust[0, 2, 0] < before[0, 2, 0], "the first time it did not"


def test_a_text_that_was_taken_back_is_read_again() -> None:
    drafter = SuffixDrafter()
    _propose(drafter, [1, 2, 3, 1, 2])
    drafter.commit(0, np.array([9, 9, 9], np.int32))
    drafter._trust[:] = SuffixDrafter()._trust
    assert _paths(_propose(drafter, [1, 2, 3, 1, 2])) == _paths(_propose(SuffixDrafter(), [1, 2, 3, 1, 2]))


def test_finished_outputs_help_later_requests_unless_told_not_to() -> None:
    for learn in (True, False):
        drafter = SuffixDrafter(learn_outputs=learn)
        _propose(drafter, [5])
        drafter.commit(0, np.array([1, 2, 3, 4], np.int32))
        drafter.close(0)
        assert ((3,) in _paths(_propose(drafter, [9, 1, 2], request_id=1))) == learn


def test_prompts_are_never_shared() -> None:
    drafter = SuffixDrafter()
    _propose(drafter, [1, 2, 3, 4])
    drafter.commit(0, np.array([8], np.int32))
    drafter.close(0)
    assert _propose(drafter, [9, 1, 2], request_id=1).num_nodes == 0


def test_the_shared_text_stays_within_its_bound_and_keeps_the_newest() -> None:
    drafter = SuffixDrafter(max_shared_tokens=50)
    running = _propose(drafter, [1, 2], request_id=77)
    assert running.num_nodes == 0
    for request_id in range(30):
        _propose(drafter, [0], request_id=request_id)
        drafter.commit(request_id, np.arange(10 * request_id, 10 * request_id + 10, dtype=np.int32))
        drafter.close(request_id)
    assert drafter._shared.num_tokens <= 50
    assert _paths(_propose(drafter, [295], request_id=77))[0] == (296,)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="max_depth"):
        SuffixDrafter(max_depth=0)
    with pytest.raises(ValueError, match="max_shared_tokens"):
        SuffixDrafter(max_shared_tokens=-1)
    with pytest.raises(TypeError, match="corpus"):
        SuffixDrafter([[0.5]])  # type: ignore[list-item]
