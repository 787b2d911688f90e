"""How much host time does a step of the engine take outside the model's forward?

A tiny model with SmolLM2's vocabulary decodes greedily on the CPU at batch 1 and 32, plain, with a grammar-free draft
tree, and with sampling. Operations over `[rows, vocab]` tensors (argmax, softmax, verification) and drafting are listed
apart: they are work that any sampler has.

    python bench/overhead.py [--save]
"""

import argparse
import platform
import statistics
import subprocess
import time
from pathlib import Path

import torch
import transformers

from infercore.hf import Engine
from infercore.speculative import NGramDrafter

VOCAB = 49_152
TARGET_MS = {1: 0.5, 32: 2.0}


def tiny_model() -> transformers.PreTrainedModel:
    """Two layers, so that the forward is short and its own host time does not hide ours."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def measure(engine: Engine, batch: int, rounds: int, **options) -> dict[str, list[float]]:
    """Milliseconds per step of `rounds` runs of 100 decoding steps each, after one run to warm up."""
    generator = torch.Generator().manual_seed(1)
    columns: dict[str, list[float]] = {"overhead": [], "rows x vocab": [], "drafting": [], "forward": [], "step": []}
    for round_ in range(rounds + 1):
        prompts = torch.randint(3, VOCAB, (batch, 64), generator=generator).tolist()
        handles = [engine.submit(engine.request(p, max_new_tokens=101, **options))[0] for p in prompts]
        while any(h._state.num_output == 0 for h in handles):
            engine.step()
        engine.stats.reset()
        while engine.num_unfinished:
            engine.step()
        stats = engine.stats
        if round_:
            times_s = (
                stats.overhead_s,
                stats.choose_time_s,
                stats.draft_time_s,
                stats.forward_time_s,
                stats.step_time_s,
            )
            for column, seconds in zip(columns.values(), times_s, strict=True):
                column.append(seconds / stats.num_forwards * 1e3)
    return columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="also write bench/results/overhead.md")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [header(args.rounds), "", "| batch | what | " + " | ".join(
        f"{c} ms (min-max)" for c in ("overhead", "rows x vocab", "drafting", "forward", "step")
    ) + " | target: overhead |", "| --- " * 8 + "|"]  # fmt: skip
    model = tiny_model()
    for batch in (1, 32):
        for what, options in (
            ("greedy", {}),
            ("greedy, n-gram draft of 16", {"drafter": NGramDrafter(), "max_draft_nodes": 16}),
            ("temperature 0.8, top-p 0.95", {"temperature": 0.8, "top_p": 0.95, "seed": 0}),
        ):
            engine = Engine(model, num_pages=2048, max_running=32)
            columns = measure(engine, batch, args.rounds, **options)
            cells = [f"{statistics.median(c):.3f} ({min(c):.3f}-{max(c):.3f})" for c in columns.values()]
            target = f"<= {TARGET_MS[batch]}" if what == "greedy" else ""
            lines.append(f"| {batch} | {what} | " + " | ".join(cells) + f" | {target} |")
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.save:
        Path(__file__).with_name("results").joinpath("overhead.md").write_text(
            "# Host time of a step outside the forward\n\n"
            f"`python bench/overhead.py --save`, {time.strftime('%Y-%m-%d')}\n\n{text}"
        )


def header(rounds: int) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return (
        f"CPU {platform.machine()}, 1 thread | torch {torch.__version__} | transformers {transformers.__version__} | "
        f"commit {commit} | float32, vocabulary {VOCAB}, 2 layers | median of {rounds} runs of 100 steps"
    )


if __name__ == "__main__":
    main()
