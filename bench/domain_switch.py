"""What does a stream cost whose drafts are accepted, then always rejected, then accepted again?

    python bench/domain_switch.py [--save]

No model: a drafter that is right with a known chance per stretch, steps that cost what a curve says (5% noise on what
the controller sees), and four ways to decide: plain, always 8 nodes, the controller, and an oracle that knows the
switches. Drafting is free. The curves are those of `docs/design/0010-system-cost-of-speculative-decoding.md`.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infercore.speculative import (
    Controller,
    FixedBudget,
    SpeedController,
    TokenTree,
    verify_greedy,
)

STRETCHES = [(600, 0.8), (600, 0.0), (600, 0.8)]  # tokens, chance that a draft token is right
WIDTH = 8
ROWS = [1, 2, 4, 8, 16, 32, 64]
CURVES = {
    "CPU, 2 cores": (0.025, [1, 1.70, 1.61, 1.65, 2.07, 2.75, 3.14]),
    "nearly flat (a GPU's)": (0.008, [1, 1.005, 1.01, 1.02, 1.04, 1.08, 1.14]),
}


@dataclass
class Step:
    position: int
    stretch: int
    num_nodes: int
    num_gained: int
    seconds: float


def decode(controller: Controller, cost: Callable[[int], float], *, is_oracle: bool = False) -> list[Step]:
    rng, noise = np.random.default_rng(0), np.random.default_rng(1)
    ends = np.cumsum([length for length, _ in STRETCHES])
    text = rng.integers(0, 1000, ends[-1] + 4 * WIDTH)
    steps: list[Step] = []
    position = 0
    while position < ends[-1]:
        stretch = int(np.searchsorted(ends, position, side="right"))
        chance = STRETCHES[stretch][1]
        budget = (WIDTH if chance else 0) if is_oracle else controller.budget([0])[0]
        draft = text[position : position + min(WIDTH, budget)].copy()
        draft[rng.random(len(draft)) >= chance] += 5000
        depths = np.arange(1, len(draft) + 1)
        tree = TokenTree(draft.astype(np.int32), (depths - 2).astype(np.int32), None, (0.8**depths).astype(np.float32))
        if tree.num_nodes and not is_oracle:
            (tree,) = controller.select([0], [tree])
        (verdict,) = verify_greedy([tree], [text[position : position + tree.num_nodes + 1]])
        seconds = cost(1 + tree.num_nodes)
        controller.update([0], [tree], [verdict], step_time_s=seconds * noise.lognormal(0, 0.05))
        steps.append(Step(position, stretch, tree.num_nodes, verdict.accept_length, seconds))
        position += verdict.accept_length
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write table and plot to bench/results/")
    arguments = parser.parse_args()
    lines = [
        "| curve | decided by | total, s | over the oracle | bad stretch over plain | steps until off | until on |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    histories: dict[str, dict[str, list[Step]]] = {}
    for name, (base, factors) in CURVES.items():
        cost = lambda rows, base=base, factors=factors: base * float(np.interp(rows, ROWS, factors))  # noqa: E731
        history = histories[name] = {
            "plain": decode(FixedBudget(0), cost),
            "always 8": decode(FixedBudget(WIDTH), cost),
            "controller": decode(SpeedController(clock=lambda: 0.0), cost),
            "oracle": decode(FixedBudget(WIDTH), cost, is_oracle=True),
        }
        oracle = sum(step.seconds for step in history["oracle"])
        for decider, steps in history.items():
            bad = [step for step in steps if step.stretch == 1]
            again = [step for step in steps if step.stretch == 2]
            off = next((i for i in range(len(bad)) if not any(s.num_nodes for s in bad[i : i + 20])), None)
            on = next((i for i, step in enumerate(again) if step.num_nodes), None)
            plain = cost(1) * sum(step.num_gained for step in bad)
            total = sum(step.seconds for step in steps)
            lines.append(
                f"| {name} | {decider} | {total:.2f} | {total / oracle:.3f} | "
                f"{sum(step.seconds for step in bad) / plain:.3f} | {'never' if off is None else off} | "
                f"{'never' if on is None else on} |"
            )
    table = "\n".join(lines)
    print(table)
    if arguments.save:
        folder = Path(__file__).parent / "results"
        (folder / "domain_switch.md").write_text(table + "\n")
        plot(histories["CPU, 2 cores"], folder / "domain_switch.svg")


def plot(history: dict[str, list[Step]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "domain_switch"
    from matplotlib import pyplot

    figure, (speed, nodes) = pyplot.subplots(2, 1, figsize=(8, 5), sharex=True)
    for decider, steps in history.items():
        elapsed = np.cumsum([step.seconds for step in steps])
        positions = np.array([step.position + step.num_gained for step in steps])
        speed.plot(positions, elapsed, label=decider, lw=1.2)
        if decider in ("controller", "oracle"):
            nodes.step([step.position for step in steps], [step.num_nodes for step in steps], label=decider, lw=0.9)
    speed.set_ylabel("seconds so far")
    nodes.set_ylabel("nodes verified in the step")
    nodes.set_xlabel("tokens generated")
    for axis in (speed, nodes):
        for boundary in np.cumsum([length for length, _ in STRETCHES])[:-1]:
            axis.axvline(boundary, color="grey", lw=0.6, ls=":")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
