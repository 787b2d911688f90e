"""Does an EAGLE-3 head make SmolLM2 on Spec-Bench faster, and how many tokens does it gain a forward?

    python bench/eagle.py --head head [--save]       on a GPU if there is one: HF generate, our engine plain, with the
                                                     head's trees of fixed sizes, with a suffix automaton, with both,
                                                     and with both under the controller; outputs are compared
    python bench/eagle.py --head head --shapes       accept length by depth and width of the draft

Greedy, batch 1, prefill included, prompts of `bench/speculative.py`, every contestant on each question in turn, prefix
caches emptied before each. Plain decoding has an engine to itself, which notes no features; so has Hugging Face's
generate, which takes one question in `--generate-every`: its column compares over these. On a GPU layers are fused.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from infercore.hf import EagleDrafter, Engine
from infercore.speculative import LazyUnion, SpeedController, SuffixDrafter, Union
from speculative import commit, group_of, machine, prompt_ids, questions, show

SHAPES = ((3, 4, 4), (4, 4, 4), (4, 8, 8), (5, 4, 4), (5, 6, 6), (5, 8, 8), (6, 6, 6), (7, 4, 4), (8, 8, 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", type=Path, required=True, help="folder that train-eagle wrote")
    parser.add_argument("--model", type=Path, help="folder of the model; default: the one that the demo converted")
    parser.add_argument("--questions", type=int, default=240, help="how many, spread over all categories")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--max-rows", type=int, help="of a forward, prefill above all; default: the engine's")
    parser.add_argument("--shape", type=int, nargs=3, default=(4, 4, 4), metavar=("DEPTH", "BRANCHING", "WIDTH"))
    parser.add_argument("--shapes", action="store_true", help="only accept lengths, by the shape of the draft")
    parser.add_argument("--generate-every", type=int, default=12, help="Hugging Face's questions; 0: leave it out")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no question later than this")
    parser.add_argument("--commit", default=commit(), help="named in the table, where git does not say")
    parser.add_argument("--save", action="store_true", help="write the table to bench/results/")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    if arguments.shapes:
        show(bench.shapes(), "eagle_shapes.md", arguments)
    else:
        show(bench.run(), "eagle.md", arguments)


def make_contestants(eagle: EagleDrafter, curve: Any) -> dict[str, tuple[Any, int, Any]]:
    """Drafter, nodes and controller of each of ours; suffix automata learn from one question to the next."""
    return {
        "plain": (None, 0, None),
        "EAGLE, 16 nodes": (eagle, 16, None),
        "EAGLE, controller": (eagle, 64, SpeedController(curve)),
        "suffix, 16 nodes": (SuffixDrafter(), 16, None),
        "suffix, controller": (SuffixDrafter(), 64, SpeedController(curve)),
        "suffix + EAGLE, 16 nodes": (Union(SuffixDrafter(), eagle), 16, None),
        "suffix + EAGLE where it pays, 16 nodes": (LazyUnion(SuffixDrafter(), eagle), 16, None),
        "suffix + EAGLE where it pays, controller": (LazyUnion(SuffixDrafter(), eagle), 64, SpeedController(curve)),
    }


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        default = "bfloat16" if self.device.type == "cuda" else "float32"
        self.dtype = getattr(torch, arguments.dtype or default)
        self.model, self.tokenizer = self.load()
        self.plain, self.engine = (self.make_engine(model) for model in (self.load()[0], self.model))
        self.prompts = [(prompt_ids(self.tokenizer, q), group_of(q["category"])) for q in questions()]
        self.prompts = self.prompts[: arguments.questions]

    def load(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from infercore.demo.fetch import smollm2_path

        folder = self.arguments.model or smollm2_path()
        if folder is None:
            raise SystemExit("no model: run `infercore demo` once, or give --model")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype).eval().to(self.device)
        return model, AutoTokenizer.from_pretrained(folder)

    def make_engine(self, model: Any) -> Engine:
        fuse = self.device.type == "cuda"
        rows = self.arguments.max_rows
        return Engine(model, self.tokenizer, num_pages=512, max_running=1, max_rows=rows, fuse_layers=fuse)

    def eagle(self, shape: tuple[int, int, int] | None = None) -> EagleDrafter:
        depth, branching, width = shape or self.arguments.shape
        return EagleDrafter.from_pretrained(
            self.arguments.head,
            self.model,
            max_depth=depth,
            branching=branching,
            num_expanded=width,
            fuse_layers=self.device.type == "cuda",
        )

    def conditions(self) -> str:
        where = torch.cuda.get_device_name() if self.device.type == "cuda" else machine()
        return (
            f"machine: {where} | torch {torch.__version__} | commit {self.arguments.commit} | "
            f"{len(self.prompts)} questions, {self.arguments.new_tokens} new tokens, "
            f"{str(self.dtype).removeprefix('torch.')}, greedy, batch 1, "
            "prefill included | draft (depth, branching, width) "
        )

    def ours(self, prompt: list[int], drafter: Any, nodes: int, controller: Any = None) -> tuple[list[int], Any, float]:
        engine = self.engine if nodes else self.plain
        engine.cache.clear()
        engine.controller = controller
        self.wait()
        start = time.perf_counter()
        (done,) = engine.generate(
            [prompt], max_new_tokens=self.arguments.new_tokens, drafter=drafter, max_draft_nodes=nodes
        )
        self.wait()
        return done.token_ids, done.stats, time.perf_counter() - start

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def run(self) -> str:
        eagle, curve = self.eagle(), self.engine.cost_curve()
        contestants = make_contestants(eagle, curve)
        every = self.arguments.generate_every
        peer = self.load()[0] if every else None
        seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        gained: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
        differing: dict[str, int] = defaultdict(int)
        beside: dict[str, float] = defaultdict(float)  # over Hugging Face's questions
        if self.device.type == "cuda":
            for engine in (self.plain, self.engine):
                engine.warmup(batch=1, rows=256, drafter=eagle if engine is self.engine else None, progress=False)
        by_length = sorted((prompt for prompt, _ in self.prompts), key=len)
        for number, prompt in enumerate(by_length[:: -max(1, len(by_length) // 6)]):  # compile what is compiled lazily
            for drafter, nodes, controller in contestants.values():
                self.ours(prompt, drafter, nodes, controller)
            if peer is not None and not number:
                self.generate(peer, prompt)
        contestants = make_contestants(eagle, curve)  # tables know nothing of the questions to come
        begun, measured = time.monotonic(), 0
        for number, (prompt, group) in enumerate(self.prompts):
            if time.monotonic() - begun > self.arguments.seconds:
                break
            measured += 1
            outputs = {}
            names = list(contestants)
            spent: dict[str, float] = {}
            for name in names[number % len(names) :] + names[: number % len(names)]:
                outputs[name], stats, took = self.ours(prompt, *contestants[name])
                spent[name] = took
                for key in ("all", group):
                    seconds[name][key] += took
                    gained[name][key][0] += len(outputs[name]) - 1
                    gained[name][key][1] += stats.num_sampling_forwards - 1
            if peer is not None and number % every == 0:
                outputs["HF generate"], took = self.generate(peer, prompt)
                beside["HF generate"] += took
                for name in names:
                    beside[name] += spent[name]
            for name, output in outputs.items():
                differing[name] += output != outputs["plain"]
            if measured % 20 == 0:
                show(self.table(measured, contestants, seconds, gained, beside, differing), "eagle.md", self.arguments)
        return self.table(measured, contestants, seconds, gained, beside, differing)

    def table(
        self,
        measured: int,
        contestants: dict[str, Any],
        seconds: dict[str, dict[str, float]],
        gained: dict[str, dict[str, list[int]]],
        beside: dict[str, float],
        differing: dict[str, int],
    ) -> str:
        """What was measured so far: a run that is cut off keeps the last one."""
        every, peer = self.arguments.generate_every, beside.get("HF generate")
        groups = [key for key in seconds["plain"] if key != "all"]
        lines = [
            f"{self.conditions()}{tuple(self.arguments.shape)}, {measured} questions measured",
            "",
            "| contestant | tokens a forward | over our plain | over HF generate | "
            + " | ".join(f"{group}: tokens, over plain" for group in groups)
            + " | outputs unlike plain |",
            "| --- " * (5 + len(groups)) + "|",
        ]
        for name in contestants:
            over = {key: seconds["plain"][key] / seconds[name][key] for key in ("all", *groups)}
            length = {key: gained[name][key][0] / max(gained[name][key][1], 1) for key in ("all", *groups)}
            over_peer = f"{beside['HF generate'] / beside[name]:.1f}" if peer is not None else ""
            lines.append(
                f"| {name} | {length['all']:.2f} | {over['all']:.2f} | {over_peer} | "
                + " | ".join(f"{length[group]:.2f}, {over[group]:.2f}" for group in groups)
                + f" | {differing[name]} |"
            )
        if peer is not None:
            differ, asked = differing["HF generate"], -(-measured // every)
            lines += [
                "",
                f"Hugging Face took {asked} of the questions; its output is unlike our plain one's in {differ}.",
            ]
        tokens = gained["plain"]["all"][0] + measured
        lines += ["", f"plain: {tokens / seconds['plain']['all']:.0f} tokens a second"]
        lines += ["", "```text", self.engine.report(), "```"]
        return "\n".join(lines)

    def generate(self, model: Any, prompt: list[int]) -> tuple[list[int], float]:
        ids = torch.tensor([prompt], device=self.device)
        self.wait()
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.arguments.new_tokens, do_sample=False
            )
        self.wait()
        return out[0, len(prompt) :].tolist(), time.perf_counter() - start

    def shapes(self) -> str:
        """Trees as large as the shape gives, cut to 16, 32 and 64 nodes."""
        lines = [
            self.conditions(),
            "",
            "| depth, branching, width | 16 nodes | 32 nodes | 64 nodes |",
            "| --- " * 4 + "|",
        ]
        for shape in SHAPES:
            cells = []
            for nodes in (16, 32, 64):
                drafter, tokens, forwards = self.eagle(shape), 0, 0
                for prompt, _ in self.prompts:
                    output, stats, _ = self.ours(prompt, drafter, nodes)
                    tokens, forwards = tokens + len(output) - 1, forwards + stats.num_sampling_forwards - 1
                cells.append(f"{tokens / max(forwards, 1):.2f}")
            lines.append(f"| {shape} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


if __name__ == "__main__":
    main()
