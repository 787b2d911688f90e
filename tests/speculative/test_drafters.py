"""The laws of the Drafter protocol, kept by every drafter."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from infercore.speculative import (
    Drafter,
    DraftRequest,
    ForcedTokenDrafter,
    LazyUnion,
    NGramDrafter,
    RecyclingDrafter,
    SuffixDrafter,
    TokenTree,
    TopTokenObserver,
    TreeGrower,
    Union,
)

VOCAB = 5


class _Counting:
    """A grammar that forces 0 1 2 ... up to 4; the state is the next token."""

    def advance(self, state: int, token_id: int) -> int:
        return state + 1 if token_id == state else -1

    def forced_tokens(self, state: int) -> Any:
        return np.arange(state, 5, dtype=np.int32)


DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "ngram": NGramDrafter,
    "suffix": lambda: SuffixDrafter([[1, 2, 3, 1, 2, 4]], max_shared_tokens=40, max_depth=5),
    "recycling": lambda: RecyclingDrafter(VOCAB, num_top_tokens=2),
    "forced": ForcedTokenDrafter,
    "union": lambda: Union(SuffixDrafter(), RecyclingDrafter(VOCAB), NGramDrafter()),
    "lazy union": lambda: LazyUnion(SuffixDrafter(), NGramDrafter()),
    "mixed union": lambda: Union(ForcedTokenDrafter(), SuffixDrafter(), Union(NGramDrafter())),
}
texts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30).map(lambda ids: np.array(ids, np.int32))


def _request(request_id: int, text: np.ndarray, max_nodes: int) -> DraftRequest:
    return DraftRequest(request_id, text, max_nodes, grammar=_Counting(), grammar_state=1)


def _same(a: TokenTree, b: TokenTree) -> bool:
    return np.array_equal(a.token_ids, b.token_ids) and np.array_equal(a.parents, b.parents)


@pytest.mark.parametrize("name", DRAFTERS)
@given(data=st.data())
@settings(max_examples=25)
def test_every_drafter_keeps_the_laws_through_a_conversation(name: str, data: Any) -> None:
    drafter = DRAFTERS[name]()
    assert isinstance(drafter, Drafter)
    drafter.commit(99, np.array([1], np.int32))
    drafter.close(99)
    text = {0: data.draw(texts), 1: data.draw(texts)}
    for _ in range(4):
        budgets = [data.draw(st.integers(-1, 12)) for _ in text]
        trees = drafter.propose([_request(i, text[i], budget) for i, budget in enumerate(budgets)])
        assert len(trees) == 2
        for tree, budget in zip(trees, budgets, strict=True):
            assert tree.num_nodes <= max(0, budget)
            TokenTree.of(tree.token_ids, tree.parents)
            assert tree.scores is not None or tree.num_nodes == 0
            for node in range(-1, tree.num_nodes):
                below = tree.children(node)
                assert len(set(tree.token_ids[below].tolist())) == len(below)
                if node >= 0 and tree.scores is not None:
                    assert (tree.scores[below] <= tree.scores[node]).all()
        again = drafter.propose([_request(1, text[1], budgets[1])])
        assert _same(again[0], trees[1]), "neither the batch nor a second call changes a proposal"
        for i in text:
            new = data.draw(texts)[:4]
            if data.draw(st.booleans()):  # a loop that forgets to say so: the next request carries the text anyway
                drafter.commit(i, new)
            if isinstance(drafter, TopTokenObserver):
                rows = data.draw(st.integers(0, 3))
                drafter.observe(np.arange(rows), np.arange(8 * rows).reshape(rows, 8) % VOCAB)
            text[i] = np.concatenate([text[i], new])
        if data.draw(st.booleans()):
            drafter.close(1)
            text[1] = data.draw(texts)


def test_the_forced_chain_is_what_the_grammar_says() -> None:
    (tree,) = ForcedTokenDrafter().propose([_request(0, np.array([9], np.int32), 3)])
    assert tree.token_ids.tolist() == [1, 2, 3]
    assert tree.parents.tolist() == [-1, 0, 1]
    (tree,) = ForcedTokenDrafter().propose([DraftRequest(0, np.array([9], np.int32), 3)])
    assert tree.num_nodes == 0


# ---------------------------------------------------------------------------------------------------------- recycling


def test_recycling_follows_the_rows_that_were_observed() -> None:
    drafter = RecyclingDrafter(10, num_top_tokens=3)
    drafter.observe(np.array([1, 2]), np.array([[2, 3, 4], [5, 6, 7]]))
    (tree,) = drafter.propose([DraftRequest(0, np.array([0, 1], np.int32), 6)])
    paths = _paths(tree)
    assert {(2,), (3,), (2, 5)} <= paths
    assert paths <= {(2,), (3,), (4,), (2, 5), (2, 6), (2, 7)}


def test_recycling_learns_which_ranks_hit_and_which_token_came_last() -> None:
    drafter = RecyclingDrafter(10, num_top_tokens=3)
    before = drafter.rank_trust
    for _ in range(50):
        drafter.observe(np.array([1]), np.array([[2, 3, 4]]))
        drafter.propose([DraftRequest(0, np.array([1], np.int32), 4)])
        drafter.commit(0, np.array([3], np.int32))
    drafter.commit(0, np.array([1], np.int32))
    assert drafter.rank_trust[1] > before[1]
    assert drafter.rank_trust[0] < before[0]
    (tree,) = drafter.propose([DraftRequest(1, np.array([3], np.int32), 1)])
    assert tree.token_ids.tolist() == [1], "1 followed 3 in the committed text"


def test_recycling_refuses_narrow_rows_and_wrong_sizes() -> None:
    with pytest.raises(ValueError, match="expected 4 or more"):
        RecyclingDrafter(10, num_top_tokens=4).observe(np.array([1]), np.array([[2]]))
    drafter = RecyclingDrafter(10, num_top_tokens=1)
    drafter.observe(np.array([1, 10]), np.array([[2], [3]]))
    with pytest.raises(ValueError, match="token id 10; expected 0 to 9"):
        drafter.propose([DraftRequest(0, np.array([1], np.int32), 4)])
    assert drafter.propose([DraftRequest(0, np.array([1], np.int32), 4)])[0].num_nodes == 0
    with pytest.raises(ValueError, match="vocab_size"):
        RecyclingDrafter(0)
    with pytest.raises(ValueError, match="num_top_tokens"):
        RecyclingDrafter(9, num_top_tokens=9)


# -------------------------------------------------------------------------------------------------------------- union


class _Fixed:
    """Proposes one tree, whatever is asked."""

    def __init__(self, tree: TokenTree) -> None:
        self._tree = tree

    def propose(self, requests: Any) -> list[TokenTree]:
        return [self._tree for _ in requests]

    def commit(self, request_id: int, accepted_token_ids: Any, features: Any = None) -> None: ...

    def close(self, request_id: int) -> None: ...


def _paths(tree: TokenTree) -> set[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return set(found)


@given(data=st.data())
def test_union_is_the_union_of_paths_cut_to_the_best(data: Any, token_trees: Any) -> None:
    def scored(tree: TokenTree) -> TokenTree:
        scores = [
            0.5 ** int(depth) * (0.5 + (int(token) + 1) / 20)
            for token, depth in zip(tree.token_ids, tree.depths, strict=True)
        ]
        return TokenTree.of(tree.token_ids, tree.parents, scores=scores)

    trees = [scored(data.draw(token_trees(max_nodes=12))) for _ in range(3)]
    union = Union(*map(_Fixed, trees))
    everything = set().union(*map(_paths, trees))
    (whole,) = union.propose([DraftRequest(0, np.zeros(1, np.int32), 100)])
    assert _paths(whole) == everything
    assert whole.num_nodes == len(everything)
    budget = data.draw(st.integers(0, 20))
    (cut,) = union.propose([DraftRequest(0, np.zeros(1, np.int32), budget)])
    assert cut.num_nodes == min(budget, len(everything))
    assert _paths(cut) <= everything
    if 0 < cut.num_nodes < len(everything):
        assert cut.scores is not None
        assert whole.scores is not None
        assert sorted(cut.scores, reverse=True) == sorted(whole.scores, reverse=True)[: cut.num_nodes]


@given(text=texts, max_nodes=st.integers(1, 12))
@settings(max_examples=25)
def test_growers_give_a_union_the_trees_that_they_propose(text: np.ndarray, max_nodes: int) -> None:
    def drafters() -> list[Any]:
        made: list[Any] = [SuffixDrafter([[1, 2, 3]]), NGramDrafter(), RecyclingDrafter(VOCAB)]
        made[2].observe(np.arange(VOCAB), np.arange(8 * VOCAB).reshape(VOCAB, 8) % VOCAB)
        return made

    request = DraftRequest(0, text, max_nodes)
    assert all(isinstance(drafter, TreeGrower) for drafter in drafters())
    (grown,) = Union(*drafters()).propose([request])
    (copied,) = Union(*(_Fixed(drafter.propose([request])[0]) for drafter in drafters())).propose([request])
    assert _same(grown, copied)
    assert np.array_equal(grown.scores, copied.scores)  # type: ignore[arg-type]
    assert np.array_equal(grown.sources, copied.sources)  # type: ignore[arg-type]


def test_union_says_who_proposed_a_node() -> None:
    low = TokenTree.of([1, 2], [-1, 0], scores=[0.3, 0.2])
    high = TokenTree.of([3, 1], [-1, -1], scores=[0.5, 0.4])
    (tree,) = Union(_Fixed(low), _Fixed(high)).propose([DraftRequest(0, np.zeros(1, np.int32), 10)])
    assert tree.token_ids.tolist() == [1, 2, 3]
    assert tree.sources is not None
    assert tree.sources.tolist() == [1, 0, 1]
    assert tree.scores is not None
    assert tree.scores.tolist() == pytest.approx([1 - 0.7 * 0.6, 0.2, 0.5]), "two that agree are right more often"


@given(seed=st.integers(0, 10**6), max_nodes=st.integers(1, 40))
def test_no_score_of_a_union_is_above_its_parent_s(seed: int, max_nodes: int) -> None:
    rng = np.random.default_rng(seed)

    def scored() -> TokenTree:
        parents = [int(rng.integers(-1, node)) for node in range(int(rng.integers(0, 13)))]
        scores: list[float] = []
        for parent in parents:
            scores.append(float(rng.choice([0.1, 0.9, 0.99, 1.0])) * (scores[parent] if parent >= 0 else 1.0))
        return TokenTree.of(rng.integers(0, 3, len(parents)), parents, scores=scores)

    (tree,) = Union(*(_Fixed(scored()) for _ in range(3))).propose([DraftRequest(0, np.zeros(1, np.int32), max_nodes)])
    for node, parent in enumerate(tree.parents.tolist()):
        assert parent < 0 or tree.scores[node] <= tree.scores[parent]  # type: ignore[index]


def test_union_keeps_drawn_trees_whole() -> None:
    import torch

    rows = torch.full((2, 4), 0.25)
    drawn = TokenTree.of([3, 2], [-1, -1], draft_probs=rows, scores=[0.1, 0.1])
    chosen = TokenTree.of([1, 0], [-1, 0], scores=[0.9, 0.8])
    (tree,) = Union(_Fixed(chosen), _Fixed(drawn)).propose([DraftRequest(0, np.zeros(1, np.int32), 3)])
    assert tree.token_ids.tolist() == [3, 2, 1]
    assert tree.draft_probs is not None
    assert tree.draft_probs.tolist() == [[0.25] * 4, [0.25] * 4, [0, 1, 0, 0]]
    assert tree.sources is not None
    assert tree.sources.tolist() == [1, 1, 0]


# ------------------------------------------------------------------------------------------------------- without numba


def test_the_loops_run_as_plain_python() -> None:
    """The same source, uncompiled, proposes the same trees."""
    program = (
        "import numpy as np; from infercore.speculative import *; from infercore.speculative.recycling import *\n"
        "text = np.array([1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2], np.int32)\n"
        "union = Union(SuffixDrafter([[1, 2, 3, 3]]), NGramDrafter(), RecyclingDrafter(6))\n"
        "union.observe(np.array([2]), np.array([[5, 4, 3, 2, 1, 0, 1, 2]]))\n"
        "union.commit(0, text[-1:])\n"
        "(tree,) = union.propose([DraftRequest(0, text, 10)])\n"
        "targets = [np.array([3] * 11)]\n"
        "print(tree.token_ids, tree.parents, tree.ancestor_bits().ravel(), verify_greedy([tree], targets)[0].path)\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "NUMBA_DISABLE_JIT": disabled},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for disabled in ("0", "1")
    ]
    assert outputs[0] == outputs[1] != ""
