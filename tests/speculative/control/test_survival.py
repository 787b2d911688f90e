"""Survival calibrates scores by what became of drafts."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from infercore.speculative import Survival, TokenTree


def _tree(scores: Any, sources: Any = None) -> TokenTree:
    chain = TokenTree.chain(range(1, len(scores) + 1))
    return TokenTree(
        chain.token_ids,
        chain.parents,
        None,
        np.array(scores, np.float32),
        None if sources is None else np.array(sources, np.int8),
    )


def test_scores_are_believed_until_something_is_known() -> None:
    assert Survival().chances(_tree([0.5, 0.2])).tolist() == pytest.approx([0.5, 0.2])


def test_boasting_is_corrected_and_modesty_too() -> None:
    survival = Survival()
    rng = np.random.default_rng(0)
    for _ in range(600):
        first = 1 if rng.random() < 0.2 else 9
        survival.learn(_tree([0.8, 0.4]), np.array([first, 2, 9], np.int32))
    chances = survival.chances(_tree([0.8, 0.4]))
    assert chances[0] == pytest.approx(0.2, abs=0.07)
    assert chances[1] / chances[0] > 0.9, "the second node always followed the first"


def test_drafters_are_told_apart() -> None:
    survival = Survival()
    for _ in range(100):
        survival.learn(_tree([0.5], [0]), np.array([9], np.int32))
        survival.learn(_tree([0.5], [3]), np.array([1], np.int32))
    assert survival.chances(_tree([0.5], [0]))[0] < 0.1
    assert survival.chances(_tree([0.5], [3]))[0] > 0.8


def test_learn_reports_what_it_had_expected_of_the_first_tokens() -> None:
    tree = TokenTree.of([1, 2], [-1, -1], scores=[0.5, 0.25])
    hits, predicted = Survival().learn(tree, np.array([2], np.int32))
    assert hits == 1
    assert predicted == pytest.approx(0.75)


@given(data=st.data())
def test_chances_never_rise_along_a_path(data: Any, token_trees: Any) -> None:
    survival = Survival()
    tree = data.draw(token_trees(max_nodes=20))
    for _ in range(data.draw(st.integers(0, 5))):
        gained = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)), np.int32)
        survival.learn(tree, gained)
    chances = survival.chances(tree)
    assert ((chances >= 0) & (chances < 1)).all()
    for node, parent in enumerate(tree.parents.tolist()):
        assert parent < 0 or chances[node] <= chances[parent]


def test_acceptance_is_counted_per_drafter_and_depth() -> None:
    survival = Survival()
    survival.count(_tree([0.5, 0.2, 0.1], [0, 0, 2]), np.array([0, 1], np.int32))
    counts = survival.acceptance()
    assert counts[0] == [(1, 1), (1, 1)]
    assert counts[2] == [(0, 0), (0, 0), (1, 0)]
