"""Does training-free speculation pay on a GPU, where plain decoding runs by CUDA graphs without gaps?

    python bench/engine_speculative.py --traces FILE [--questions 80] [--save FILE]       # needs a CUDA GPU

SmolLM2-135M-Instruct in bfloat16 on Spec-Bench questions, greedy, one at a time and eight together: Hugging Face's
`generate`, our engine plain, with drafts of fixed sizes, with the controller. Decoding is timed, from the first token
of the last prompt on. Contestants take turns on each question. Prompts come from the traces that
`bench/speculative.py record` writes; nothing else in them is used.

Every first difference from Hugging Face's eager greedy output is judged: rounding explains it if its two tokens are no
further apart in float32 than twice the largest error of Hugging Face's own bfloat16 logits there. Those of Hugging
Face's compiled decoding are counted alike, to compare.
"""

import argparse
import json
import os
import random
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("INFERCORE_COLD_START", "wait")  # grammars are timed as machine code

import torch
import transformers
import triton
from torch._dynamo.utils import counters

from engine import machine
from infercore.constrained import json_schema
from infercore.demo.fetch import ensure_smollm2
from infercore.hf import Engine
from infercore.speculative import Drafter, RecyclingDrafter, SpeedController, SuffixDrafter, Union

VOCAB_SIZE = 49152
DRAFTERS: dict[str, Any] = {
    "suffix": SuffixDrafter,
    "suffix + recycling": lambda: Union(SuffixDrafter(), RecyclingDrafter(VOCAB_SIZE)),
}
FIXED = (8, 16, 32)


