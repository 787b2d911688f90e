"""What do eager mode and capture gain: for operators (PyTorch on one token) and for generations (a program of prompts)?

    python bench/lang_modes.py [--save]

The same SmolLM2-135M-Instruct (float32) under both. PyTorch: one decoding step, its operators counted as they are
dispatched. Programs: an introduction, then eight follow-ups of it side by side, op by op and traced.
"""

import argparse
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer, StaticCache

from infercore.demo import ensure_smollm2
from infercore.hf import Engine, cache_argument
from infercore.lang import assistant, function, gen, optimise, user
from infercore.lang.backends import EngineBackend

RESULTS = Path(__file__).parent / "results" / "lang_modes.md"
CONTEXT = 64
TOPICS = ("sleep", "food", "sport", "work", "friends", "music", "books", "rain")


@function
def advice(s):
    s += user("Introduce yourself in one sentence.")
    s += assistant(gen("introduction", max_tokens=12))
    forks = s.fork(len(TOPICS))
    for fork, topic in zip(forks, TOPICS, strict=True):
        fork += user(f"One sentence about {topic}, please.")
        fork += assistant(gen("tip", max_tokens=12))
    s.join(forks)
    return s["tip"]


class OperatorCounter(TorchDispatchMode):
    """Counts ATen operators; views are among them."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operators(model: Any, rounds: int) -> list[tuple[str, str, str, list[float], float]]:
    """Rows of the table for PyTorch: mode, unit of work, how many of them, seconds of a step, seconds ahead."""
    ids = torch.arange(100, 100 + CONTEXT)[None]
    token = torch.tensor([[7]])

    def stepper(forward: Callable[..., Any]) -> Callable[[], Any]:
        cache = StaticCache(config=model.config, max_cache_len=2 * CONTEXT)
        forward(ids, logits_to_keep=1, **cache_argument(model, cache))
        positions = torch.tensor([[CONTEXT]])
        return lambda: forward(token, position_ids=positions, **cache_argument(model, cache))

    with torch.no_grad():
        eager = stepper(model)
        with OperatorCounter() as counter:
            eager()
        num_operators = counter.count
        start = time.perf_counter()
        captured = stepper(torch.compile(model.forward))
        captured()
        ahead = time.perf_counter() - start
        times: dict[str, list[float]] = {"eager": [], "compiled": []}
        for _ in range(rounds):
            for name, step in (("eager", eager), ("compiled", captured)):
                start = time.perf_counter()
                for _ in range(8):
                    step()
                times[name].append((time.perf_counter() - start) / 8)
    return [
        ("PyTorch eager", "operator", f"{num_operators} a forward", times["eager"], 0.0),
        ("torch.compile (inductor)", "graph", "not counted", times["compiled"], ahead),
    ]


def generations(model: Any, tokenizer: Any, rounds: int) -> list[tuple[str, str, str, list[float], float]]:
    """The same rows for programs."""
    engine = Engine(model, tokenizer)
    backend = EngineBackend(engine)
    times: dict[str, list[float]] = {"eager": [], "traced": []}
    forwards: dict[str, int] = {}
    values = {}
    advice.run(backend)
    for _ in range(rounds):
        for mode in ("eager", "traced"):
            engine.cache.clear()
            engine.stats.reset()
            start = time.perf_counter()
            values[mode] = advice.run(backend, mode=mode).value
            times[mode].append(time.perf_counter() - start)
            forwards[mode] = engine.stats.num_forwards
    assert values["eager"] == values["traced"]
    start = time.perf_counter()
    for _ in range(100):
        optimise(advice.trace())
    ahead = (time.perf_counter() - start) / 100
    gaps = 1 + len(TOPICS)
    return [
        ("program, eager", "generation", f"{gaps} in {forwards['eager']} forwards", times["eager"], 0.0),
        ("program, traced", "generation", f"{gaps} in {forwards['traced']} forwards", times["traced"], ahead),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = ensure_smollm2()
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2)]
    rows = operators(models[0], options.rounds)
    rows += generations(models[1], AutoTokenizer.from_pretrained(folder), options.rounds)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        "# Eager mode and capture, for operators and for generations",
        "",
        f"`python bench/lang_modes.py --rounds {options.rounds} --save` | SmolLM2-135M-Instruct, float32, CPU, "
        f"{torch.get_num_threads()} threads | torch {torch.__version__} | transformers {transformers.__version__} | "
        f"python {platform.python_version()} | commit {commit}",
        "",
        "PyTorch: a decoding step after 64 tokens. Programs: one generation and eight that follow it, 12 tokens each. "
        '"ahead" is compiling with the first call, or tracing and optimising.',
        "",
        "| | unit | how many | ms (min-max) | capture is faster by | ahead, ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for i, (name, unit, count, times, ahead) in enumerate(rows):
        low, median, high = (1e3 * f(times) for f in (min, statistics.median, max))
        ratio = f"{statistics.median(rows[i - 1][3]) / statistics.median(times):.2f}x" if i % 2 else ""
        before = f"{ahead * 1e3:.1f}" if i % 2 else ""
        lines.append(f"| {name} | {unit} | {count} | {median:.0f} ({low:.0f}-{high:.0f}) | {ratio} | {before} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.save:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
