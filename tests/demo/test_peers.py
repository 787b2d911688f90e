"""The other side is called right: every way of calling `generate` gives what plain greedy decoding gives."""

from collections.abc import Iterator

import pytest
import torch
from tests.demo.models import tiny_model

from infercore.demo import peers
from infercore.demo.stage import counted_forwards

PROMPTS = [[5, 6, 7, 8, 9, 20, 21], [5, 6, 7, 8, 30], [5, 6, 7, 8, 9, 9, 9, 9, 40]]


@pytest.fixture(scope="module")
def model() -> Iterator[object]:
    torch.set_num_threads(1)
    return tiny_model(eos_token_id=None)


@pytest.fixture(scope="module")
def expected(model: object) -> list[list[int]]:
    """Greedy decoding by hand, without any cache."""
    return [_greedy(model, prompt, 20) for prompt in PROMPTS]


def test_outputs_are_worth_comparing(expected: list[list[int]]) -> None:
    assert all(len(set(output)) >= 8 for output in expected)


def test_alone(model: object, expected: list[list[int]]) -> None:
    assert [peers.generate(model, prompt, 20) for prompt in PROMPTS] == expected


def test_with_prompt_lookup(model: object, expected: list[list[int]]) -> None:
    assert [peers.generate(model, prompt, 20, prompt_lookup=3) for prompt in PROMPTS] == expected


def test_in_a_padded_batch(model: object, expected: list[list[int]]) -> None:
    assert peers.generate_batch(model, PROMPTS, 20) == expected


def test_in_a_padded_batch_below_a_shared_prefix(model: object, expected: list[list[int]]) -> None:
    shared = peers.common_prefix(PROMPTS)
    assert shared == [5, 6, 7, 8]
    with counted_forwards(model) as counter:
        assert peers.generate_batch(model, PROMPTS, 20, prefix=peers.Kept.of(model, shared)) == expected
    assert counter.num_rows == len(shared) + 3 * (9 - 4) + 3 * 19  # the prefix once, padded rests, decoded tokens


def test_with_a_kept_cache_that_is_cut(model: object, expected: list[list[int]]) -> None:
    kept = peers.Kept.of(model, [5, 6, 7, 8, 9, 9, 9, 9, 41, 42])
    for prompt, output in zip(PROMPTS, expected, strict=True):
        own = kept.copy()
        num_reused = own.cut_to_prefix_of(prompt)
        assert num_reused == {7: 5, 5: 4, 9: 8}[len(prompt)]
        with counted_forwards(model) as counter:
            assert peers.generate(model, prompt, 20, cache=own.cache) == output
        assert counter.num_rows == len(prompt) - num_reused + 19


def test_a_whole_prompt_in_the_cache_keeps_its_last_token_back(model: object) -> None:
    kept = peers.Kept.of(model, [5, 6, 7])
    assert kept.cut_to_prefix_of([5, 6, 7]) == 2


def test_outputs_end_with_the_end_token(expected: list[list[int]]) -> None:
    end = expected[0][7]
    model = tiny_model(eos_token_id=end)
    first = expected[0].index(end)
    assert peers.generate_batch(model, PROMPTS, 20)[0] == expected[0][: first + 1]


def test_a_processor_on_one_row_leaves_the_others(model: object, expected: list[list[int]]) -> None:
    def only_token_3(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert input_ids.shape[0] == 1
        return torch.where(torch.arange(scores.shape[1]) == 3, scores, float("-inf"))

    outputs = peers.generate_batch(model, PROMPTS, 5, logits_processor=peers.OnRow(1, only_token_3))
    assert outputs == [expected[0][:5], [3] * 5, expected[2][:5]]


def _greedy(model: object, prompt: list[int], num_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(num_tokens):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]
