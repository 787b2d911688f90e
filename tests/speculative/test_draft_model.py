"""DraftModelDrafter grows trees from a model's logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from infercore.speculative import Drafter, DraftModelDrafter, DraftRequest, ForwardFn, TokenTree, verify
from infercore.testing.lossless import TinyModel, assert_lossless


class _Toy:
    """A tiny model as a `ForwardFn`; counts its calls."""

    def __init__(self, seed: int = 3) -> None:
        self.model = TinyModel(4, seed=seed)
        self.num_calls = 0
        self.closed: list[int] = []

    def forward(
        self, request_ids: Sequence[int], texts: Sequence[np.ndarray], trees: Sequence[TokenTree]
    ) -> list[torch.Tensor]:
        self.num_calls += 1
        logits = []
        for text, tree in zip(texts, trees, strict=True):
            paths = [text.tolist()]
            for token_id, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
                paths.append([*paths[parent + 1], token_id])
            logits.append(torch.stack([self.model.probs(path).log() for path in paths]))
        return logits

    def close(self, request_id: int) -> None:
        self.closed.append(request_id)


def _request(text: list[int], max_nodes: int, **options: Any) -> DraftRequest:
    return DraftRequest(0, np.array(text, np.int32), max_nodes, **options)


def test_a_greedy_tree_holds_the_likeliest_paths() -> None:
    toy = _Toy()
    assert isinstance(toy, ForwardFn)
    drafter = DraftModelDrafter(toy, max_depth=3, branching=4, num_expanded=16)
    assert isinstance(drafter, Drafter)
    (tree,) = drafter.propose([_request([1, 2], 10)])
    assert tree.num_nodes == 10
    assert toy.num_calls == 3
    chances = {}
    for a in range(4):
        chances[(a,)] = float(toy.model.probs([1, 2])[a])
        for b in range(4):
            chances[(a, b)] = chances[(a,)] * float(toy.model.probs([2, a])[b])
            for c in range(4):
                chances[(a, b, c)] = chances[(a, b)] * float(toy.model.probs([a, b])[c])
    best = sorted(chances.values(), reverse=True)[:10]
    assert tree.scores is not None
    assert sorted(tree.scores.tolist(), reverse=True) == pytest.approx(best, rel=1e-5)


def test_a_batch_costs_one_forward_per_depth() -> None:
    toy = _Toy()
    requests = [_request([1], 8), _request([2, 3], 8, temperature=1.0, generator=torch.Generator()), _request([3], 0)]
    trees = DraftModelDrafter(toy, max_depth=2).propose(requests)
    assert toy.num_calls == 2
    assert [tree.num_nodes > 0 for tree in trees] == [True, True, False]
    assert trees[0].draft_probs is None
    assert trees[1].draft_probs is not None


@pytest.mark.parametrize("max_nodes", [1, 3, 5, 12])
def test_drawn_trees_keep_the_budget_and_say_what_they_were_drawn_from(max_nodes: int) -> None:
    toy = _Toy()
    drafter = DraftModelDrafter(toy, max_depth=3, branching=3)
    request = _request([0], max_nodes, temperature=0.7, generator=torch.Generator().manual_seed(1))
    (tree,) = drafter.propose([request])
    assert 0 < tree.num_nodes <= max_nodes
    assert tree.draft_probs is not None
    for node in range(-1, tree.num_nodes):
        below = tree.children(node)
        assert len(set(tree.token_ids[below].tolist())) == len(below)
        path = [0]
        if node >= 0:
            path.append(int(tree.token_ids[node]))
            parent = int(tree.parents[node])
            if parent >= 0:
                path.insert(1, int(tree.token_ids[parent]))
        expected = torch.softmax(toy.model.probs(path).log() / 0.7, -1)
        for child in below:
            torch.testing.assert_close(tree.draft_probs[child], expected)


@pytest.mark.parametrize("max_nodes", [4, 9])
def test_drawn_trees_are_lossless(max_nodes: int) -> None:
    drafter = DraftModelDrafter(_Toy(), max_depth=2, branching=2, num_expanded=1)

    def sample(model: TinyModel, num_tokens: int, generator: torch.Generator) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < num_tokens:
            (tree,) = drafter.propose([_request([0, *tokens], max_nodes, temperature=1.0, generator=generator)])
            paths: list[list[int]] = [tokens]
            for token_id, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
                paths.append([*paths[parent + 1], token_id])
            rows = torch.stack([model.probs(path) for path in paths])
            tokens = [*tokens, *verify([tree], [rows], generators=generator)[0].token_ids(tree).tolist()]
        return tokens[:num_tokens]

    assert_lossless(sample, num_samples=1200, num_models=1)


def test_closing_a_request_lets_its_kv_go() -> None:
    toy = _Toy()
    drafter = DraftModelDrafter(toy)
    drafter.commit(4, np.array([1], np.int32))
    drafter.close(4)
    assert toy.closed == [4]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        DraftModelDrafter(_Toy(), branching=0)
