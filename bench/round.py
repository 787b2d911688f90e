"""How much host time lies between the tokens of a draft-and-verify round and the launch of the next round's forward?

    python bench/round.py [--save] [--label TEXT] [--profile]      # on a CPU; no model runs

In place of a CUDA graph stands a forward that returns at once: each row's token is that of a text which repeats itself,
so drafts are taken and missed as in real text. What remains of a round is the host's work. *Exposed* is from the moment
the tokens can be read to the launch of the next forward, while a GPU would wait; *hidden* is the rest, while it works.
Torch calls are counted, because each costs 5 to 10 us on a slow host.
"""

import argparse
import cProfile
import pstats
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from infercore.hf import Engine
from infercore.hf.graphs import StepGraphs
from infercore.speculative import CostCurve, RecyclingDrafter, SpeedController, SuffixDrafter, Union
from overhead import tiny_model
from speculative import commit, machine

VOCAB = 49_152
NEW = 160


def text_of(length: int, seed: int) -> np.ndarray:
    """Tokens of which about half stand in copies of what came before."""
    rng = np.random.default_rng(seed)
    text = rng.integers(3, VOCAB, 16).tolist()
    while len(text) < length:
        size = int(rng.integers(2, 7))
        at = int(rng.integers(0, len(text) - size))
        text += text[at : at + size] if rng.random() < 0.6 else rng.integers(3, VOCAB, int(rng.integers(1, 5))).tolist()
    return np.array(text[:length], np.int64)


class Clock:
    """Times and torch calls between the two moments of every round."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.exposed: list[float] = []
        self.hidden: list[float] = []
        self.read_at = self.launched_at = 0.0
        self.calls = 0
        self.calls_exposed: list[int] = []
        self.calls_hidden: list[int] = []

    def launch(self) -> None:
        if self.read_at:
            self.exposed.append(time.perf_counter() - self.read_at)
            self.calls_exposed.append(self.calls)

    def launched(self) -> None:
        self.calls = 0
        self.read_at, self.launched_at = 0.0, time.perf_counter()

    def read(self) -> None:
        self.hidden.append(time.perf_counter() - self.launched_at)
        self.calls_hidden.append(self.calls)
        self.calls = 0
        self.read_at = time.perf_counter()


class Counter(TorchDispatchMode):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.clock.calls += 1
        return func(*args, **(kwargs or {}))


class Fake(StepGraphs):
    """Graphs of a model that knows a text: the row at position p of sequence s says what stands at p + 1."""

    clock: Clock
    text: np.ndarray

    def _capture(self, bucket: Any) -> Any:
        positions = self._buffers._on_device["position_ids"][: bucket.num_rows].numpy()
        logits = torch.zeros(bucket.num_rows, VOCAB, dtype=torch.bfloat16)
        tokens = self.choices.tokens[: bucket.num_rows].numpy()

        def replay() -> torch.Tensor:
            self.clock.launch()
            tokens[:] = self.text[np.minimum(positions + 1, len(self.text) - 1)]
            self.clock.launched()
            return logits

        self._replays[bucket] = replay
        return replay


def engine_of(model: Any, batch: int, drafter: Any, controller: Any, text: np.ndarray) -> tuple[Engine, Clock]:
    engine = Engine(model, num_pages=2048, max_running=batch, overlap=True, controller=controller)
    stepper = engine._stepper
    graphs = Fake(stepper.model, stepper.pool, max_seqs=batch, max_tokens=8192)
    graphs.clock, graphs.text = Clock(), text
    stepper.use_graphs(graphs)
    original = stepper._chosen.read

    def read(*args: Any) -> Any:
        graphs.clock.read()
        return original(*args)

    stepper._chosen.read = read
    return engine, graphs.clock


def run(engine: Engine, clock: Clock, batch: int, drafter: Any, text: np.ndarray, nodes: int) -> None:
    engine.cache.clear()
    for i in range(batch):
        prompt = text[: 300 + 3 * i].tolist()
        engine.submit(engine.request(prompt, max_new_tokens=NEW, drafter=drafter, max_draft_nodes=nodes))
    while any(s.num_output == 0 for s in engine._scheduler.running) or engine._scheduler.waiting:
        engine.step()
    clock.reset()
    engine.stats.reset()
    while engine.num_unfinished:
        engine.step()


def curve() -> CostCurve:
    """Of SmolLM2 on an H100, about."""
    curve = CostCurve()
    for rows, seconds in {1: 1e-3, 16: 1.03e-3, 64: 1.2e-3, 256: 1.6e-3}.items():
        curve.observe(rows, seconds)
    return curve


DRAFTERS: dict[str, Any] = {
    "suffix, 16 nodes": lambda: (SuffixDrafter(), 16, None),
    "suffix + recycling, 16 nodes": lambda: (Union(SuffixDrafter(), RecyclingDrafter(VOCAB)), 16, None),
    "suffix + recycling, controller": lambda: (
        Union(SuffixDrafter(), RecyclingDrafter(VOCAB)), 32, SpeedController(curve())
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="append to bench/results/round.md")
    parser.add_argument("--label", default="", help="what this run is of")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--only", default="")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = tiny_model().bfloat16()  # in float32 a CPU has loops of its own, to be switched on and off around a step
    lines = [
        f"{args.label}, commit {commit()} | {machine()} | vocabulary {VOCAB}, {args.rounds} runs of {NEW} tokens, "
        "first run left out", "",
        "| batch | drafts | exposed µs (p20-p80) | hidden µs | torch calls exposed, hidden | accept length |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    print("\n".join(lines))
    text = text_of(4096, 0)
    for batch in args.batch:
        for name, make in DRAFTERS.items():
            if args.only not in name:
                continue
            drafter, nodes, controller = make()
            engine, clock = engine_of(model, batch, drafter, controller, text)
            exposed, hidden = [], []
            profile = cProfile.Profile()
            for i in range(args.rounds + 1):
                shifted = text[200 * i :]
                engine._stepper.graphs.text = shifted
                if args.profile and i:
                    profile.enable()
                run(engine, clock, batch, drafter, shifted, nodes)
                profile.disable()
                if i:
                    exposed += clock.exposed
                    hidden += clock.hidden
            accept = engine.stats.accept_length
            if args.profile:
                pstats.Stats(profile).sort_stats("tottime").print_stats(45)
            with Counter(clock):
                run(engine, clock, batch, drafter, shifted, nodes)
            calls = f"{statistics.mean(clock.calls_exposed):.1f}, {statistics.mean(clock.calls_hidden):.1f}"
            low, middle, high = (1e6 * np.quantile(exposed, q) for q in (0.2, 0.5, 0.8))
            rest = 1e6 * statistics.median(hidden)
            line = f"| {batch} | {name} | {middle:.0f} ({low:.0f}-{high:.0f}) | {rest:.0f} | {calls} | {accept:.2f} |"
            lines.append(line)
            print(line, flush=True)
    if args.save:
        path = Path(__file__).with_name("results") / "round.md"
        before = path.read_text() if path.exists() else "# Host time of a draft-and-verify round\n"
        path.write_text(before + f"\n{chr(10).join(lines)}\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
