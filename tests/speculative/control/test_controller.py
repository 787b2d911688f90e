"""SpeedController speculates where it pays, and only there."""

import copy
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from infercore.speculative import Controller, CostCurve, SpeedController, TokenTree, Verdict, verify_greedy
from infercore.speculative.control._compiled import best_count

WIDTH = 8


def _cpu(rows: int) -> float:
    """A machine on which eight rows cost 1.65 times one."""
    return 0.025 * float(np.interp(rows, [1, 2, 4, 8, 16, 32], [1, 1.70, 1.61, 1.65, 2.07, 2.75]))


def _flat(rows: int) -> float:
    return 0.008 * (1 + rows / 1000)


def _nearly_flat(rows: int) -> float:
    return 0.008 * (1 + (rows - 1) / 400)


def _known(cost: Callable[[int], float]) -> CostCurve:
    curve = CostCurve()
    for rows in (1, 2, 4, 8, 16, 32, 64):
        curve.observe(rows, cost(rows))
    return curve


def _chain(token_ids: Any, chance: float) -> TokenTree:
    depth = np.arange(1, len(token_ids) + 1)
    return TokenTree(
        np.asarray(token_ids, np.int32), np.arange(-1, len(token_ids) - 1, dtype=np.int32), None,
        (chance**depth).astype(np.float32),
    )  # fmt: skip


def _decode(
    controller: Controller,
    cost: Callable[[int], float],
    segments: list[tuple[int, float]],
    *,
    oracle: bool = False,
    seed: int = 0,
) -> list[tuple[int, int, int, float]]:
    """Decode a text whose drafts are right with a given chance per segment of tokens.

    Returns per step: segment, nodes verified, tokens gained, cost. The oracle drafts where that chance is not 0.
    """
    rng, noise = np.random.default_rng(0), np.random.default_rng(1 + seed)
    ends = np.cumsum([length for length, _ in segments])
    text = rng.integers(0, 1000, ends[-1] + 4 * WIDTH)
    position, steps = 0, []
    while position < ends[-1]:
        segment = int(np.searchsorted(ends, position, side="right"))
        chance = segments[segment][1]
        budget = (WIDTH if chance else 0) if oracle else controller.budget([0])[0]
        draft = text[position : position + min(WIDTH, budget)].copy()
        draft[rng.random(len(draft)) >= chance] += 5000
        tree = _chain(draft, 0.8)
        if not oracle and tree.num_nodes:
            (tree,) = controller.select([0], [tree])
        (verdict,) = verify_greedy([tree], [text[position : position + tree.num_nodes + 1]])
        seconds = cost(1 + tree.num_nodes)
        controller.update([0], [tree], [verdict], step_time_s=seconds * noise.lognormal(0, 0.05))
        steps.append((segment, tree.num_nodes, verdict.accept_length, seconds))
        position += verdict.accept_length
    return steps


def _free(curve: CostCurve | None = None, **options: Any) -> SpeedController:
    """A controller for which drafting takes no time, whatever this machine is doing."""
    return SpeedController(curve, clock=lambda: 0.0, **options)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("curve", [_known(_cpu), None], ids=["measured", "learnt"])
def test_a_change_of_domain_costs_little_and_is_noticed_fast(curve: CostCurve | None, seed: int) -> None:
    segments = [(300, 0.8), (300, 0.0), (300, 0.8)]
    steps = _decode(_free(copy.deepcopy(curve)), _cpu, segments, seed=seed)
    bad = [step for step in steps if step[0] == 1]
    again = [step for step in steps if step[0] == 2]
    assert not any(nodes for _, nodes, _, _ in bad[20:]), "off within 20 steps"
    assert next(i for i, step in enumerate(again) if step[1]) < 50, "on again within 50"
    plain = _cpu(1) * sum(gained for _, _, gained, _ in bad)
    assert sum(seconds for *_, seconds in bad) <= 1.02 * plain
    oracle = _decode(_free(_known(_cpu)), _cpu, segments, oracle=True)
    assert sum(seconds for *_, seconds in steps) <= 1.05 * sum(seconds for *_, seconds in oracle)


@pytest.mark.parametrize("seed", range(4))
def test_what_costs_next_to_nothing_is_given_up_as_well_when_it_brings_nothing(seed: int) -> None:
    """On a curve whose rows cost less than the noise of a step, only the misses tell that drafts are useless."""
    steps = _decode(_free(), _nearly_flat, [(300, 0.8), (300, 0.0)], seed=seed)
    bad = [step for step in steps if step[0] == 1]
    assert not any(nodes for _, nodes, _, _ in bad[25:])


def test_useless_drafts_are_never_much_slower_than_plain_decoding() -> None:
    for cost in (_cpu, _flat):
        steps = _decode(_free(), cost, [(400, 0.0)])
        assert sum(seconds for *_, seconds in steps) <= 1.03 * cost(1) * 400


