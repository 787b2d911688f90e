"""How near does the controller come to the best fixed tree of each task group, at the step costs of two cores?

    python bench/speculative_controller.py [--save]     no model: recorded traces, modelled step times; half a minute

Traces are those of `python bench/speculative.py record`. 240 questions make four runs of 60, ten of each group, each
run with empty tables. A drafter's tree depends on the text alone, so it is made once for every position. A step over n
rows behind c tokens costs base(n) + slope(n) * c, fitted to 18 sizes and three contexts of SmolLM2 on two cores of an
EPYC; what rows cost beyond one is scaled by a factor of its own in every question (spread 0.25), and what the
controller is told has 6% noise by question, 6% by step, and is doubled in one step of fifty. The controller pays 0.4 ms
a step more.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from infercore.speculative import Controller, CostCurve, DraftRequest, SpeedController, TokenTree, verify_greedy
from speculative import DRAFTERS, add_common_arguments, commit, follow, group_of, questions, show, traces

RUN = 60
BUDGETS = (4, 8, 16, 32)
GROUPS = ("all", "math_reasoning", "mt_bench", "qa", "rag", "summarization", "translation")
CONTEXTS = np.array([64, 256, 640])
ROWS = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 17, 20, 24, 32, 33])
MS = np.array(  # medians of eight steps each, sizes taking turns, 2026-11-25
    [
        [33.93, 35.01, 36.57, 37.78, 38.57, 40.96, 43.49, 44.63, 49.37,
         49.82, 53.18, 54.46, 56.07, 58.66, 63.14, 68.9, 85.39, 87.62],
        [39.43, 38.22, 38.09, 42.61, 43.9, 46.32, 48.01, 47.58, 52.78,
         54.16, 62.05, 64.32, 63.24, 67.49, 66.65, 75.99, 91.92, 98.26],
        [38.97, 40.68, 43.69, 44.84, 48.43, 49.75, 53.66, 56.1, 60.2,
         61.58, 68.32, 70.61, 74.81, 73.65, 80.21, 87.13, 107.66, 113.42],
    ]
)  # fmt: skip
SLOPES = np.polyval(np.polyfit(ROWS, np.polyfit(CONTEXTS, MS, 1)[0], 1), ROWS) / 1e3  # by the row, as attention costs
BASES = MS.mean(0) / 1e3 - SLOPES * CONTEXTS.mean()
HOST_S = 0.0004


def cost(num_rows: int, context: int) -> float:
    return float(np.interp(num_rows, ROWS, BASES + SLOPES * context))


def measured_curve() -> CostCurve:
    """What `engine.cost_curve()` would have measured, at its context of 256."""
    curve = CostCurve()
    for num_rows in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
        for _ in range(5):
            curve.observe(num_rows, cost(num_rows, 256))
    return curve


class Question:
    """A recorded question, and what the drafter proposes at each position of its output."""

    def __init__(self, trace: dict[str, Any], number: int, drafter: Any, budget: int, new_tokens: int) -> None:
        prompt = np.array(trace["prompt_ids"], np.int32)
        tops = np.array(trace["top_ids"], np.int32)
        self.text = np.concatenate([prompt, np.array(trace["output_ids"][:new_tokens], np.int32)])
        self.number, self.group, self.num_prompt = number, group_of(trace["category"]), len(prompt)
        self.trees: list[TokenTree] = []
        drafter.observe(prompt[-1:], tops[:1])
        for length in range(len(prompt) + 1, len(self.text)):
            (tree,) = drafter.propose([DraftRequest(number, self.text[:length], budget)])
            if tree.num_nodes:
                tree = tree.truncate(tree.depths < len(self.text) - length)
            self.trees.append(tree)
            drafter.commit(number, self.text[length : length + 1])
            drafter.observe(self.text[length - 1 : length], tops[length - len(prompt) :][:1])
        drafter.close(number)


def decode(
    some: list[Question], controller: Controller | None, steepness: np.ndarray, *, seed: int, speculates: bool = True
) -> dict[str, float]:
    """Seconds per group. Without a controller every tree is verified whole."""
    rng = np.random.default_rng(seed)
    seconds: dict[str, float] = defaultdict(float)
    for question in some:
        length, luck = question.num_prompt + 1, rng.lognormal(0, 0.06)
        while length < len(question.text):
            tree = TokenTree.empty()
            if speculates and len(question.text) - length > 1:
                if controller is None or controller.budget([question.number])[0]:
                    tree = question.trees[length - question.num_prompt - 1]
                if controller is not None and tree.num_nodes:
                    (tree,) = controller.select([question.number], [tree])
            (verdict,) = verify_greedy([tree], [follow(tree, question.text[length:])])
            least = cost(1, length)
            step = least + steepness[question.number] * (cost(1 + tree.num_nodes, length) - least)
            if controller is not None:
                told = step * luck * rng.lognormal(0, 0.06) * (1 if rng.random() > 0.02 else 2)
                controller.update([question.number], [tree], [verdict], step_time_s=told)
                step += HOST_S
            for group in (question.group, "all"):
                seconds[group] += step
            length += verdict.accept_length
        if controller is not None:
            controller.close(question.number)
    return seconds


def table(recorded: list[dict[str, Any]], new_tokens: int) -> str:
    runs = []
    for start in range(0, len(recorded) - RUN + 1, RUN):
        by_budget = {}
        for budget in BUDGETS:
            drafter = DRAFTERS["suffix + recycling"]()
            by_budget[budget] = [
                Question(trace, number, drafter, budget, new_tokens)
                for number, trace in enumerate(recorded[start : start + RUN])
            ]
        runs.append(by_budget)
    controllers = {
        "controller, curve measured": lambda: SpeedController(measured_curve(), clock=lambda: 0.0),
        "controller, curve learnt": lambda: SpeedController(clock=lambda: 0.0),
    }
    over_plain: dict[str, list[list[float]]] = defaultdict(list)
    relative: dict[str, list[list[float]]] = defaultdict(list)
    for by_budget in runs:
        for seed in range(3):
            steepness = np.random.default_rng(100 + seed).lognormal(0.1, 0.25, RUN)
            plain = decode(by_budget[32], None, steepness, seed=seed, speculates=False)
            sides = {f"fixed {budget}": decode(by_budget[budget], None, steepness, seed=seed) for budget in BUDGETS}
            best = {group: min(plain[group], *(side[group] for side in sides.values())) for group in GROUPS}
            for name, make in controllers.items():
                sides[name] = decode(by_budget[32], make(), steepness, seed=seed)
                relative[name].append([best[group] / sides[name][group] for group in GROUPS])
            for name, side in sides.items():
                over_plain[name].append([plain[group] / side[group] for group in GROUPS])
    lines = [
        f"commit {commit()} | no model: {len(recorded)} recorded questions in {len(runs)} runs, three draws of noise "
        f"each, {new_tokens} new tokens, suffix + recycling | times of decoding steps as modelled in "
        "`bench/speculative_controller.py`, no prefill",
        "",
        "| speed over plain, mean | " + " | ".join(GROUPS) + " |",
        "| --- " * (len(GROUPS) + 1) + "|",
    ]
    for name, rows in over_plain.items():
        lines.append(f"| {name} | " + " | ".join(f"{x:.3f}" for x in np.mean(rows, 0)) + " |")
    lines += [
        "",
        "| relative to the best fixed size (0, 4, 8, 16, 32) of the group, mean (least) | " + " | ".join(GROUPS),
    ]
    lines[-1] += " | worst group, mean of runs | below 0.95 |"
    lines.append("| --- " * (len(GROUPS) + 3) + "|")
    for name, rows in relative.items():
        of_groups = np.array(rows)
        cells = [f"{m:.3f} ({w:.3f})" for m, w in zip(of_groups.mean(0), of_groups.min(0), strict=True)]
        below = int((of_groups[:, 1:] < 0.95).sum())
        worst = of_groups[:, 1:].min(1).mean()
        lines.append(f"| {name} | {' | '.join(cells)} | {worst:.3f} | {below} of {of_groups[:, 1:].size} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    arguments = parser.parse_args()
    show(table(recorded(arguments.traces), arguments.new_tokens), "speculative_controller.md", arguments)


def recorded(path: Path) -> list[dict[str, Any]]:
    """Traces in the order of `stratified`."""
    place = {question["question_id"]: index for index, question in enumerate(stratified())}
    return sorted(traces(path), key=lambda trace: place[trace["question_id"]])


def stratified() -> list[dict[str, Any]]:
    """One of each task group in turn."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for question in questions():
        groups[group_of(question["category"])].append(question)
    return [question for turn in zip(*groups.values(), strict=True) for question in turn]


if __name__ == "__main__":
    main()