class Ours:
    """A way to decode on an engine that others use as well; its drafter goes on learning from question to question."""

    def __init__(self, engine: Engine, drafter: Drafter | None, nodes: int, controller: Any = None) -> None:
        self.engine, self.controller = engine, controller
        self.drafter, self.nodes = drafter, nodes
        self.seconds, self.tokens, self.steps = 0.0, 0, 0
        self.sums: dict[str, float] = defaultdict(float)

    def run(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        engine = self.engine
        engine.controller = self.controller
        engine.cache.clear()
        handles = [
            engine.submit(engine.request(p, max_new_tokens=new, drafter=self.drafter, max_draft_nodes=self.nodes))[0]
            for p in prompts
        ]
        while any(not h.is_done and not len(h.output_ids) for h in handles):
            engine.step()
        engine.stats.reset()
        torch.cuda.synchronize()
        before = sum(len(h.output_ids) for h in handles)
        start = time.perf_counter()
        while engine.num_unfinished:
            engine.step()
        self.seconds += time.perf_counter() - start
        self.tokens += sum(len(h.token_ids) for h in handles) - before
        self.steps += engine.stats.num_forwards
        for name, value in engine.stats.as_dict().items():
            self.sums[name] += value
        return [h.token_ids for h in handles]

    def row(self, plain: "Ours", hf: float) -> str:
        each, base = self.seconds / self.tokens, plain.seconds / plain.tokens
        accept = 1 + self.sums["num_accepted_tokens"] / max(1, self.sums["num_sampling_turns"])
        parts = " / ".join(
            f"{self.sums[k] / self.steps * 1e3:.2f}"
            for k in ("forward_time_s", "choose_time_s", "draft_time_s", "overhead_s")
        )
        return (
            f"{1 / each:.0f} | {base / each:.2f} | {1 / each / hf:.1f} | {accept:.2f} | "
            f"{self.seconds / self.steps * 1e3:.2f} | {parts} |"
        )


def hugging_face(model: Any, prompts: list[list[int]], new: int, **options: Any) -> tuple[list[list[int]], float]:
    """Outputs of one padded batch, without padding and end, and seconds."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[2] * (longest - len(p)) + p for p in prompts], device="cuda")
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device="cuda")
    model.set_attn_implementation("sdpa")
    torch.cuda.synchronize()
    start = time.perf_counter()
    out = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, **options)[:, longest:]
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    model.set_attn_implementation("infercore")
    eos = model.generation_config.eos_token_id
    return [row[: row.index(eos) + 1] if eos in row else row for row in out.tolist()], seconds


class Judge:
    """Which first differences rounding explains."""

    def __init__(self, model: Any, path: Path) -> None:
        self.model = model
        self.exact = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).cuda().eval()

    def __call__(self, prompt: list[int], mine: list[int], theirs: list[int]) -> tuple[int, float, float] | None:
        """Where they differ first, the float32 gap of the two tokens, and twice Hugging Face's largest error there."""
        if mine == theirs:
            return None
        at = next(
            (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs))
        )
        ids = torch.tensor([prompt + theirs[:at]], device="cuda")
        self.model.set_attn_implementation("sdpa")
        half = self.model(ids).logits[0, -1].float()
        self.model.set_attn_implementation("infercore")
        full = self.exact(ids).logits[0, -1]
        a, b = mine[at], theirs[at]
        return at, float((full[a] - full[b]).abs()), 2 * float((half - full).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=80)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="no outputs of Hugging Face, no exactness")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--commit", help="named in the header, where there is no git")
    args = parser.parse_args()
    path = ensure_smollm2()
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).cuda().eval()
    by_group: dict[str, list[Any]] = defaultdict(list)
    for line in args.traces.read_text().splitlines():
        trace = json.loads(line)
        by_group[trace["category"]].append(trace)
    groups = ["translation", "summarization", "qa", "math_reasoning", "rag", "writing", "roleplay", "coding"]
    traces = [t for some in zip(*(by_group[g] for g in groups), strict=False) for t in some][: args.questions]
    prompts = [t["prompt_ids"] for t in traces]
    lines = [header(args, len(prompts)), ""]

    def show(*new: str) -> None:
        lines.extend(new)
        print(*new, sep="\n", flush=True)
        if args.save:
            args.save.write_text("\n".join(lines) + "\n")

    Engine(model)  # registers our attention, which `hugging_face` puts back
    _, seconds = hugging_face(model, prompts[:1], 4)
    outs, seconds = hugging_face(model, prompts[:1], 24)
    hf = len(outs[0]) / seconds
    outputs: dict[int, dict[str, list[list[int]]]] = {}
    for batch in (1, 8):
        engine = Engine(model, num_pages=4000, fuse_layers=True, max_running=8)
        engine.warmup(batch=batch, rows=256, progress=False)
        contestants = {"plain": Ours(engine, None, 0)}
        for name, make in DRAFTERS.items():
            for nodes in FIXED if batch == 1 else FIXED[:1]:
                contestants[f"{name}, {nodes} nodes"] = Ours(engine, make(), nodes)
        curve = engine.cost_curve(refresh=True)
        controlled = Ours(engine, DRAFTERS["suffix + recycling"](), 32, SpeedController(curve))
        contestants["suffix + recycling, controller"] = controlled
        for c in contestants.values():
            c.run([list(range(1000 + 40 * i, 1030 + 40 * i)) for i in range(batch)], 16)  # of no question
            c.seconds, c.tokens, c.steps = 0.0, 0, 0
            c.sums.clear()
        outputs[batch] = {name: [] for name in contestants}
        names = list(contestants)
        for i in range(0, len(prompts), batch):
            turn = (i // batch) % len(names)
            for name in names[turn:] + names[:turn]:
                outputs[batch][name] += contestants[name].run(prompts[i : i + batch], args.new)
        show(
            "", f"Batch {batch}. Hugging Face `generate`, one prompt: {hf:.0f} tokens/s.", "",
            "| decoding | tokens/s | over plain | over HF | accept length | ms a step | start / wait / draft / rest |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(f"| {name} | {c.row(contestants['plain'], hf)}" for name, c in contestants.items()),
        )  # fmt: skip
        if batch == 1:
            show("", "```text", engine.report(), "```")
        del contestants, controlled, engine
        torch.cuda.empty_cache()
    show("", mixed_steps(model, path, prompts))
    if args.quick:
        return
    some = [i for i, p in enumerate(prompts) if len(p) <= 600][:24]  # one padded batch
    eager = hugging_face(model, [prompts[i] for i in some], args.new)[0]
    static = hugging_face(model, [prompts[i] for i in some], args.new, cache_implementation="static")[0]
    judge = Judge(model, path)
    show(
        "", f"First differences from Hugging Face's eager greedy outputs (padded batch) in {len(some)}:", "",
        "| decoding | outputs that differ | explained by rounding | largest gap / bound | mean place |",
        "| --- | --- | --- | --- | --- |",
    )  # fmt: skip
    sides = {"HF, static cache and compiled": static}
    for batch, of in outputs.items():
        sides |= {f"{name}, batch {batch}": [outs[i] for i in some] for name, outs in of.items()}
    for name, outs in sides.items():
        found = [judge(prompts[i], m, t) for i, m, t in zip(some, outs, eager, strict=True)]
        differ = [f for f in found if f is not None]
        fine = sum(gap <= bound for _, gap, bound in differ)
        worst = max((gap / bound for _, gap, bound in differ), default=0.0)
        place = sum(at for at, _, _ in differ) / max(1, len(differ))
        show(f"| {name} | {len(differ)} | {fine} | {worst:.2f} | {place:.0f} |")


def mixed_steps(model: Any, path: Path, prompts: list[list[int]], num_steps: int = 1000) -> str:
    """Requests of all kinds that come and go after `warmup()`: what these steps captured and compiled."""
    engine = Engine(
        model, transformers.AutoTokenizer.from_pretrained(path), num_pages=4000, fuse_layers=True, max_running=8
    )
    seconds = engine.warmup(batch=8, rows=512, progress=False)
    draw = random.Random(0)
    drafter = DRAFTERS["suffix + recycling"]()
    schema = json_schema({"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 8})
    kinds: list[dict[str, Any]] = [
        {}, {"drafter": drafter, "max_draft_nodes": 15}, {"grammar": schema}, {"temperature": 0.8, "top_p": 0.9},
        {"drafter": drafter, "max_draft_nodes": 7, "temperature": 0.7}, {"grammar": schema, "drafter": drafter},
        {"repetition_penalty": 1.1}, {"logprobs": 2},
    ]  # fmt: skip
    before, steps, requests = compiled(engine), 0, 0
    while steps < num_steps:
        while engine.num_unfinished < 8 and draw.random() < 0.5:
            prompt = draw.choice(prompts)[: draw.randint(5, 400)]
            engine.submit(engine.request(prompt, max_new_tokens=draw.randint(1, 60), **draw.choice(kinds)))
            requests += 1
        engine.step()
        steps += 1
    after = compiled(engine)
    new = sorted(
        f"{name} ({after[name] - before.get(name, 0)})" for name in after if after[name] != before.get(name, 0)
    )
    return (
        f"After `warmup(batch=8, rows=512)` ({seconds:.0f} s, {before['CUDA graphs']} graphs) {num_steps} steps of "
        f"{requests} requests, with drafts, grammars, draws, penalties and log probabilities, captured and compiled: "
        f"{', '.join(new) or 'nothing'} (target: nothing)."
    )


def compiled(engine: Engine) -> dict[str, int]:
    """Captured graphs, graphs that torch.compile made, compiled variants of each of our Triton kernels."""
    graphs = engine._stepper.graphs
    assert graphs is not None
    counts = {"CUDA graphs": len(graphs._replays), "torch.compile": int(counters["stats"]["unique_graphs"])}
    for module, content in list(sys.modules.items()):
        for name, kernel in list(vars(content).items()) if module.startswith("infercore.kernels") else ():
            if isinstance(kernel, triton.JITFunction):
                counts[name] = sum(len(caches[0]) for caches in kernel.device_caches.values())
    return counts


def header(args: argparse.Namespace, num_questions: int) -> str:
    return (
        f"# Speculation on a GPU\n\n{machine(args.commit)} | SmolLM2-135M-Instruct, bfloat16 | {num_questions} "
        f"Spec-Bench questions, {args.new} new tokens, greedy, decoding only | layers fused, all steps by graphs"
    )


if __name__ == "__main__":
    with torch.no_grad():
        main()
