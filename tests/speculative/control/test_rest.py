"""Where steps overlap, asking drafters has a price of its own; SpeedController knows it, and asks only where it pays.

On a GPU a step for which nobody is asked starts behind the one before; here its order of calls and its costs are
modelled, so that no GPU is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from infercore.speculative import Controller, CostCurve, FixedBudget, SpeedController, TokenTree, verify_greedy
from infercore.speculative.control.rest import Kind, Rest
from infercore.speculative.control.survival import Survival

WIDTH = 8


@dataclass
class Machine:
    """Seconds of a step by what it is, and of a draft; the clock that the controller sees."""

    rest: float = 0.00106
    after_draft: float = 0.0012
    asked: float = 0.0013
    by_row: float = 0.000003
    draft: float = 0.00005
    not_hidden: float = 0.0  # of what watching costs
    now: float = 0.0
    draft_calls: int = 0

    def clock(self) -> float:
        return self.now


@dataclass
class History:
    seconds: list[float] = field(default_factory=list)
    gained: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    asked: list[bool] = field(default_factory=list)
    watched: list[bool] = field(default_factory=list)

    @property
    def speed(self) -> float:
        return sum(self.gained) / sum(self.seconds)


def _decode(
    controller: Controller,
    machine: Machine,
    chance: Callable[[int], float],
    *,
    steps: int,
    batch: int = 1,
    change: Callable[[int, Machine], None] = lambda step, machine: None,
    overlaps: bool = True,
    seed: int = 0,
) -> History:
    """Some steps in the order of the engine: chains whose tokens are each right with `chance` of the step."""
    rng, noise = np.random.default_rng(seed), np.random.default_rng(100 + seed)
    ids, history = list(range(batch)), History()
    empty = [TokenTree.empty()] * batch

    def draft(step: int, budgets: list[int]) -> list[TokenTree]:
        machine.now += machine.draft
        machine.draft_calls += 1
        trees = []
        for budget in budgets:
            tokens = np.where(rng.random(min(WIDTH, budget)) < chance(step), 1, 5)
            depths = np.arange(1, len(tokens) + 1)
            scores = (0.7**depths).astype(np.float32)
            trees.append(TokenTree(tokens.astype(np.int32), (depths - 2).astype(np.int32), None, scores))
        return trees

    def depart(step: int) -> tuple[list[TokenTree], bool]:
        budgets = controller.budget(ids)
        if not any(budgets):
            return empty, False
        return controller.select(ids, draft(step, budgets)), True

    (trees, was_asked), is_behind = depart(0), False
    was_watched = False
    for step in range(steps):
        change(step, machine)
        num_nodes = sum(tree.num_nodes for tree in trees)
        follows = overlaps and not num_nodes and not any(controller.budget(ids))
        verdicts = verify_greedy(trees, [np.ones(tree.num_nodes + 1, np.int64) for tree in trees])
        if was_asked:
            seconds = machine.asked + machine.by_row * (batch + num_nodes)
        else:
            seconds = machine.rest + was_watched * machine.not_hidden if is_behind else machine.after_draft
        controller.update(ids, trees, verdicts, step_time_s=seconds * noise.lognormal(0, 0.05))
        history.seconds.append(seconds)
        history.gained.append(sum(verdict.accept_length for verdict in verdicts))
        history.nodes.append(num_nodes)
        history.asked.append(was_asked)
        history.watched.append(was_watched)
        was_watched = False
        if follows:
            trees, was_asked, is_behind = empty, False, True
            watched = controller.watch(ids)
            if any(watched):
                controller.select(ids, draft(step + 1, watched))
                was_watched = True
        else:
            (trees, was_asked), is_behind = depart(step + 1), False
    return history


def _controller(machine: Machine, curve: CostCurve | None = None) -> SpeedController:
    return SpeedController(curve, clock=machine.clock)


def _known(by_row: float, one: float) -> CostCurve:
    curve = CostCurve()
    for rows in (1, 2, 4, 8, 16, 32, 64):
        for _ in range(5):
            curve.observe(rows, one + by_row * rows)
    return curve


EIGHT = {"rest": 0.0011, "after_draft": 0.00125, "asked": 0.00155, "by_row": 0.000006}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("curve", [None, _known(0.000006, 0.0009)], ids=["learnt", "measured too low"])
def test_drafts_that_would_pay_but_for_the_price_of_asking_are_left(curve: CostCurve | None, seed: int) -> None:
    """Two tokens of five right: 16 rows more cost 6% of a step, so they seem worth 1.4; the step itself costs 45%."""
    machine = Machine(**EIGHT)
    run = _decode(_controller(machine, curve), machine, lambda step: 0.22, steps=1200, batch=8, seed=seed)
    plain = _decode(FixedBudget(0), Machine(**EIGHT), lambda step: 0.22, steps=100, batch=8)
    always = _decode(FixedBudget(8), Machine(**EIGHT), lambda step: 0.22, steps=100, batch=8)
    assert always.speed < 0.85 * plain.speed
    assert run.speed >= 0.985 * plain.speed
    assert sum(run.asked[50:]) < 0.03 * len(run.asked)


def test_drafts_that_pay_are_asked_for_at_once_and_nearly_always() -> None:
    machine = Machine(**EIGHT)
    run = _decode(_controller(machine), machine, lambda step: 0.8, steps=600, batch=8)
    always = _decode(FixedBudget(8), Machine(**EIGHT), lambda step: 0.8, steps=300, batch=8)
    assert np.mean(run.asked[10:]) > 0.95, "all but a few that are taken for the time of a step without"
    assert run.speed > 0.97 * always.speed


@pytest.mark.parametrize("seed", range(4))
def test_off_and_on_again_without_a_look(seed: int) -> None:
    machine = Machine()
    run = _decode(_controller(machine), machine, lambda step: 0.0 if 200 <= step < 400 else 0.8, steps=500, seed=seed)
    assert not any(run.asked[220:396]), "off within 20 steps, and nobody is asked to look"
    assert np.argmax(run.nodes[400:]) <= 12
    assert np.mean(run.watched[225:396]) > 0.9, "drafts are made while the device works"
    bad = sum(run.seconds[200:400]) / sum(run.gained[200:400])
    assert bad <= 1.025 * machine.rest


def test_dear_drafts_are_not_watched_but_looked_for() -> None:
    machine = Machine(draft=0.0008, asked=0.0021)
    run = _decode(_controller(machine), machine, lambda step: 0.0 if step < 300 else 0.9, steps=900)
    assert not any(run.watched[40:300])
    looks = np.flatnonzero(run.asked[60:300])
    assert set(np.diff(looks).tolist()) <= {12, 13, 23, 24, 45, 46}, "less and less often"
    assert len(looks) >= 5
    assert np.mean(np.array(run.nodes[800:]) > 0) > 0.9, "each look teaches a little"


def test_a_price_that_was_too_high_for_a_while_is_looked_at_again() -> None:
    """The steps with drafts are slow for a while: the rest that follows knows nothing of when that has ended."""

    def change(step: int, machine: Machine) -> None:
        machine.asked = 0.008 if 100 <= step < 160 else 0.0013

    machine = Machine()
    run = _decode(_controller(machine), machine, lambda step: 0.8, steps=900, change=change)
    assert not any(run.asked[150:250])
    assert np.mean(np.array(run.nodes[700:]) > 0) > 0.9


def test_what_a_step_without_drafts_takes_is_measured_again() -> None:
    """Rests become cheap while speculation goes on, by a little more than plain decoding at first."""

    def change(step: int, machine: Machine) -> None:
        machine.rest = 0.00125 if step < 100 else 0.0007

    machine = Machine()
    run = _decode(_controller(machine), machine, lambda step: 0.3, steps=700, change=change)
    assert np.mean(run.asked[20:100]) > 0.8
    assert np.mean(run.asked[500:]) < 0.05


class Credulous(Survival):
    """Believes what a drafter claims, whatever comes of it."""

    def chances_into(self, tree: TokenTree, out: np.ndarray) -> float:
        assert tree.scores is not None
        out[:] = tree.scores
        return float(out[tree.parents < 0].sum())


def test_promises_that_are_not_kept_count_for_less() -> None:
    """Claimed are 3.2 tokens a turn, which would pay; 1.7 come, which do not."""
    machine = Machine(**EIGHT)
    controller = _controller(machine)
    controller.survival = Credulous()
    run = _decode(controller, machine, lambda step: 0.4, steps=500, batch=8)
    assert np.mean(run.asked[100:]) < 0.3
    controller.survival, machine = Credulous(), Machine(**EIGHT)
    run = _decode(controller, machine, lambda step: 0.7, steps=300, batch=8)
    assert np.mean(run.asked[200:]) > 0.9, "and once they are kept, for more again"


@pytest.mark.parametrize(("rest_s", "num_nodes"), [(0.01, 1), (0.005, 0)])
def test_steps_that_overlap_raise_the_price_of_time(rest_s: float, num_nodes: int) -> None:
    """One node, right with 0.5, for 0.3 of a step more: a gain at one token a step, a loss at two."""
    controller = SpeedController(_known(0.003, 0.007), clock=lambda: 0.0)
    controller.survival = Credulous()
    empty, verdicts = [TokenTree.empty()], verify_greedy([TokenTree.empty()], [np.array([1])])
    for _ in range(200):
        controller.watch([0])
        controller.update([0], empty, verdicts, step_time_s=rest_s)
    controller.budget([0])
    tree = TokenTree.of([3], [-1], scores=[0.5])
    assert controller.select([0], [tree])[0].num_nodes == num_nodes


def test_a_look_decides_by_itself() -> None:
    """What drafts promised at the looks before it is old."""
    machine = Machine(draft=0.0008, asked=0.0021)
    controller = _controller(machine)
    controller.survival = Credulous()
    run = _decode(controller, machine, lambda step: 0.0 if step < 200 else 1.0, steps=500)
    assert not any(run.nodes[60:200])
    assert np.mean(np.array(run.nodes[200 + 2 * 46 :]) > 0) > 0.9, "a look that was right for once, and one that counts"


def test_a_step_beside_a_prompt_brings_no_rest() -> None:
    """Its size was never seen without drafts, and will not come again soon."""
    machine, asked = Machine(), []
    controller = _controller(machine)
    run = _decode(controller, machine, lambda step: 0.45, steps=60)
    assert all(run.asked[50:])
    for step in range(30):
        other_rows = 300 if step % 3 == 0 else 0
        budget = controller.budget([0], num_other_rows=other_rows)[0]
        asked.append(budget > 0)
        (tree,) = controller.select([0], [TokenTree.chain([1] * budget)]) if budget else (TokenTree.empty(),)
        rows = 1 + other_rows + tree.num_nodes
        (verdict,) = verify_greedy([tree], [np.array([1] + [5] * tree.num_nodes)])
        seconds = machine.asked + machine.by_row * rows
        controller.update([0], [tree], [verdict], step_time_s=seconds, num_other_rows=other_rows)
    assert asked == [False] + [True] * 29, "what such a step costs is learnt first"


def test_where_steps_do_not_overlap_drafts_go_on_being_judged() -> None:
    machine = Machine(rest=0.03, after_draft=0.03, asked=0.03, by_row=0.0)
    controller = _controller(machine)
    run = _decode(controller, machine, lambda step: 0.0 if step < 100 else 0.8, steps=150, overlaps=False)
    assert run.asked[:3] == [False, True, True]
    assert all(run.asked[1:])
    assert not any(run.nodes[30:100])
    assert np.argmax(run.nodes[100:]) < 5
    assert "overlap" not in controller.report()


def test_the_report_says_what_overlapped_steps_take() -> None:
    machine = Machine()
    controller = _controller(machine)
    _decode(controller, machine, lambda step: 0.0, steps=60)
    assert "steps without drafts that overlap, ms by rows: 1: 1.0" in controller.report()


# --------------------------------------------------------------------------------------------------------- the record


def test_a_size_that_was_never_seen_is_what_the_nearest_one_says_of_the_curve() -> None:
    rest, curve = Rest(), _known(0.001, 0.01)
    assert rest.seconds(1, curve) == curve.step(1)
    rest.start_behind()
    for seconds in (0.006, 0.1, 0.006):  # one hiccup
        rest.count(Kind.BEHIND, 4, seconds)
    assert rest.seconds(4, curve) == rest.seconds(5, curve) == 0.006
    assert rest.seconds(16, curve) == pytest.approx(0.006 * curve.step(16) / curve.step(4))
    assert rest.table() == {4: 0.006}
    for _ in range(2):
        rest.count(Kind.ALONE, 4, 0.014)
    assert rest.seconds(4, curve) == curve.step(4), "two steps that could have overlapped did not"


def test_a_rest_ends_by_a_step_that_asks_and_not_by_the_count() -> None:
    rest = Rest()
    assert not rest.is_over
    rest.count(Kind.ALONE, 1, 0.01)
    assert rest.is_over
    rest.begin()
    for _ in range(11):
        assert not rest.is_over
        rest.count(Kind.ALONE, 1, 0.01)
    for _ in range(5):
        assert rest.is_over
        rest.count(Kind.ALONE, 1, 0.01)
    rest.begin()
    for _ in range(200):
        assert not rest.is_over
        rest.count(Kind.WATCHED, 1, 0.01)
    assert rest.is_over


def test_a_rest_is_due_for_its_time_where_that_decides() -> None:
    rest = Rest()
    rest.measure_if_due(1, 1.1)
    rest.count(Kind.ALONE, 1, 0.01)
    assert rest.is_over, "steps that do not overlap have no time of their own"
    rest.start_behind()
    for _ in range(4):
        assert not rest.is_over
        assert not rest.may_watch(1), "their time is being taken"
        rest.count(Kind.BEHIND, 1, 0.01)
    assert rest.is_over
    assert rest.may_watch(1)
    rest.measure_if_due(1, 1.1)
    assert rest.is_over, "known"
    rest.measure_if_due(8, 3.5)
    assert rest.is_over, "not known, but drafts pay in any case"
    rest.measure_if_due(8, 2.9)
    assert not rest.is_over
    for _ in range(5):
        rest.count(Kind.BEHIND, 8, 0.01)
    for age in (25, 100, 400, 400):
        for _ in range(age):
            assert rest.is_over
            rest.measure_if_due(8, 1.4)
            rest.count(Kind.ASKED, 8, 0.01)
        rest.measure_if_due(8, 1.4)
        assert not rest.is_over, "measured long ago"
        for _ in range(5):
            rest.count(Kind.BEHIND, 8, 0.01)


@pytest.mark.parametrize("seed", range(3))
def test_a_slow_beginning_does_not_make_drafts_look_good(seed: int) -> None:
    """The first steps load code, or others use the machine: steps without drafts seem to take three times as long."""

    def change(step: int, machine: Machine) -> None:
        machine.rest = 0.0038 if step < 12 else 0.0011

    machine = Machine(**EIGHT)
    run = _decode(_controller(machine), machine, lambda step: 0.22, steps=400, batch=8, change=change, seed=seed)
    assert np.mean(run.asked[100:]) < 0.05


def test_watching_that_is_not_hidden_is_left() -> None:
    machine = Machine(**EIGHT, not_hidden=0.0007)
    run = _decode(_controller(machine), machine, lambda step: 0.1, steps=600, batch=8)
    assert sum(run.watched) < 40
    assert run.speed > 0.97 * 8 / machine.rest
