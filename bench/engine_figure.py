"""Draws where a decoding step's time goes, from the JSON that `bench/engine.py --save` writes beside its table.

python bench/engine_figure.py bench/results/engine.json bench/results/engine.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FLOOR_MS = 4.83  # the weights of the 8B shape, read once at 3.11 TB/s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path)
    parser.add_argument("image", type=Path)
    args = parser.parse_args()
    parts = json.loads(args.figures.read_text())
    kinds = [kind for kind in next(iter(parts.values())) if kind != "a step"]
    figure, axes = plt.subplots(figsize=(8, 2.6))
    for place, part in enumerate(parts.values()):
        left = 0.0
        for kind, colour in zip(kinds, ("#4c72b0", "#dd8452", "#55a868", "#c44e52"), strict=True):
            axes.barh(place, part[kind], left=left, color=colour, label=kind if place == 0 else None)
            left += part[kind]
    axes.axvline(FLOOR_MS, color="black", linestyle="--", linewidth=1, label="weights read once")
    axes.set_yticks(range(len(parts)), [f"batch {batch}" for batch in parts])
    axes.set_xlabel("milliseconds of a decoding step, 8B-shaped Llama, one H100")
    axes.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.45, 1.25), frameon=False, fontsize=8)
    figure.savefig(args.image, dpi=130, bbox_inches="tight")


if __name__ == "__main__":
    main()
