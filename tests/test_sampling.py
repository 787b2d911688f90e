"""Laws of `infercore.sampling`: it draws from the distribution Hugging Face's warpers would give."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infercore.sampling import SamplingParams, apply_penalties_, draw, probabilities, probabilities_without_wait


def hf_probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Independent reference: the warpers of transformers in the order of `generate`."""
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    ids = torch.zeros(logits.shape[0], 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(params.temperature)(ids, logits)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(ids, scores)
    return scores.softmax(-1)


@given(
    seed=st.integers(0, 2**31),
    vocab=st.sampled_from([2, 5, 33, 700]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.3, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
)
def test_probabilities_equal_those_of_the_hf_warpers(seed, vocab, temperature, top_k, top_p, min_p):
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed)) * 3
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = hf_probabilities(logits.clone(), params)
    torch.testing.assert_close(probabilities(logits, [params] * 3), expected, atol=1e-6, rtol=1e-5)


def test_rows_with_different_params_do_not_disturb_one_another():
    logits = torch.randn(4, 50)
    params = [
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.0),
        SamplingParams(0.5, top_k=2),
    ]
    together = probabilities(logits, params)
    for row, p in enumerate(params):
        torch.testing.assert_close(together[row], probabilities(logits[row : row + 1], [p])[0])
    assert together[0].tolist() == torch.nn.functional.one_hot(logits[0].argmax(), 50).tolist()


def test_penalties_follow_their_formulas_and_count_only_the_output():
    logits = torch.tensor([2.0, -2.0, 1.0, 1.0])
    history = np.array([0, 1, 2, 2], np.int32)  # prompt 0 1, output 2 2
    repeated = logits.clone()
    apply_penalties_(repeated, SamplingParams(repetition_penalty=2.0), history, 2)
    assert repeated.tolist() == [1.0, -4.0, 0.5, 1.0]
    counted = logits.clone()
    apply_penalties_(counted, SamplingParams(frequency_penalty=0.25, presence_penalty=0.5), history, 2)
    assert counted.tolist() == [2.0, -2.0, 0.0, 1.0]


def test_draw_never_returns_a_token_of_probability_zero_and_follows_the_distribution():
    probs = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0]).repeat(20_000, 1)
    generator = torch.Generator().manual_seed(1)
    ids = draw(probs, [generator] * len(probs))
    counts = np.bincount(ids, minlength=6)
    assert counts[[0, 2, 5]].sum() == 0
    expected = np.array([0.2, 0.5, 0.3]) * len(probs)
    assert ((counts[[1, 3, 4]] - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 degrees of freedom, p = 0.001


def test_same_generator_state_gives_the_same_token_whatever_the_batch():
    probs = torch.rand(3, 40).softmax(-1)
    alone = draw(probs[1:2], [torch.Generator().manual_seed(7)])
    together = draw(probs, [torch.Generator().manual_seed(s) for s in (1, 7, 3)])
    assert together[1] == alone[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.1), ("min_p", 1.0),
     ("top_k", -1), ("repetition_penalty", 0.0)],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})


def test_a_wrong_number_of_params_is_refused():
    with pytest.raises(ValueError, match="2 rows, but params has 1"):
        probabilities(torch.zeros(2, 4), [SamplingParams()])


def test_without_a_wait_rows_that_are_said_to_be_right_are_and_only_flat_nuclei_are_not():
    logits = torch.randn(6, 700, generator=torch.Generator().manual_seed(3))
    logits[:3] *= 9
    params = [
        SamplingParams(0.8, top_p=0.9), SamplingParams(1.1, top_k=40, min_p=0.01), SamplingParams(0.7, 20, 0.5),
        SamplingParams(1.0, top_p=0.9), SamplingParams(1.0), SamplingParams(1.0, top_k=100, top_p=0.99),
    ]  # fmt: skip
    probs, is_right = probabilities_without_wait(logits, params)
    assert is_right.tolist() == [True, True, True, False, True, True]
    assert torch.equal(probs[is_right], probabilities(logits, params)[is_right])
    assert probabilities_without_wait(logits, params[1:2] * 6)[1] is None
    assert probabilities_without_wait(logits, params[4:5] * 3 + params[1:2] * 3)[1] is None
