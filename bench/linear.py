"""How long do the products of a few rows with all weights of SmolLM2-135M take, by our loops and by torch?

    python bench/linear.py [--threads 2] [--save]

Random weights of the model's shapes, float32, 538 MB in all, so that every product reads from memory. Ours and torch's
take turns on every matrix; outputs are compared first.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from infercore.kernels.linear import awake, linear
from speculative import commit, machine

SHAPES = {(576, 576): 60, (192, 576): 60, (1536, 576): 60, (576, 1536): 30, (49152, 576): 1}
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, torch.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--save", action="store_true", help="also write bench/results/linear.md")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    weights = {s: [torch.randn(s, generator=generator) for _ in range(count)] for s, count in SHAPES.items()}
    lines = [
        f"machine: {machine()} | torch {torch.__version__} | commit {commit()} | float32, median of {arguments.rounds} "
        "rounds (p20-p80), ms for one pass over all weights",
        "",
        "| threads | rows | torch | infercore | torch / infercore |",
        "| --- | --- | --- | --- | --- |",
    ]
    with torch.inference_mode():
        for threads in dict.fromkeys(arguments.threads):
            for num_rows in ROWS:
                theirs, ours = measure(weights, num_rows, threads, arguments.rounds)
                cells = (
                    f"{np.median(t):.1f} ({np.quantile(t, 0.2):.1f}-{np.quantile(t, 0.8):.1f})" for t in (theirs, ours)
                )
                lines.append(
                    f"| {threads} | {num_rows} | {' | '.join(cells)} | {np.median(theirs) / np.median(ours):.2f} |"
                )
                print(lines[-1], flush=True)
    text = "\n".join(lines)
    print(text)
    if arguments.save:
        (Path(__file__).parent / "results" / "linear.md").write_text(text + "\n")


def measure(
    weights: dict[tuple[int, int], list[torch.Tensor]], num_rows: int, threads: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Milliseconds per pass, one entry a round; passes take turns."""
    inputs = {shape: torch.randn(num_rows, shape[1]) for shape in weights}
    for shape, some in weights.items():
        found, expected = linear(inputs[shape], some[0], impl="cpu"), F.linear(inputs[shape], some[0])
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    theirs, ours = [], []
    for _ in range(rounds + 1):
        torch.set_num_threads(threads)
        start = time.perf_counter()
        for shape, some in weights.items():
            for weight in some:
                F.linear(inputs[shape], weight)
        theirs.append(1e3 * (time.perf_counter() - start))
        torch.set_num_threads(1)  # as the engine does, see infercore.hf.few_rows
        with awake(threads):
            start = time.perf_counter()
            for shape, some in weights.items():
                for weight in some:
                    linear(inputs[shape], weight, impl="cpu")
            ours.append(1e3 * (time.perf_counter() - start))
    return theirs[1:], ours[1:]


if __name__ == "__main__":
    main()
