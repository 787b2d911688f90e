"""How fast is the engine on a GPU with an 8B-shaped Llama of random weights, beside Hugging Face's `generate`?

    python bench/engine.py [--save FILE] [--layers 32] [--tiktoken FILE]      # needs a CUDA GPU

Greedy decoding behind prompts of 512 random tokens at batch 1, 8 and 32, beside Hugging Face's three ways; a
verification step of 64 tree rows beside a step of one row; time to the first token behind a prefix of 4096 tokens, cold
and warm; the cost of a grammar in every request; where a step's time goes. Decoding is timed from the first token of
the last prompt on. Floor: the weights read once a step at 3.11 TB/s.
"""

import argparse
import base64
import itertools
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("INFERCORE_COLD_START", "wait")  # grammars are timed as machine code

import numpy as np
import torch
import transformers

from infercore.constrained import Vocabulary, json_schema
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


def decode(engine: Engine, batch: int, new: int, seed: int, **options: object) -> dict[str, float]:
    """Tokens per second once all prompts are computed, and milliseconds a step."""
    requests = [engine.request(p, max_new_tokens=new, **options) for p in prompts(batch, PROMPT, seed)]
    handles = [engine.submit(request)[0] for request in requests]
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
        fused = FusedLayers.of(model)
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


def hf_static(model: transformers.PreTrainedModel, new: int) -> float:
    """Seconds a token with a static cache and the compiled forward that `generate` makes of it, batch 1."""
    ids = torch.tensor(prompts(1, PROMPT, 1), device="cuda")
    model.set_attn_implementation("sdpa")
    seconds = []
    options = {"do_sample": False, "cache_implementation": "static"}
    for count in (new, new, 2 * new, 2 * new):  # the first of each length compiles and captures
        torch.cuda.synchronize()
        start = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, **options)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    model.set_attn_implementation("infercore")
    return (seconds[3] - seconds[1]) / new


def hf_paged(model: transformers.PreTrainedModel, batch: int, new: int) -> float:
    """Seconds a step of `generate_batch`, from the difference of two lengths."""
    inputs = prompts(batch, PROMPT, 1)
    model.set_attn_implementation("sdpa")
    seconds = []
    for count in (2, new, 2 * new):
        config = transformers.GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0)
        torch.cuda.synchronize()
        start = time.perf_counter()
        model.generate_batch(inputs=inputs, generation_config=config)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    model.set_attn_implementation("infercore")
    return (seconds[2] - seconds[1]) / new


def tiktoken_vocabulary(path: Path) -> Vocabulary:
    """Llama-3's token bytes; its special tokens are ids behind them."""
    ranks = [line.split() for line in path.read_text().splitlines() if line.strip()]
    tokens: list[bytes | None] = [None] * 128_256
    for token, rank in ranks:
        tokens[int(rank)] = base64.b64decode(token)
    return Vocabulary(tokens, eos_token_ids=[128_009])


SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 5, "maxLength": 40},
            "count": {"type": "integer", "minimum": 0, "maximum": 100_000},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 4},
        },
        "required": ["name", "count", "tags"],
        "additionalProperties": False,
    },
}


def grammar_cost(engine: Engine, batch: int, new: int) -> tuple[float, float]:
    """Milliseconds a step without and with a grammar in every request, one after the other, rounds in turn."""
    times: dict[bool, list[float]] = {False: [], True: []}
    grammar = json_schema(SCHEMA)
    for r in range(4):
        for constrained in (False, True):
            more = {"grammar": grammar, "jump_forward": False} if constrained else {}
            got = decode(engine, batch, new, seed=300 + r, **more)
            if r:  # the first round visits the grammar's states for the first time
                times[constrained].append(got["step_ms"])
    return statistics.median(times[False]), statistics.median(times[True])


KINDS = {
    "weights": ("linear_group", "nvjet", "gemm", "gemv", "cutlass", "splitK"),
    "attention": ("_attend", "_merge", "_plan_kernel", "_write_kv"),
}


