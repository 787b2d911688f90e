"""Our verification passes the kit; every known way of getting it wrong is caught by it."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from infercore.speculative import TokenTree, verify
from infercore.speculative.verify import acceptance
from infercore.testing import TinyModel, assert_lossless, chi_square_p_value

DRAFT = TinyModel(4, seed=77)
"""The drafter: a model of its own, with no nucleus."""

Draft = Callable[[Sequence[int], torch.Generator], tuple[TokenTree, list[tuple[int, ...]]]]
"""(token_ids, generator) -> a tree, and the path to each of its nodes."""


def _sampler(draft: Draft, probs: Callable[[TinyModel, Sequence[int]], torch.Tensor] = TinyModel.probs) -> Any:
    """Speculative decoding: draft, score every node, verify, and keep what was gained up to the length."""

    def sample(model: TinyModel, num_tokens: int, generator: torch.Generator) -> list[int]:
        token_ids: list[int] = []
        while len(token_ids) < num_tokens:
            tree, paths = draft(token_ids, generator)
            rows = torch.stack([probs(model, [*token_ids, *path]) for path in [(), *paths]])
            (verdict,) = verify([tree], [rows], generators=generator)
            token_ids += verdict.token_ids(tree).tolist()
        return token_ids[:num_tokens]

    return sample


def _grow(widths: tuple[int, ...], pick: Callable[..., list[int]], *, drawn: bool = True) -> Draft:
    """A tree with `widths[d]` children under every node of depth d, picked from the drafter's distribution."""

    def draft(token_ids: Sequence[int], generator: torch.Generator) -> tuple[TokenTree, list[tuple[int, ...]]]:
        nodes: list[int] = []
        parents: list[int] = []
        rows: list[torch.Tensor] = []
        paths: list[tuple[int, ...]] = []
        frontier: list[tuple[int, tuple[int, ...]]] = [(-1, ())]
        for width in widths:
            following = []
            for parent, path in frontier:
                probs = DRAFT.probs([*token_ids, *path])
                for token_id in pick(probs, width, generator):
                    following.append((len(nodes), (*path, token_id)))
                    nodes.append(token_id)
                    parents.append(parent)
                    rows.append(probs)
                    paths.append((*path, token_id))
            frontier = following
        return TokenTree.of(nodes, parents, draft_probs=torch.stack(rows) if drawn else None), paths

    return draft


def _without_replacement(probs: torch.Tensor, width: int, generator: torch.Generator) -> list[int]:
    ids: list[int] = torch.multinomial(probs, width, generator=generator).tolist()
    return ids


def _top(probs: torch.Tensor, width: int, generator: torch.Generator) -> list[int]:
    ids: list[int] = probs.topk(width).indices.tolist()
    return ids


def _mixed(token_ids: Sequence[int], generator: torch.Generator) -> tuple[TokenTree, list[tuple[int, ...]]]:
    """A drawn node, a chosen one, and the drawn one's sibling, under one parent."""
    probs = DRAFT.probs(token_ids)
    first, second = _without_replacement(probs, 2, generator)
    rows = torch.stack([probs, torch.eye(4)[2], probs])
    return TokenTree.of([first, 2, second], [-1, -1, -1], draft_probs=rows), [(first,), (2,), (second,)]


# ------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("top_p", [1.0, 0.7])
@pytest.mark.parametrize(
    "draft",
    [
        _grow((1, 1), _without_replacement),
        _grow((3, 2), _without_replacement),
        _grow((2, 2), _top, drawn=False),
        _mixed,
    ],
    ids=["chain", "drawn tree", "chosen tree", "mixed siblings"],
)
def test_speculative_sampling_is_lossless(draft: Draft, top_p: float) -> None:
    report = assert_lossless(_sampler(draft), top_p=top_p, num_samples=1200, num_models=1)
    assert min(report.p_values) > 1e-6


# ------------------------------------------------------------------------------------------------- broken on purpose


def test_top_k_judged_as_samples_is_caught() -> None:
    with pytest.raises(AssertionError, match="chi-square"):
        assert_lossless(_sampler(_grow((2, 1), _top)))


