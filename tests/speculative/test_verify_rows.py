"""Judging all rows at once gives the verdicts of judging the visited ones."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from infercore.speculative import TokenTree, verify
from infercore.speculative.verify_rows import verify_rows

VOCAB = 6


def _tree(kind: str, generator: torch.Generator) -> TokenTree:
    """Three levels; each node has up to three children, drawn without replacement, or chosen, or some of both."""
    token_ids: list[int] = []
    parents: list[int] = []
    rows: list[torch.Tensor] = []
    frontier = [] if kind == "empty" else [-1]
    for _ in range(3):
        following = []
        for parent in frontier[:3]:
            probs = torch.softmax(torch.randn(VOCAB, generator=generator), -1)
            for token_id in torch.multinomial(probs, 3, generator=generator).tolist():
                point = kind == "mixed" and float(torch.rand((), generator=generator)) < 0.4
                following.append(len(token_ids))
                token_ids.append(token_id)
                parents.append(parent)
                rows.append(torch.eye(VOCAB)[token_id] if point else probs)
        frontier = following
    is_drawn = kind in ("drawn", "mixed")
    return TokenTree.of(token_ids, parents, draft_probs=torch.stack(rows) if is_drawn else None)


@given(
    seed=st.integers(0, 10**6),
    kinds=st.lists(st.sampled_from(["chosen", "drawn", "mixed", "empty"]), min_size=1, max_size=4),
)
@settings(max_examples=60)
def test_both_ways_agree_and_use_up_the_same_numbers(seed: int, kinds: list[str]) -> None:
    generator = torch.Generator().manual_seed(seed)
    trees = [_tree(kind, generator) for kind in kinds]
    probs = [torch.softmax(2 * torch.randn(tree.num_nodes + 1, VOCAB, generator=generator), -1) for tree in trees]
    here = [torch.Generator().manual_seed(seed + i) for i in range(len(trees))]
    there = [torch.Generator().manual_seed(seed + i) for i in range(len(trees))]
    for _ in range(3):
        expected = verify(trees, probs, generators=here)
        found = verify_rows(trees, probs, there)
        for tree, a, b in zip(trees, expected, found, strict=True):
            assert a.token_ids(tree).tolist() == b.token_ids(tree).tolist()
            assert a.path.tolist() == b.path.tolist()
    for a, b in zip(here, there, strict=True):
        assert torch.rand((), generator=a) == torch.rand((), generator=b)
