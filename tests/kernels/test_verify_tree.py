"""`verify_tree` against a walk through dictionaries, and its door's errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infercore.kernels import verify_tree

TREE = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12)


def packed(trees):
    """Each node is (parent, reduced to an earlier row; token; what the target gives after it)."""
    tokens, parents, targets, starts = [], [], [], [0]
    for tree in trees:
        for i, (parent, token, target) in enumerate(tree):
            tokens.append(token)
            parents.append(parent % i if i else -1)
            targets.append(target)
        starts.append(len(tokens))
    as_int64 = (torch.tensor(x, dtype=torch.int64) for x in (tokens, targets))
    token_ids, target_ids = as_int64
    return token_ids, torch.tensor(parents, dtype=torch.int32), target_ids, torch.tensor(starts, dtype=torch.int32)


def walk(tree, max_depth):
    children = {}
    for i, (parent, token, _) in enumerate(tree[1:], 1):
        children.setdefault((parent % i, token), i)
    row, path = 0, []
    while len(path) < max_depth and (child := children.get((row, tree[row][2]))) is not None:
        path.append(child - 1)
        row = child
    return path, tree[row][2]


@pytest.mark.parametrize("impl", ["reference", "triton"])
@given(trees=st.lists(TREE, max_size=4), max_depth=st.integers(0, 6))
def test_the_path_that_the_targets_follow_is_accepted(impl, trees, max_depth):
    kept = verify_tree(*packed(trees), max_depth=max_depth, impl=impl)
    for s, tree in enumerate(trees):
        path, following = walk(tree, max_depth)
        assert kept.num_accepted[s] == len(path)
        assert kept.paths[s].tolist() == path + [-1] * (max_depth - len(path))
        assert kept.next_token_ids[s] == following


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_chain_longer_than_a_block_is_walked_to_its_end(impl):
    chain = [(i - 1, 1, 1) for i in range(150)]
    kept = verify_tree(*packed([chain]), max_depth=200, impl=impl)
    assert kept.num_accepted.tolist() == [149]
    assert kept.paths[0, :149].tolist() == list(range(149))


def test_what_does_not_fit_is_refused():
    token_ids, parents, targets, starts = packed([[(0, 1, 1), (0, 1, 1)]])
    with pytest.raises(ValueError, match="at least 0"):
        verify_tree(token_ids, parents, targets, starts, max_depth=-1)
