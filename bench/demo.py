"""How long do the demo's four scenes take beside Hugging Face `generate`, on SmolLM2-135M-Instruct?

python bench/demo.py --rounds 3 --save
"""

import argparse
import datetime
import subprocess
from pathlib import Path

from infercore.demo.play import Performance, play
from infercore.demo.report import agreement

RESULTS = Path(__file__).parent / "results" / "demo.md"
HEADER = "| scene | side | s | forwards | rows | reused | forced | accepted | speed-up | tokens |"


def main() -> None:
    """Play, print the table, and write it where `--save` asks for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    performance = play(rounds=options.rounds, progress=lambda what, fraction: None)
    text = as_markdown(performance)
    print(text)
    if options.save:
        RESULTS.write_text(text, encoding="utf-8")


def as_markdown(performance: Performance) -> str:
    """The table with the conditions it was measured under."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True, cwd=RESULTS.parent).stdout.strip()
    conditions = " | ".join(f"{name} {value}" for name, value in performance.environment.items())
    lines = [
        "# The demo's scenes beside Hugging Face generate",
        "",
        f"`python bench/demo.py --rounds {performance.rounds} --save`, {datetime.date.today()}",
        "",
        f"{performance.model} | {conditions} | commit {commit} | greedy | best of {performance.rounds} rounds",
        "",
        "Rows are tokens that went through the model. The speed-up is over the fastest way of calling `generate`.",
        "Every scene starts from empty caches but the last, where both sides keep what the scenes before left.",
        "",
        HEADER,
        "|" + " --- |" * HEADER.count(" | ") + " --- |",
    ]
    for scene in performance.scenes:
        for side in [*scene.peers, scene.ours]:
            is_ours = side is scene.ours
            counts = side.counts
            cells = [
                scene.name,
                side.name,
                f"{side.seconds:.2f}",
                *map(str, (side.num_forwards, side.num_rows)),
                *map(str, (counts.num_reused, counts.num_forced, counts.num_accepted)),
                f"{scene.speedup:.2f}x" if is_ours else "",
                agreement(scene) if is_ours else str(sum(map(len, side.outputs))),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
