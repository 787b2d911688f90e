"""Laws of TokenTree."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from infercore.speculative import TokenTree


@given(data=st.data())
def test_ancestor_bits_say_who_is_above(data: Any, token_trees: Any, ancestors: Any) -> None:
    tree = data.draw(token_trees(max_nodes=70))
    spare_words = data.draw(st.integers(0, 2))
    bits = tree.ancestor_bits((tree.num_nodes + 31) // 32 + spare_words)
    assert bits.dtype == np.int32
    for node in range(tree.num_nodes):
        seen = {j for j in range(32 * bits.shape[1]) if (int(bits[node, j // 32]) >> (j % 32)) & 1}
        assert seen == set(ancestors(tree, node))


@given(data=st.data())
def test_depth_counts_the_ancestors_and_gives_the_position(data: Any, token_trees: Any, ancestors: Any) -> None:
    tree = data.draw(token_trees())
    depths = [len(ancestors(tree, node)) for node in range(tree.num_nodes)]
    assert tree.depths.tolist() == depths
    assert tree.position_ids(100).tolist() == [100 + depth for depth in depths]
    assert tree.position_ids(100).dtype == np.int64


@given(data=st.data())
def test_truncate_keeps_every_path_of_the_kept_nodes(data: Any, token_trees: Any, ancestors: Any) -> None:
    tree = data.draw(token_trees())
    keep = np.zeros(tree.num_nodes, bool)
    for node in range(tree.num_nodes):
        above_is_kept = tree.parents[node] < 0 or keep[tree.parents[node]]
        keep[node] = bool(above_is_kept) and data.draw(st.booleans())
    cut = tree.truncate(keep)

    def paths(of: TokenTree) -> list[list[int]]:
        return [of.token_ids[ancestors(of, node)].tolist() for node in range(of.num_nodes)]

    assert paths(cut) == [path for path, kept in zip(paths(tree), keep, strict=True) if kept]


def test_truncate_takes_every_column_along() -> None:
    tree = TokenTree.of([5, 6, 7], [-1, -1, 1], draft_probs=torch.eye(3), scores=[0.5, 0.4, 0.3])
    cut = tree.truncate(np.array([False, True, True]))
    assert cut.token_ids.tolist() == [6, 7]
    assert cut.parents.tolist() == [-1, 0]
    assert cut.draft_probs is not None
    assert torch.equal(cut.draft_probs, torch.eye(3)[1:])
    assert cut.scores is not None
    assert cut.scores.tolist() == pytest.approx([0.4, 0.3])


def test_truncate_refuses_orphans_and_leaves_the_tree_alone() -> None:
    tree = TokenTree.chain([1, 2])
    with pytest.raises(ValueError, match="drops the parent of a kept node"):
        tree.truncate(np.array([False, True]))
    assert tree.token_ids.tolist() == [1, 2]


def test_chain_and_empty_are_trees() -> None:
    assert TokenTree.chain([4, 5, 6]).parents.tolist() == [-1, 0, 1]
    assert TokenTree.empty().num_nodes == 0
    assert TokenTree.empty().ancestor_bits(1).shape == (0, 1)
    assert TokenTree.empty().position_ids(3).shape == (0,)


def test_children_are_listed_in_order() -> None:
    tree = TokenTree.of([1, 2, 3, 4], [-1, -1, 0, 0])
    assert tree.children().tolist() == [0, 1]
    assert tree.children(0).tolist() == [2, 3]
    assert tree.children(3).tolist() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [-1]), "one entry per token"),
        (([1, 2], [1, -1]), "list parents before children"),
        (([1], [-2]), "node 0 has parent -2, expected -1 to -1"),
    ],
)
def test_of_refuses_what_is_no_tree(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenTree.of(*arguments)


def test_of_refuses_columns_of_another_length() -> None:
    with pytest.raises(ValueError, match="scores has shape"):
        TokenTree.of([1], [-1], scores=[0.1, 0.2])
    with pytest.raises(ValueError, match="draft_probs has 2 rows"):
        TokenTree.of([1], [-1], draft_probs=torch.ones(2, 3))


def test_too_few_words_are_refused() -> None:
    with pytest.raises(ValueError, match="40 nodes need 2"):
        TokenTree.chain(range(40)).ancestor_bits(1)