@given(
    chance=st.floats(0.05, 0.95),
    costs=st.lists(st.floats(0.0, 0.02), min_size=WIDTH, max_size=WIDTH),
    speed_up=st.floats(0.5, 2.5),
)
def test_time_is_worth_the_rate_of_the_long_run_or_of_this_step_at_its_best(
    chance: float, costs: list[float], speed_up: float
) -> None:
    """A chain of n right with p each: the cut is where one node more gains less than its time is worth."""
    times = 0.02 + np.cumsum([0.0, *costs])
    chances = (chance ** np.arange(1, WIDTH + 1)).astype(np.float32)
    tokens = np.concatenate([[0.0], np.cumsum(chances, dtype=np.float64)])
    price = max(speed_up / times[0], float(((1 + tokens) / times).max()))
    gains = tokens - price * (times - times[0])
    count, gain = best_count(chances, times, 1, speed_up / times[0], 0.0)
    assert gain == pytest.approx(max(0.0, gains.max()), abs=1e-6)
    assert gains[count] == pytest.approx(gains.max(), abs=1e-6)


def test_good_drafts_are_used_at_full_width() -> None:
    steps = _decode(_free(_known(_cpu)), _cpu, [(400, 0.95)])
    gained = sum(gained for _, _, gained, _ in steps) * _cpu(1)
    assert gained / sum(seconds for *_, seconds in steps) > 2


def test_what_a_plain_step_costs_is_learnt_first() -> None:
    controller = _free()
    assert controller.budget([0, 1]) == [0, 0]
    controller.update([0, 1], [TokenTree.empty()] * 2, [Verdict(np.empty(0, np.int32), 1)] * 2, step_time_s=0.02)
    assert controller.budget([0, 1]) == [32, 32]


def test_a_batch_shares_one_budget_and_the_likeliest_nodes_win() -> None:
    controller = _free(_known(_cpu))
    controller.budget([0, 1])
    likely, unlikely = _chain(range(8), 0.95), _chain(range(8), 0.03)
    first, second = controller.select([0, 1], [likely, unlikely])
    assert first.num_nodes == 8
    assert second.num_nodes == 0


@given(data=st.data())
def test_select_cuts_whole_subtrees_only(data: Any, token_trees: Any) -> None:
    controller = _free(_known(_cpu), margin=0.0)
    trees = [data.draw(token_trees(max_nodes=20)) for _ in range(3)]
    controller.budget([0, 1, 2])
    for tree, cut in zip(trees, controller.select([0, 1, 2], trees), strict=True):
        assert cut.num_nodes <= tree.num_nodes
        TokenTree.of(cut.token_ids, cut.parents)


def test_drawn_trees_are_never_cut() -> None:
    controller = _free(_known(_cpu))
    drawn = TokenTree.of([1, 2], [-1, 0], draft_probs=torch.full((2, 4), 0.25), scores=[0.0, 0.0])
    controller.budget([0])
    assert controller.select([0], [drawn])[0] is drawn


def test_an_expensive_drafter_rests_while_it_is_off() -> None:
    clock = [0.0]
    controller = SpeedController(_known(_cpu), clock=lambda: clock[0])
    asked = []
    for _ in range(60):
        budget = controller.budget([0])[0]
        asked.append(budget > 0)
        tree = TokenTree.empty()
        if budget:
            clock[0] += 0.01  # a draft costs 40% of a plain step
            (tree,) = controller.select([0], [_chain([5000] * 4, 0.05)])
        controller.update([0], [tree], [Verdict(np.empty(0, np.int32), 1)], step_time_s=_cpu(1))
    assert sum(asked[10:]) <= 6
    assert any(asked[10:]), "it is tried again"


@pytest.mark.parametrize("is_told", [False, True])
def test_a_look_that_was_promised_takes_place(is_told: bool) -> None:
    """As the engine asks where steps overlap: once before the `update` of a step without drafts, and once after."""
    clock, asked, offers = [0.0], [], True
    controller = SpeedController(_known(_cpu), clock=lambda: clock[0])
    plain = [0], [TokenTree.empty()], [Verdict(np.empty(0, np.int32), 1)]
    for step in range(160):
        is_free = step > 0 and not any(controller.budget([0]))  # the next step begins behind the one under way
        if step:
            controller.update(*plain, step_time_s=_cpu(1))
        if is_free:
            if is_told and any(controller.watch([0])):  # until it is known to be too dear for that
                clock[0] += 0.01
                controller.select([], [])
            asked.append(False)
            continue
        budget = controller.budget([0])[0]
        asked.append(budget > 0)
        if budget:
            clock[0] += 0.01
            offers = not offers  # a look at which the drafter had nothing to say was a look all the same
            trees = controller.select([0], [_chain([5000] * 4, 0.05)]) if offers else controller.select([], [])
            assert not any(tree.num_nodes for tree in trees)
    assert asked[0] is False
    assert any(asked[:12])
    looks = np.flatnonzero(asked[20:])
    assert len(looks) >= 3
    assert set(np.diff(looks).tolist()) <= {12, 13, 23, 24, 45, 46}


def test_the_report_names_steps_acceptance_and_costs() -> None:
    controller = _free(_known(_cpu))
    _decode(controller, _cpu, [(100, 0.9)])
    report = controller.report()
    assert "speculated in" in report
    assert "drafter 0: accepted per depth" in report
    assert "forward, ms by rows: 1:" in report
    controller.close(0)
    controller.close(0)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="FixedBudget"):
        SpeedController(max_nodes=0)
    with pytest.raises(ValueError, match="margin"):
        SpeedController(margin=-0.1)
