"""How good is a head after how many minutes of training?

    python bench/eagle_curve.py head/work/log.jsonl [--save]     the log that `infercore train-eagle` keeps, as a table
                                                                 and a figure

The accept length is that of a chain of the head's likeliest tokens on held-out text, as deep as the training-time test;
trees gain more.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from speculative import commit

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--device", default="", help="what it was trained on, for the table's conditions")
    parser.add_argument(
        "--save", action="store_true", help="write eagle_curve.md and eagle_curve.svg to bench/results/"
    )
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.log.read_text(encoding="utf-8").splitlines()]
    text = table(lines, arguments.device)
    print(text)
    if arguments.save:
        (RESULTS / "eagle_curve.md").write_text(text + "\n", encoding="utf-8")
        draw(lines, RESULTS / "eagle_curve.svg")


def table(lines: list[dict[str, Any]], device: str) -> str:
    depth = len(lines[0]["accuracy"])
    rows = [
        f"trained on: {device or 'not said'} | commit {commit()} | accuracy by step, on held-out text",
        "",
        "| minutes | steps | loss | chain accept length | " + " | ".join(f"step {i + 1}" for i in range(depth)) + " |",
        "| --- " * (4 + depth) + "|",
    ]
    for line in lines:
        shares = " | ".join(f"{share:.3f}" for share in line["accuracy"])
        rows.append(
            f"| {line['minutes']:.1f} | {line['step']} | {line['loss']:.2f} | {line['accept_length']:.2f} | {shares} |"
        )
    return "\n".join(rows)


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "infercore"  # the same figure for the same log
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axes.plot([line["minutes"] for line in lines], [line["accept_length"] for line in lines], marker="o", markersize=3)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("tokens a forward, chain")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=1)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
