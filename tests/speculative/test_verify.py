"""Verification keeps the target's output: token for token when greedy, in distribution when sampled."""

import itertools
from collections import Counter
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from infercore.speculative import TokenTree, verify, verify_greedy
from infercore.speculative.verify import acceptance


def _random_probs(rows: int, vocab_size: int, seed: int, sharpness: float = 1.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(sharpness * torch.randn(rows, vocab_size, generator=generator), -1)


@given(data=st.data())
def test_greedy_takes_the_longest_path_of_the_target(data: Any, token_trees: Any, ancestors: Any) -> None:
    tree = data.draw(token_trees(vocab_size=4))
    dtype = data.draw(st.sampled_from([np.int32, np.int64]))
    targets = np.array(data.draw(st.lists(st.integers(0, 3), min_size=41, max_size=41)), dtype)[: tree.num_nodes + 1]
    (verdict,) = verify_greedy([tree], [targets])
    tokens = verdict.token_ids(tree).tolist()
    assert len(tokens) == verdict.accept_length == verdict.num_accepted + 1
    row = 0
    for node, token in zip([*verdict.path.tolist(), -1], tokens, strict=True):
        assert token == targets[row], "every gained token is the target's own choice"
        if node >= 0:
            assert tree.parents[node] == row - 1
            row = node + 1
    followed = [i for i in tree.children(row - 1) if tree.token_ids[i] == targets[row]]
    assert not followed, "the path could have gone on"


def test_greedy_judges_each_tree_of_a_batch_alone() -> None:
    trees = [TokenTree.chain([1, 2, 3]), TokenTree.empty(), TokenTree.of([7, 8], [-1, -1])]
    targets = [np.array([1, 2, 9, 9]), np.array([5]), np.array([8, 0, 4])]
    verdicts = verify_greedy(trees, targets)
    assert [v.path.tolist() for v in verdicts] == [[0, 1], [], [1]]
    assert [v.next_token_id for v in verdicts] == [9, 5, 4]


def test_wrong_numbers_of_rows_are_refused() -> None:
    tree = TokenTree.chain([1])
    with pytest.raises(ValueError, match="expected 2"):
        verify_greedy([tree], [np.array([1])])
    with pytest.raises(ValueError, match="pass one per tree"):
        verify_greedy([tree], [])
    generator = torch.Generator()
    with pytest.raises(ValueError, match="expected 2"):
        verify([tree], torch.ones(3, 4), generators=generator)
    with pytest.raises(ValueError, match=r"expected \[2\]"):
        verify([tree], [torch.ones(1, 4)], generators=generator)
    with pytest.raises(ValueError, match="0 generators for 1 trees"):
        verify([tree], torch.ones(2, 4), generators=[])


# ------------------------------------------------------------------------------------------------ sampling, exactly


@given(seed=st.integers(0, 10**6), num_siblings=st.integers(1, 4))
def test_rounds_over_siblings_add_up_to_the_target_exactly(seed: int, num_siblings: int) -> None:
    """Sum over every ordered draw without replacement from q: the law of the gained token is p, to rounding."""
    target, draft = _random_probs(2, 4, seed).double().numpy()
    law = np.zeros(4)
    for drawn in itertools.permutations(range(4), num_siblings):
        chance_of_draw, chance_so_far = 1.0, 1.0
        p, q = target / target.sum(), draft / draft.sum()
        for token_id in drawn:
            chance_of_draw *= q[token_id]
            accept, residual = acceptance(p, q, token_id)
            law[token_id] += _mass_of(drawn, draft) * chance_so_far * accept
            chance_so_far *= 1 - accept
            p = residual
            q = np.where(np.arange(4) == token_id, 0, q)
            q = q / q.sum() if q.any() else q
        law += chance_of_draw * chance_so_far * p
    np.testing.assert_allclose(law, target / target.sum(), atol=1e-9)


def _mass_of(drawn: tuple[int, ...], draft: np.ndarray) -> float:
    """Probability of this ordered draw without replacement."""
    left, mass = draft.sum(), 1.0
    for token_id in drawn:
        mass *= draft[token_id] / left
        left -= draft[token_id]
    return float(mass)


def test_equal_distributions_always_accept() -> None:
    probs = np.array([0.25, 0.75])
    chance, residual = acceptance(probs, probs, 1)
    assert chance == 1.0
    assert residual.sum() == 1.0


def _counts(trees: Any, probs: torch.Tensor, num_draws: int, depth: int) -> Counter[tuple[int, ...]]:
    """First `depth` tokens of `num_draws` sequences; where the verdict is shorter, the chain goes on by itself."""
    generator = torch.Generator().manual_seed(5)
    counts: Counter[tuple[int, ...]] = Counter()
    for draw in range(num_draws):
        tree, by_path = trees(draw)
        rows = torch.stack([probs[_state(path)] for path in [(), *by_path]])
        (verdict,) = verify([tree], [rows], generators=generator)
        tokens = verdict.token_ids(tree).tolist()
        while len(tokens) < depth:
            row = probs[_state(tuple(tokens))]
            tokens.append(int(torch.multinomial(row, 1, generator=generator)))
        counts[tuple(tokens[:depth])] += 1
    return counts


def _state(path: tuple[int, ...]) -> int:
    """The toy target is a Markov chain over (last token, parity of depth)."""
    return 0 if not path else 1 + path[-1]


def _total_variation(counts: Counter[tuple[int, ...]], probs: torch.Tensor, depth: int) -> float:
    total = sum(counts.values())
    distance = 0.0
    for tokens in itertools.product(range(probs.shape[1]), repeat=depth):
        expected = 1.0
        for position in range(depth):
            expected *= float(probs[_state(tokens[:position]), tokens[position]])
        distance += abs(counts[tokens] / total - expected)
    return distance / 2


def test_chosen_trees_sample_the_target() -> None:
    probs = _random_probs(4, 3, seed=1)
    tree = TokenTree.of([0, 1, 2, 1], [-1, -1, 0, 0])
    paths = [(0,), (1,), (0, 2), (0, 1)]
    counts = _counts(lambda _: (tree, paths), probs, 20_000, depth=3)
    assert _total_variation(counts, probs, 3) < 0.02


def test_drawn_trees_sample_the_target() -> None:
    """Two siblings without replacement at the root, two below the first: all of them drawn from another model."""
    probs, draft = _random_probs(4, 3, seed=1), _random_probs(4, 3, seed=2)
    generator = torch.Generator().manual_seed(3)

    def draw(_: int) -> Any:
        first = torch.multinomial(draft[0], 2, generator=generator).tolist()
        below = torch.multinomial(draft[1 + first[0]], 2, generator=generator).tolist()
        rows = torch.stack([draft[0], draft[0], draft[1 + first[0]], draft[1 + first[0]]])
        tree = TokenTree.of([*first, *below], [-1, -1, 0, 0], draft_probs=rows)
        return tree, [(first[0],), (first[1],), (first[0], below[0]), (first[0], below[1])]

    counts = _counts(draw, probs, 20_000, depth=2)
    assert _total_variation(counts, probs, 2) < 0.02


def test_a_chosen_child_among_drawn_ones_keeps_the_law() -> None:
    probs, draft = _random_probs(4, 3, seed=4), _random_probs(4, 3, seed=6)
    generator = torch.Generator().manual_seed(3)

    def draw(_: int) -> Any:
        drawn = torch.multinomial(draft[0], 2, generator=generator).tolist()
        rows = torch.stack([draft[0], torch.eye(3)[1], draft[0]])
        return TokenTree.of([drawn[0], 1, drawn[1]], [-1, -1, -1], draft_probs=rows), [(drawn[0],), (1,), (drawn[1],)]

    assert _total_variation(_counts(draw, probs, 20_000, depth=1), probs, 1) < 0.015


@given(data=st.data())
@settings(max_examples=30)
def test_a_seed_gives_the_same_text_whatever_is_drafted(data: Any, token_trees: Any) -> None:
    """Chosen trees draw one number per gained token, so speculation does not even change the samples."""
    probs = _random_probs(5, 4, seed=9)

    def text(draft: Any, length: int) -> list[int]:
        generator = torch.Generator().manual_seed(11)
        tokens: list[int] = []
        while len(tokens) < length:
            tree = draft()
            rows = [probs[0] if not tokens else probs[1 + tokens[-1]], *(probs[1 + t] for t in tree.token_ids.tolist())]
            (verdict,) = verify([tree], [torch.stack(rows)], generators=generator)
            tokens += verdict.token_ids(tree).tolist()
        return tokens[:length]

    assert text(lambda: data.draw(token_trees(max_nodes=8, vocab_size=4)), 12) == text(TokenTree.empty, 12)


def test_a_verdict_does_not_depend_on_the_rest_of_the_batch() -> None:
    probs = _random_probs(3, 5, seed=2)
    tree = TokenTree.chain([1, 2])
    alone = verify([tree], [probs], generators=[torch.Generator().manual_seed(8)])[0]
    others = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    among = verify(
        [tree, tree, tree], probs.repeat(3, 1), generators=[others[0], torch.Generator().manual_seed(8), others[1]]
    )
    assert among[1].token_ids(tree).tolist() == alone.token_ids(tree).tolist()


def test_tokens_without_mass_are_never_gained() -> None:
    rows = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    for seed in range(50):
        (verdict,) = verify([TokenTree.empty()], rows, generators=torch.Generator().manual_seed(seed))
        assert verdict.next_token_id == 1


def test_a_row_without_mass_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one token must be allowed"):
        verify([TokenTree.empty()], torch.zeros(1, 4), generators=torch.Generator())


def test_siblings_that_cannot_have_been_drawn_are_an_error() -> None:
    draft = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    tree = TokenTree.of([0, 0], [-1, -1], draft_probs=draft)
    rows = torch.tensor([[0.0, 0.0, 1.0]] * 3)
    with pytest.raises(ValueError, match="without replacement"):
        verify([tree], [rows], generators=torch.Generator())