@pytest.mark.parametrize("is_merged", [False, True])
def test_merged_duplicate_siblings_are_caught(is_merged: bool) -> None:
    """Independent draws may be judged by an unchanged q, but only if their duplicates stay."""
    sharp = TinyModel(4, seed=5, sharpness=2.5)

    def sample(model: TinyModel, num_tokens: int, generator: torch.Generator) -> list[int]:
        target, draft = model.probs([]).double().numpy(), sharp.probs([]).double().numpy()
        siblings = torch.multinomial(sharp.probs([]), 6, replacement=True, generator=generator).tolist()
        for token_id in dict.fromkeys(siblings) if is_merged else siblings:
            chance, residual = acceptance(target, draft / draft.sum(), token_id)
            if float(torch.rand((), generator=generator)) < chance:
                return [token_id]
            target = residual
        return [int(torch.multinomial(torch.from_numpy(target), 1, generator=generator))]

    if not is_merged:
        assert_lossless(sample, num_tokens=1, num_samples=2500)
        return
    with pytest.raises(AssertionError, match="chi-square"):
        assert_lossless(sample, num_tokens=1, num_samples=4000)


def test_a_missing_residual_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_residual(target: Any, draft: Any, token_id: int) -> Any:
        return min(1.0, float(target[token_id] / draft[token_id])), target

    monkeypatch.setattr(sys.modules["infercore.speculative.verify"], "acceptance", no_residual)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_lossless(_sampler(_grow((2, 1), _without_replacement)))


def test_a_nucleus_applied_after_acceptance_is_caught() -> None:
    """Accepted by the raw distribution, a token outside the nucleus gets through."""

    def late(model: TinyModel, num_tokens: int, generator: torch.Generator) -> list[int]:
        raw = _sampler(_grow((1,), _without_replacement), TinyModel.raw_probs)(model, num_tokens, generator)
        last = torch.multinomial(model.probs(raw[:-1]), 1, generator=generator)
        return [*raw[:-1], int(last)]

    with pytest.raises(AssertionError, match="cannot come"):
        assert_lossless(late, top_p=0.7)


def test_cutting_drawn_nodes_by_their_score_is_caught() -> None:
    """Dropping the unlikely ones of the drawn children makes what is left no fair draw."""

    def cut(probs: torch.Tensor, width: int, generator: torch.Generator) -> list[int]:
        return [i for i in _without_replacement(probs, width, generator) if probs[i] > 0.25] or [int(probs.argmax())]

    with pytest.raises(AssertionError, match="chi-square"):
        assert_lossless(_sampler(_grow((2,), cut)), num_tokens=1, num_samples=4000)


def test_always_accepting_is_caught() -> None:
    def eager(model: TinyModel, num_tokens: int, generator: torch.Generator) -> list[int]:
        token_ids: list[int] = []
        while len(token_ids) < num_tokens:
            token_ids.append(int(torch.multinomial(DRAFT.probs(token_ids), 1, generator=generator)))
        return token_ids

    with pytest.raises(AssertionError, match="furthest off"):
        assert_lossless(eager)


# ----------------------------------------------------------------------------------------------------------- the kit


def test_plain_sampling_passes() -> None:
    def plain(model: TinyModel, num_tokens: int, generator: torch.Generator) -> list[int]:
        token_ids: list[int] = []
        for _ in range(num_tokens):
            token_ids.append(int(torch.multinomial(model.probs(token_ids), 1, generator=generator)))
        return token_ids

    report = assert_lossless(plain, top_p=0.8)
    for distance, expected in zip(report.total_variations, report.expected_total_variations, strict=True):
        assert distance < 2 * expected


def test_a_law_sums_to_one_and_is_zero_outside_the_nucleus() -> None:
    law = TinyModel(3, seed=1, top_p=0.6).law(3)
    assert law.sum() == pytest.approx(1)
    assert (law == 0).any()


def test_the_p_value_is_that_of_the_chi_square_distribution() -> None:
    assert chi_square_p_value(np.array([60.0, 40.0]), np.array([0.5, 0.5])) == pytest.approx(0.0455, abs=1e-4)
    assert chi_square_p_value(np.array([50.0, 50.0]), np.array([0.5, 0.5])) == pytest.approx(1)


def test_a_sampler_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 ids below 4"):
        assert_lossless(lambda model, num_tokens, generator: [0])