def split(engine: Engine, batch: int) -> dict[str, float]:
    """Milliseconds of a decoding step by kind of kernel, and the gap to the next step."""
    decode(engine, batch, 6, seed=5)
    graphs = engine._stepper.graphs
    assert graphs is not None
    (replay,) = [r for b, r in graphs._replays.items() if (b.num_rows, b.num_seqs, b.has_tree) == (batch, batch, False)]
    replay()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(3):
            replay()
        torch.cuda.synchronize()
    parts = {"weights": 0.0, "attention": 0.0, "small kernels": 0.0}
    for event in profile.key_averages():
        kind = next((k for k, names in KINDS.items() if any(n in event.key for n in names)), "small kernels")
        parts[kind] += event.device_time_total / 3e3
    gap = gap_us(engine, batch) / 1e3
    step = decode(engine, batch, 64, seed=6)["step_ms"]
    return parts | {"between graphs": gap, "a step": step}


def compaction(engine: Engine) -> tuple[float, float]:
    """Microseconds on the GPU and on the host to move eight accepted rows down in all layers."""
    source, target = np.arange(40, 56, 2), np.arange(36, 44)
    move = engine.pool.move_slots
    for _ in range(3):
        move(source, target)
    torch.cuda.synchronize()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(20_000_000)  # the launches below stand in line, so that the events time the GPU alone
    start.record()
    begin = time.perf_counter()
    for _ in range(20):
        move(source, target)
    host = (time.perf_counter() - begin) / 20
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 20 * 1e3, host * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--save", metavar="FILE", help="also write the table there, and the figures of the split as JSON"
    )
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--new", type=int, default=128, help="tokens to decode")
    parser.add_argument(
        "--tiktoken", type=Path, help="Llama-3 tokenizer.model (PyPI: llama-models), for the grammar rows"
    )
    parser.add_argument("--commit", help="named in the header, where there is no git")
    args = parser.parse_args()
    model = make_model(args.layers)
    vocabulary = tiktoken_vocabulary(args.tiktoken) if args.tiktoken else None
    num_bytes = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if "embed_tokens" not in n)
    floor_ms = num_bytes / BYTES_PER_S * 1e3
    lines = [header(args, num_bytes, floor_ms), ""]

    def show(*new: str) -> None:
        lines.extend(new)
        print(*new, sep="\n", flush=True)
        if args.save:
            Path(args.save).write_text("\n".join(lines) + "\n")

    show("| batch | side | tokens/s | ms a step | target |", "| --- | --- | --- | --- | --- |")
    later: list[str] = []
    for name, graphs in (("infercore, fused layers", True), ("infercore", True), ("infercore, no graphs", False)):
        fused = "fused" in name
        engine = Engine(
            model, num_pages=2600, cuda_graphs=graphs, fuse_layers=fused, max_running=32, vocabulary=vocabulary
        )
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
            share = verdict(got["tokens_s"] >= TARGETS[batch], TARGETS[batch]) if fused and batch in TARGETS else ""
            show(f"| {batch} | {name} | {got['tokens_s']:.0f} | {got['step_ms']:.2f} | {share} |")
        if fused:
            later = rest_of(engine, args)
        del engine
        torch.cuda.empty_cache()
    table_end = len(lines)

    def add_peer(name: str, step_ms: Callable[[], float], batch: int) -> None:
        nonlocal table_end
        lines.insert(table_end, peer(name, step_ms, batch))
        table_end += 1
        show()

    steps = Steps(model, PROMPT)
    one = steps.gpu_ms(1)
    show("", "| rows of one step, behind 512 tokens | GPU ms | of one row's | target |", "| --- | --- | --- | --- |")
    for rows in (1, 8, 16, 32, 64, 128):
        ms = steps.gpu_ms(rows)
        goal = verdict(ms <= 1.15 * one, 1.15) if rows == 64 else ""
        show(f"| {rows} | {ms:.2f} | {ms / one:.2f} | {goal} |")
    show(*later)
    for batch in (1, 8, 32):
        add_peer(f"{batch} | HF generate, default", lambda b=batch: b * 1e3 / hf_decode(model, b, 8)["tokens_s"], batch)
    add_peer("1 | HF generate, static cache, compiled", lambda: hf_static(model, 48) * 1e3, 1)
    for batch in (1, 32):
        add_peer(f"{batch} | HF generate_batch, paged", lambda b=batch: hf_paged(model, b, 12) * 1e3, batch)


