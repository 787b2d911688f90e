"""`expand_frontier` in Triton's interpreter and its reference against float64; `test_on_gpu.py` has it on a GPU."""

import pytest
import torch

from infercore.kernels import expand_frontier


def problem(batch, nodes, vocab, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(batch, nodes, vocab, generator=generator)).to(dtype)
    scores = -torch.rand(batch, nodes, generator=generator)
    offsets = torch.randperm(vocab, generator=generator)
    return logits, scores, offsets


def check(expanded, logits, scores, offsets, branching, width):
    truth = scores.double()[..., None] + logits.double().log_softmax(-1)
    best = truth.topk(branching)
    expected = best.indices if offsets is None else best.indices + offsets[best.indices]
    assert torch.equal(expanded.token_ids.cpu(), expected)
    torch.testing.assert_close(expanded.scores.cpu().double(), best.values, atol=2e-5, rtol=0)
    assert torch.equal(expanded.frontier.cpu(), best.values.flatten(1).topk(width).indices)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize(
    ("batch", "nodes", "vocab", "branching", "width"),
    [(1, 1, 40, 6, 6), (2, 6, 1024, 6, 6), (1, 3, 2500, 5, 4), (3, 1, 20_000, 8, 1), (1, 16, 1100, 2, 16)],
)
def test_children_and_frontier_equal_float64(impl, batch, nodes, vocab, branching, width):
    logits, scores, offsets = problem(batch, nodes, vocab)
    for given in (None, offsets):
        expanded = expand_frontier(logits, scores, branching=branching, width=width, id_offsets=given, impl=impl)
        check(expanded, logits, scores, given, branching, width)


def test_tokens_that_cannot_come_and_equal_ones():
    logits = torch.full((1, 2, 2000), float("-inf"))
    logits[0, 0, [7, 1500]] = torch.tensor([1.0, 1.0])
    logits[0, 1, 1999] = 0.0
    expanded = expand_frontier(logits, torch.zeros(1, 2), branching=2, width=3, impl="triton")
    assert expanded.token_ids[0, 0].tolist() == [7, 1500]  # of equal ones the lower first
    assert expanded.frontier[0].tolist() == [2, 0, 1]
    assert expanded.scores[0, 1, 0] == 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"branching": 17}, "branching is 17"),
        ({"width": 13}, "width 13"),
        ({"node_scores": torch.zeros(2, 2)}, "node_scores"),
        ({"id_offsets": torch.zeros(5, dtype=torch.int64)}, "one a column"),
    ],
)
def test_what_does_not_fit_is_refused(change, error):
    arguments = {"logits": torch.zeros(1, 2, 50), "node_scores": torch.zeros(1, 2), "branching": 6, "width": 6}
    with pytest.raises(ValueError, match=error):
        expand_frontier(**{**arguments, **change})
