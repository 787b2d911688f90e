"""How fast is the engine on a GPU with an 8B-shaped Llama of random weights, beside Hugging Face's `generate`?

    python bench/engine.py [--save FILE] [--layers 32]      # needs a CUDA GPU

Greedy decoding behind prompts of 512 random tokens at batch 1, 8 and 32; a verification step of 64 tree rows beside a
step of one row; time to the first token behind a prefix of 4096 tokens, cold and warm. Decoding is timed from the first
token of the last prompt on. Floor: the weights read once a step at 3.11 TB/s.
"""

import argparse
import itertools
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from infercore.hf import Engine
from infercore.hf.fused_layers import FusedLayers
from infercore.hf.graphs import StepGraphs
from infercore.hf.packed_model import PackedModel
from infercore.hf.plan import Rows
from infercore.radix import KVPool, PrefixCache
from infercore.speculative import TokenTree

BYTES_PER_S = 3.11e12
PROMPT = 512
TARGETS = {1: 160, 32: 3500}


def make_model(layers: int) -> transformers.PreTrainedModel:
    config = transformers.LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500_000.0,
        eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        previous = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            return transformers.LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(previous)


def prompts(batch: int, length: int, seed: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(10, 100_000, (batch, length)).tolist()


def decode(engine: Engine, batch: int, new: int, seed: int) -> dict[str, float]:
    """Tokens per second once all prompts are computed, and milliseconds a step."""
    handles = [engine.submit(engine.request(p, max_new_tokens=new))[0] for p in prompts(batch, PROMPT, seed)]
    while any(h._state.num_output == 0 for h in handles):
        engine.step()
    engine.stats.reset()
    torch.cuda.synchronize()
    before = sum(h._state.num_output for h in handles)
    start = time.perf_counter()
    while engine.num_unfinished:
        engine.step()
    seconds = time.perf_counter() - start
    tokens = batch * new - before
    steps = engine.stats.num_forwards
    return {"tokens_s": tokens / seconds, "step_ms": seconds / steps * 1e3}


def hf_decode(model: transformers.PreTrainedModel, batch: int, new: int) -> dict[str, float]:
    """`generate` with twice the tokens less `generate` with once the tokens: decoding alone."""
    ids = torch.tensor(prompts(batch, PROMPT, 1), device="cuda")
    model.set_attn_implementation("sdpa")
    seconds = []
    for count in (4, new, 2 * new):  # the first one warms up
        torch.cuda.synchronize()
        start = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    model.set_attn_implementation("infercore")
    each = (seconds[2] - seconds[1]) / new
    return {"tokens_s": batch / each, "step_ms": each * 1e3}


def gap_us(engine: Engine, batch: int) -> float:
    """Median microseconds on the GPU's clock between the end of a step's graph and the start of the next."""
    decode(engine, batch, 4, seed=7)
    graphs = engine._stepper.graphs
    assert graphs is not None
    marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    known = dict(graphs._replays)

    def marked(replay):
        def run():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            logits = replay()
            stop.record()
            marks.append((start, stop))
            return logits

        return run

    graphs._replays.update({bucket: marked(replay) for bucket, replay in known.items()})
    try:
        decode(engine, batch, 40, seed=8)
        torch.cuda.synchronize()
    finally:
        graphs._replays.update(known)
    return statistics.median(a[1].elapsed_time(b[0]) * 1e3 for a, b in itertools.pairwise(marks))


class Steps:
    """Single steps of n rows behind a context, by graphs; the GPU's time for them."""

    def __init__(self, model: transformers.PreTrainedModel, context: int) -> None:
        self.packed = PackedModel(model)
        pages = -(-(context + 128) // 16) + 2
        self.pool = KVPool(pages, 16)
        self.sequence = PrefixCache(pages, 16, store=self.pool).open()
        fused = FusedLayers(model)
        self.graphs = StepGraphs(self.packed, self.pool, max_seqs=1, max_tokens=pages * 16, fused=fused)
        with torch.no_grad():
            for first in range(0, context, 128):
                ids = np.arange(first, min(first + 128, context), dtype=np.int32) % 1000
                self._forward(ids, TokenTree.empty())
                self.sequence.commit(ids)

    def _forward(self, ids: np.ndarray, tree: TokenTree) -> None:
        slots = self.sequence.append(len(ids) + tree.num_nodes)
        logits = self.graphs.forward([Rows(self.sequence, ids, tree, slots, 0)])
        assert logits is not None, self.graphs.reason

    def gpu_ms(self, num_rows: int, repeats: int = 20) -> float:
        parents = [max(-1, (i - 1) // 2) for i in range(num_rows - 1)]
        tree = TokenTree.of(np.arange(num_rows - 1, dtype=np.int32), parents) if num_rows > 1 else TokenTree.empty()
        with torch.no_grad():
            self._forward(np.array([7], np.int32), tree)
        self.sequence.commit([])
        bucket = max(self.graphs._replays, key=lambda b: (b.num_rows == num_rows, b.has_tree == (num_rows > 1)))
        replay = self.graphs._replays[bucket]
        times = []
        for _ in range(5):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            replay()
            start.record()
            for _ in range(repeats):
                replay()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) / repeats)
        return statistics.median(times)


def first_token_s(engine: Engine, prompt: list[int]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    engine.generate(prompt, max_new_tokens=1)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", metavar="FILE", help="also write the table there")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--new", type=int, default=128, help="tokens to decode")
    parser.add_argument("--commit", help="named in the header, where there is no git")
    args = parser.parse_args()
    model = make_model(args.layers)
    num_bytes = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if "embed_tokens" not in n)
    floor_ms = num_bytes / BYTES_PER_S * 1e3
    lines = [header(args, num_bytes, floor_ms), ""]

    def show(*new: str) -> None:
        lines.extend(new)
        print(*new, sep="\n", flush=True)
        if args.save:
            Path(args.save).write_text("\n".join(lines) + "\n")

    show("| batch | side | tokens/s | ms a step | target |", "| --- | --- | --- | --- | --- |")
    for name, graphs in (("infercore, fused layers", True), ("infercore", True), ("infercore, no graphs", False)):
        engine = Engine(model, num_pages=2600, cuda_graphs=graphs, fuse_layers="fused" in name, max_running=32)
        if graphs:
            start = time.perf_counter()
            engine.generate(prompts(1, 40, 5), max_new_tokens=4)
            print(f"first steps {time.perf_counter() - start:.1f} s", flush=True)
        for batch in (1, 8, 32):
            decode(engine, batch, 6, seed=batch)
            rounds = [
                decode(engine, batch, args.new if graphs else 24, seed=100 * r + batch)
                for r in range(3 if graphs else 1)
            ]
            got = {k: statistics.median(r[k] for r in rounds) for k in rounds[0]}
            share = (
                f"{TARGETS[batch]}: {'met' if got['tokens_s'] >= TARGETS[batch] else 'missed'}"
                if graphs and batch in TARGETS
                else ""
            )
            show(f"| {batch} | {name} | {got['tokens_s']:.0f} | {got['step_ms']:.2f} | {share} |")
        if name == "infercore, fused layers":
            gaps = {batch: gap_us(engine, batch) for batch in (1, 32)}
            print(engine.report(), flush=True)
            cold, warm = [], []
            for r in range(3):
                (prompt,) = prompts(1, 4096, 1000 + r)
                prompt += [1, 2, 3]
                cold.append(first_token_s(engine, prompt))
                warm.append(first_token_s(engine, prompt))
            ttft = statistics.median(cold[1:]), statistics.median(warm)
        del engine
        torch.cuda.empty_cache()
    for batch in (1, 8, 32):
        got = hf_decode(model, batch, 8)
        show(f"| {batch} | HF generate, default | {got['tokens_s']:.0f} | {got['step_ms']:.2f} | |")
    steps = Steps(model, PROMPT)
    one = steps.gpu_ms(1)
    show("", "| rows of one step, behind 512 tokens | GPU ms | of one row's | target |", "| --- | --- | --- | --- |")
    for rows in (1, 8, 16, 32, 64, 128):
        ms = steps.gpu_ms(rows)
        goal = f"1.15: {'met' if ms <= 1.15 * one else 'missed'}" if rows == 64 else ""
        show(f"| {rows} | {ms:.2f} | {ms / one:.2f} | {goal} |")
    show(
        "", f"From one graph to the next: {gaps[1]:.0f} us at batch 1 (target 100), {gaps[32]:.0f} us at batch 32; the "
        "choice of tokens on the GPU included.",
        "", f"Time to the first token behind 4096 tokens: cold {ttft[0] * 1e3:.1f} ms, warm {ttft[1] * 1e3:.1f} ms, "
        f"{ttft[0] / ttft[1]:.1f} times (target 10).",
    )  # fmt: skip


def header(args: argparse.Namespace, num_bytes: int, floor_ms: float) -> str:
    commit = (
        args.commit or subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    )
    return (
        f"# The engine on a GPU\n\n{torch.cuda.get_device_name()} | torch {torch.__version__} | transformers "
        f"{transformers.__version__} | commit {commit.strip()} | Llama, {args.layers} layers of the 8B shape, random "
        f"bf16 weights ({num_bytes / 1e9:.1f} GB a step, floor {floor_ms:.2f} ms) | prompts of {PROMPT} random "
        f"tokens, greedy, no end token"
    )


if __name__ == "__main__":
    main()