def peer(name: str, step_ms: Callable[[], float], batch: int) -> str:
    """A row; a peer that cannot run says why."""
    try:
        ms = step_ms()
    except Exception as error:
        return f"| {name} | did not run: {type(error).__name__}: {str(error).splitlines()[0][:100]} | | |"
    return f"| {name} | {batch * 1e3 / ms:.0f} | {ms:.2f} | |"


def rest_of(engine: Engine, args: argparse.Namespace) -> list[str]:
    """What is measured on one engine with fused layers, beside its speed."""
    parts = {batch: split(engine, batch) for batch in (1, 32)}
    names = list(parts[1])
    lines = [
        "", "Where a step's milliseconds go: kernels of the graph by kind (tokens are chosen in it).", "",
        f"| batch | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}",
        *(f"| {batch} | {' | '.join(f'{part[n]:.3f}' for n in names)} |" for batch, part in parts.items()),
        "", f"From one graph to the next: {parts[1]['between graphs'] * 1e3:.0f} us at batch 1 "
        f"({verdict(parts[1]['between graphs'] <= 0.1, '100')}), {parts[32]['between graphs'] * 1e3:.0f} us at batch "
        "32.",
    ]  # fmt: skip
    if args.save:
        Path(args.save).with_suffix(".json").write_text(json.dumps(parts))
    cold, warm = [], []
    for r in range(4):
        (prompt,) = prompts(1, 4096, 1000 + r)
        prompt += [1, 2, 3]
        cold.append(first_token_s(engine, prompt))
        warm.append(first_token_s(engine, prompt))
    ttft = statistics.median(cold[1:]), statistics.median(warm[1:])
    lines += [
        "", f"Time to the first token behind 4096 tokens: cold {ttft[0] * 1e3:.1f} ms, warm {ttft[1] * 1e3:.1f} ms, "
        f"{ttft[0] / ttft[1]:.1f} times ({verdict(ttft[0] >= 10 * ttft[1], 10)}).",
    ]  # fmt: skip
    on_gpu, on_host = compaction(engine)
    share = on_gpu / 1e3 / parts[1]["a step"]
    lines += [
        "", f"Rollback is the host's alone (pages go back to a list). Moving eight accepted rows down in all layers: "
        f"{on_gpu:.0f} us on the GPU, {on_host:.0f} us on the host, {share * 100:.1f}% of a one-row step "
        f"({verdict(share <= 0.03, '3%')}).",
    ]  # fmt: skip
    if args.tiktoken:
        lines += ["", "| batch | ms a step | with a grammar in every request | cost | target |", "|" + " --- |" * 5]
        for batch in (1, 8, 32):
            off, on = grammar_cost(engine, batch, 96)
            lines.append(
                f"| {batch} | {off:.3f} | {on:.3f} | {(on / off - 1) * 100:+.1f}% | {verdict(on <= 1.03 * off, '3%')} |"
            )
    print(*lines, engine.report(), sep="\n", flush=True)
    return lines


def verdict(is_met: bool, target: object) -> str:
    return f"{target}: {'met' if is_met else 'missed'}"


def machine(commit: str | None) -> str:
    """Card, versions and commit of a run; `commit` where there is no git."""
    commit = commit or subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    return (
        f"{torch.cuda.get_device_name()} | torch {torch.__version__} | transformers {transformers.__version__} | "
        f"commit {commit.strip()}"
    )


def header(args: argparse.Namespace, num_bytes: int, floor_ms: float) -> str:
    return (
        f"# The engine on a GPU\n\n{machine(args.commit)} | Llama, {args.layers} layers of the 8B shape, random "
        f"bf16 weights ({num_bytes / 1e9:.1f} GB a step, floor {floor_ms:.2f} ms) | prompts of {PROMPT} random "
        f"tokens, greedy, no end token"
    )


if __name__ == "__main__":
    main()
