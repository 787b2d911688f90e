"""What does the controller make of drafts where steps overlap, as on a GPU, and to ask for drafts costs by itself?

    python bench/speculative_overlapped.py [--save]     no model: recorded traces, modelled step times; a minute

Traces are those of `python bench/speculative.py record`, in the order that brings one task group after another, from
empty tables. As many requests as the batch holds run at once; when one ends the next comes, without its prompt. Steps
are taken in the engine's order (`budget` is asked ahead, `watch` is told of a step that began behind another) and cost
what `bench/domain_switch.py` says of SmolLM2 on an H100, or what an 8B shape does there: see `COSTS`. What the
controller is told has 4% noise; the first figure of four draws of it is the mean, the second the least.
"""

import argparse
from dataclasses import dataclass

import numpy as np

from domain_switch import EIGHT_STREAMS, ONE_STREAM, Overlapped
from infercore.speculative import Controller, FixedBudget, SpeedController, SuffixDrafter, TokenTree, verify_greedy
from speculative import DRAFTERS, add_common_arguments, commit, follow, show
from speculative_controller import Question, recorded

WIDTH = 16
SEEDS = 4
COSTS = {
    "SmolLM2, batch 8": (EIGHT_STREAMS, 8),
    "SmolLM2, batch 8, the host slower": (Overlapped(0.0011, 0.00125, 0.00172, 0.000004), 8),
    "SmolLM2, batch 1": (ONE_STREAM, 1),
    "8B shape, batch 8": (Overlapped(0.0061, 0.0062, 0.0063, 0.00001), 8),
}
EMPTY = TokenTree.empty()


@dataclass
class Running:
    question: Question
    length: int

    def tree(self, budget: int) -> TokenTree:
        if budget <= 0 or len(self.question.text) - self.length <= 1:
            return EMPTY
        return self.question.trees[self.length - self.question.num_prompt - 1]


class Batch:
    """Requests that run at once; a drafter has a word to say of each of them, or none."""

    def __init__(self, some: list[Question], size: int) -> None:
        self.waiting, self.size = list(some), size
        self.running: list[Running] = []
        self.admit()

    @property
    def ids(self) -> list[int]:
        return [one.question.number for one in self.running]

    def admit(self) -> bool:
        """Whether anyone came."""
        count = min(self.size - len(self.running), len(self.waiting))
        for _ in range(count):
            question = self.waiting.pop(0)
            self.running.append(Running(question, question.num_prompt + 1))
        return count > 0

    def ask(self, controller: Controller, budgets: list[int]) -> dict[int, TokenTree]:
        """What is to be verified of what drafters say."""
        offered = {one.question.number: one.tree(budget) for one, budget in zip(self.running, budgets, strict=True)}
        offered = {number: tree for number, tree in offered.items() if tree.num_nodes}
        return dict(zip(offered, controller.select(list(offered), list(offered.values())), strict=True))


@dataclass
class Outcome:
    seconds: float = 0.0
    gained: int = 0
    turns: int = 0
    steps: int = 0
    asked: int = 0

    @property
    def speed(self) -> float:
        return self.gained / self.seconds


def decode(some: list[Question], controller: Controller, cost: Overlapped, size: int, *, seed: int) -> Outcome:
    noise, batch, outcome = np.random.default_rng(seed), Batch(some, size), Outcome()

    def depart() -> tuple[dict[int, TokenTree], bool]:
        budgets = controller.budget(batch.ids)
        return (batch.ask(controller, budgets), True) if any(budgets) else ({}, False)

    (drafts, was_asked), is_behind = depart(), False
    while batch.running:
        ids = batch.ids
        trees = [drafts.get(number, EMPTY) for number in ids]
        num_nodes = sum(tree.num_nodes for tree in trees)
        follows = not num_nodes and not any(controller.budget(ids))
        rest = [follow(t, one.question.text[one.length :]) for t, one in zip(trees, batch.running, strict=True)]
        verdicts = verify_greedy(trees, rest)
        seconds = cost.seconds(len(ids) + num_nodes, was_asked=was_asked, is_behind=is_behind)
        controller.update(ids, trees, verdicts, step_time_s=seconds * noise.lognormal(0, 0.04))
        outcome.seconds += seconds
        outcome.steps += 1
        outcome.asked += was_asked
        for one, verdict in zip(list(batch.running), verdicts, strict=True):
            one.length += verdict.accept_length
            outcome.gained += verdict.accept_length
            outcome.turns += 1
            if one.length >= len(one.question.text):
                batch.running.remove(one)
                controller.close(one.question.number)
        came = batch.admit()
        if follows and not came:
            watched = controller.watch(batch.ids)
            if any(watched):
                batch.ask(controller, watched)
            (drafts, was_asked), is_behind = ({}, False), True
        elif batch.running:
            (drafts, was_asked), is_behind = depart(), False
    return outcome


class Deaf(SuffixDrafter):
    """Learns from text alone."""

    def observe(self, *_: object) -> None: ...


def table(some: list[Question], name: str) -> list[str]:
    lines = []
    for conditions, (cost, size) in COSTS.items():
        plain = decode(some, FixedBudget(0), cost, size, seed=0)
        fixed = decode(some, FixedBudget(WIDTH), cost, size, seed=0)
        runs = [
            decode(some, SpeedController(max_nodes=WIDTH, clock=lambda: 0.0), cost, size, seed=i) for i in range(SEEDS)
        ]
        speeds = [run.speed / plain.speed for run in runs]
        accept = np.mean([run.gained / run.turns for run in runs])
        asked = np.mean([run.asked / run.steps for run in runs])
        lines.append(
            f"| {conditions} | {name} | {len(some)} | {fixed.gained / fixed.turns:.2f} | "
            f"{fixed.speed / plain.speed:.3f} | {np.mean(speeds):.3f} ({min(speeds):.3f}) | {accept:.2f} | "
            f"{asked:.2f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    arguments = parser.parse_args()
    lines = [
        f"commit {commit()} | no model: recorded questions from empty tables, {arguments.new_tokens} new tokens, at "
        f"most {WIDTH} nodes, curve learnt | steps that overlap, modelled in `bench/speculative_overlapped.py`",
        "",
        f"| steps cost as of | drafter | questions | accept length, always {WIDTH} | over plain, always {WIDTH} | over "
        "plain, controller | accept length | steps with drafts |",
        "| --- " * 8 + "|",
    ]
    first = recorded(arguments.traces)[:160]
    for name, make in (("suffix", Deaf), ("suffix + recycling", DRAFTERS["suffix + recycling"])):
        drafter = make()
        some = [Question(t, i, drafter, WIDTH, arguments.new_tokens) for i, t in enumerate(first)]
        for count in (16, 32, 160):
            lines += table(some[:count], name)
    show("\n".join(lines), "speculative_overlapped.md", arguments)


if __name__ == "__main__":
    main()
