"""How many tokens does each drafter gain per forward of SmolLM2 on Spec-Bench, and what does that do to its speed?

    python bench/speculative.py record               greedy traces by plain HF generate, once (half an hour on 2 cores)
    python bench/speculative.py replay [--save]      text-only drafters on those traces: no model, seconds
    python bench/speculative.py run [--save]         HF generate, prompt lookup, our engine plain, with trees of fixed
                                                     sizes, and with the controller; outputs are compared
    python bench/speculative.py check --batch 8      does the controller's output equal the traces, batched?

The questions come from $INFERCORE_DATA/spec_bench (first turns), the model from the cache that `infercore demo` fills
or from --model. A trace holds the tokens that greedy decoding produced, and the 8 likeliest at each step.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from infercore.speculative import (
    Drafter,
    DraftRequest,
    FixedBudget,
    NGramDrafter,
    RecyclingDrafter,
    SpeedController,
    SuffixDrafter,
    TopTokenObserver,
    Union,
    verify_greedy,
)

VOCAB_SIZE = 49152
GROUPS = {
    "translation",
    "summarization",
    "qa",
    "math_reasoning",
    "rag",
}  # everything else is multi-turn chat (mt_bench)

DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "n-gram": NGramDrafter,
    "suffix, own text": lambda: SuffixDrafter(learn_outputs=False),
    "suffix": SuffixDrafter,
    "recycling": lambda: RecyclingDrafter(VOCAB_SIZE),
    "suffix + recycling": lambda: Union(SuffixDrafter(), RecyclingDrafter(VOCAB_SIZE)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["record", "replay", "run", "check"])
    parser.add_argument(
        "--traces", type=Path, default=Path.home() / ".cache" / "infercore" / "spec_bench_smollm2.jsonl"
    )
    parser.add_argument("--model", type=Path, help="folder of the model; default: the one that the demo converted")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--questions", type=int, default=240, help="run: how many, spread over all categories")
    parser.add_argument("--batch", type=int, default=8, help="check: prompts in one call")
    parser.add_argument("--drafter", choices=DRAFTERS, default="suffix + recycling", help="check: which drafter")
    parser.add_argument(
        "--fixed", type=int, default=0, help="check: trees of this many nodes instead of the controller"
    )
    parser.add_argument("--timings", type=Path, help="run: append every timing here, and go on from what is there")
    parser.add_argument(
        "--clock", choices=["seconds", "cpu_seconds"], default="seconds",
        help="run: wall time, or processor time of the one thread, for a machine that others use as well",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=0, help="run: torch threads; 0 leaves torch's choice")
    parser.add_argument("--save", action="store_true", help="write the table to bench/results/")
    arguments = parser.parse_args()
    if arguments.mode == "record":
        record(arguments)
        return
    if arguments.mode == "check":
        check(arguments)
        return
    table = replay(arguments) if arguments.mode == "replay" else run(arguments)
    print(table)
    if arguments.save:
        path = Path(__file__).parent / "results" / f"speculative_{arguments.mode}.md"
        path.write_text(table + "\n")


def questions() -> list[dict[str, Any]]:
    """First turns, one of each category in turn, so that a part of them is a fair sample."""
    data = Path(os.environ.get("INFERCORE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    lines = (data / "spec_bench" / "question.jsonl").read_text().splitlines()
    by_category: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        question = json.loads(line)
        by_category[question["category"]].append(question)
    longest = max(map(len, by_category.values()))
    return [some[index] for index in range(longest) for some in by_category.values() if index < len(some)]


def group_of(category: str) -> str:
    return category if category in GROUPS else "mt_bench"


# ------------------------------------------------------------------------------------------------------------- record


def record(arguments: argparse.Namespace, *, max_new_tokens: int = 128) -> None:
    import torch

    model, tokenizer = load_model(arguments.model)
    arguments.traces.parent.mkdir(parents=True, exist_ok=True)
    done = {trace["question_id"] for trace in traces(arguments.traces)} if arguments.traces.exists() else set()
    with arguments.traces.open("a") as file:
        for question in questions():
            if question["question_id"] in done:
                continue
            prompt = prompt_ids(tokenizer, question)
            with torch.inference_mode():
                output = model.generate(
                    torch.tensor([prompt]),
                    attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    return_dict_in_generate=True,
                    output_logits=True,
                )
            values, top_ids = torch.cat(output.logits).topk(8)
            trace = {
                "question_id": question["question_id"],
                "category": question["category"],
                "prompt_ids": prompt,
                "output_ids": output.sequences[0, len(prompt) :].tolist(),
                "top_ids": top_ids.tolist(),
                "gaps": [round(gap, 5) for gap in (values[:, 0] - values[:, 1]).tolist()],
            }
            file.write(json.dumps(trace) + "\n")
            file.flush()
            print(question["question_id"], question["category"], len(trace["output_ids"]), flush=True)


def load_model(path: Path | None) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from infercore.demo.fetch import smollm2_path

    folder = path or smollm2_path()
    if folder is None:
        raise SystemExit("no model: run `infercore demo` once, or give --model")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def prompt_ids(tokenizer: Any, question: dict[str, Any]) -> list[int]:
    messages = [{"role": "user", "content": question["turns"][0]}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def traces(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        for line in file:
            yield json.loads(line)


# ------------------------------------------------------------------------------------------------------------- replay


def replay(arguments: argparse.Namespace) -> str:
    """Accept length per task group, and host time per step, of every drafter on the same traces in the same order."""
    if not arguments.traces.exists():
        raise SystemExit(f"no traces at {arguments.traces}; run `python bench/speculative.py record` first")
    recorded = list(traces(arguments.traces))
    groups = sorted({group_of(trace["category"]) for trace in recorded})
    lines = [
        f"machine: {machine()} | commit {commit()} | {len(recorded)} questions, {arguments.new_tokens} new tokens, "
        f"trees of {arguments.nodes} nodes | greedy fp32 traces, replayed in one order, tables kept across questions",
        "",
        "| drafter | accept length | " + " | ".join(groups) + " | acceptance rate of nodes | host µs per step |",
        "| --- " * (len(groups) + 4) + "|",
    ]
    for name, make in DRAFTERS.items():
        replay_drafter(make(), recorded[:2], arguments)  # compile and warm
        gained, drafted, seconds = replay_drafter(make(), recorded, arguments)
        everything = [length for lengths in gained.values() for length in lengths]
        accepted = sum(everything) - len(everything)
        lines.append(
            f"| {name} | {np.mean(everything):.3f} | "
            + " | ".join(f"{np.mean(gained[group]):.2f}" for group in groups)
            + f" | {accepted / max(drafted, 1):.1%} | {seconds / len(everything) * 1e6:.0f} |"
        )
    return "\n".join(lines)


def replay_drafter(
    drafter: Drafter, recorded: list[dict[str, Any]], arguments: argparse.Namespace
) -> tuple[dict[str, list[int]], int, float]:
    """Accept lengths per group, nodes drafted, and seconds spent in drafting, verifying and committing."""
    gained: dict[str, list[int]] = defaultdict(list)
    num_drafted = 0
    seconds = 0.0
    for number, trace in enumerate(recorded):
        prompt = np.array(trace["prompt_ids"], np.int32)
        output = np.array(trace["output_ids"][: arguments.new_tokens], np.int32)
        tops = np.array(trace["top_ids"], np.int32)
        text = np.concatenate([prompt, output])
        length = len(prompt) + 1  # prefill gave the first token
        if isinstance(drafter, TopTokenObserver):
            drafter.observe(prompt[-1:], tops[:1])
        while length < len(text):
            started = time.perf_counter()
            (tree,) = drafter.propose([DraftRequest(number, text[:length], arguments.nodes)])
            seconds += time.perf_counter() - started
            targets = follow(tree, text[length:])
            started = time.perf_counter()
            (verdict,) = verify_greedy([tree], [targets])
            new = verdict.token_ids(tree)[: len(text) - length]
            drafter.commit(number, new)
            seconds += time.perf_counter() - started
            if isinstance(drafter, TopTokenObserver):
                first = length - len(prompt)
                drafter.observe(text[length - 1 : length - 1 + len(new)], tops[first : first + len(new)])
            gained[group_of(trace["category"])].append(len(new))
            num_drafted += tree.num_nodes
            length += len(new)
        drafter.close(number)
    return gained, num_drafted, seconds


def follow(tree: Any, future: np.ndarray) -> np.ndarray:
    """The target's choices on the recorded path; -1 off it, where the trace does not know them."""
    targets = np.full(tree.num_nodes + 1, -1, np.int32)
    targets[0] = future[0]
    depth_on_path = {-1: 0}
    for node, (token, parent) in enumerate(zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True)):
        depth = depth_on_path.get(parent)
        if depth is not None and depth + 1 < len(future) and future[depth] == token:
            depth_on_path[node] = depth + 1
            targets[node + 1] = future[depth + 1]
    return targets


# ---------------------------------------------------------------------------------------------------------------- run

FIXED = (4, 8, 16)


def run(arguments: argparse.Namespace) -> str:
    """Every contestant in turn on every question, from an empty prefix cache, prefill included."""
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    contestants = make_contestants(arguments)
    some = questions()[: arguments.questions]
    results = []
    if arguments.timings and arguments.timings.exists():
        results = [json.loads(line) for line in arguments.timings.read_text().splitlines()]
    done = {result["question_id"] for result in results}
    run_question(contestants, some[0], arguments.new_tokens)  # warm up, compile
    for question in some:
        if question["question_id"] in done:
            continue
        results.append(run_question(contestants, question, arguments.new_tokens))
        if arguments.timings:
            with arguments.timings.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    print(contestants["controller"].report())
    return run_table(results, arguments)


def make_contestants(arguments: argparse.Namespace) -> dict[str, Any]:
    model, tokenizer = load_model(arguments.model)
    ours, _ = load_model(arguments.model)
    contestants: dict[str, Any] = {
        "HF greedy": HuggingFace(model, tokenizer),
        "HF prompt lookup": HuggingFace(model, tokenizer, prompt_lookup_num_tokens=10),
        "plain": Ours(ours, tokenizer, None, None, 0),
    }
    for num_nodes in FIXED:
        contestants[f"fixed {num_nodes}"] = Ours(ours, tokenizer, best_drafter(), None, num_nodes)
    contestants["controller"] = Ours(ours, tokenizer, best_drafter(), SpeedController(), 32)
    return contestants


def best_drafter() -> Drafter:
    return DRAFTERS["suffix + recycling"]()


class HuggingFace:
    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, options

    def __call__(self, prompt: list[int], max_new_tokens: int) -> tuple[list[int], int]:
        import torch

        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, **self.options
            )
        return output[0, len(prompt) :].tolist(), 0


class Ours:
    def __init__(self, model: Any, tokenizer: Any, drafter: Any, controller: Any, num_nodes: int) -> None:
        from infercore.hf import Engine

        self.engine = Engine(model, tokenizer, num_pages=256, controller=controller)
        self.drafter, self.controller, self.num_nodes = drafter, controller, num_nodes

    def __call__(self, prompt: list[int], max_new_tokens: int) -> tuple[list[int], int]:
        self.engine.cache.clear()
        forwards = self.engine.stats.num_forwards
        (completion,) = self.engine.generate(
            [prompt], max_new_tokens=max_new_tokens, drafter=self.drafter, max_draft_nodes=self.num_nodes
        )
        return list(completion.token_ids), self.engine.stats.num_forwards - forwards

    def report(self) -> str:
        return f"{self.controller.report()}\n{self.engine.stats.as_dict()}"


def run_question(contestants: dict[str, Any], question: dict[str, Any], max_new_tokens: int) -> dict[str, Any]:
    prompt = prompt_ids(next(iter(contestants.values())).tokenizer, question)
    result: dict[str, Any] = {
        "question_id": question["question_id"], "category": question["category"], "num_prompt": len(prompt),
        "seconds": {}, "cpu_seconds": {}, "forwards": {}, "outputs": {},
    }  # fmt: skip
    for name, contestant in contestants.items():
        start, cpu_start = time.perf_counter(), time.process_time()
        output, forwards = contestant(prompt, max_new_tokens)
        result["seconds"][name] = time.perf_counter() - start
        result["cpu_seconds"][name] = time.process_time() - cpu_start
        result["forwards"][name] = forwards
        result["outputs"][name] = output
    return result


def run_table(results: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Speed-ups are ratios of summed times; a group's best fixed setting is what the controller is held against."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        groups[group_of(result["category"])].append(result)
    groups = {"all": results, **dict(sorted(groups.items()))}
    names = list(results[0]["seconds"])

    def total(name: str, group: str) -> float:
        return sum(result[arguments.clock][name] for result in groups[group])

    differing = {
        name: [r["question_id"] for r in results if r["outputs"][name] != r["outputs"]["HF greedy"]] for name in names
    }
    tokens = sum(len(result["outputs"]["plain"]) for result in results)
    lines = [
        f"machine: {machine()} | commit {commit()} | {len(results)} questions, {arguments.new_tokens} new tokens, "
        f"fp32, batch 1, prefill included, {arguments.threads or os.cpu_count()} threads, {arguments.clock} summed, "
        "contestants in turn on each question | suffix + recycling drafter",
        "",
        "| contestant | tokens per forward | over HF greedy | "
        + " | ".join(f"{g}" for g in groups if g != "all")
        + " | over our plain | worst group over plain | outputs unlike HF greedy |",
        "| --- " * (len(groups) + 5) + "|",
    ]
    for name in names:
        forwards = sum(result["forwards"][name] for result in results)
        over_plain = {group: total("plain", group) / total(name, group) for group in groups}
        worst = min((group for group in groups if group != "all"), key=over_plain.__getitem__)
        per_forward = f"{tokens / forwards:.2f}" if forwards else ""
        lines.append(
            f"| {name} | {per_forward} | {total('HF greedy', 'all') / total(name, 'all'):.2f} | "
            + " | ".join(f"{total('HF greedy', g) / total(name, g):.2f}" for g in groups if g != "all")
            + f" | {over_plain['all']:.2f} | {over_plain[worst]:.2f} ({worst}) | {len(differing[name])} |"
        )
    best = {g: max(total("controller", g) and total("plain", g) / total(n, g) for n in names[2:-1]) for g in groups}
    lines += ["", "controller's speed relative to the best fixed setting (0, 4, 8 or 16 nodes) of each group: "]
    lines[-1] += ", ".join(f"{g} {total('plain', g) / total('controller', g) / best[g]:.3f}" for g in groups)
    lines += ["", f"questions whose output differs from HF greedy: { {k: v for k, v in differing.items() if v} }"]
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- check


def check(arguments: argparse.Namespace) -> None:
    """Outputs of our engine against recorded HF greedy ones; the logit gap of the two best tokens where they part."""
    import torch

    from infercore.hf import Engine

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(arguments.model)
    controller = FixedBudget(arguments.fixed) if arguments.fixed else SpeedController()
    engine = Engine(model, tokenizer, controller=controller)
    drafter = DRAFTERS[arguments.drafter]()
    recorded = list(traces(arguments.traces))[: arguments.questions]
    differing = []
    for start in range(0, len(recorded), arguments.batch):
        some = recorded[start : start + arguments.batch]
        completions = engine.generate(
            [trace["prompt_ids"] for trace in some],
            max_new_tokens=arguments.new_tokens,
            drafter=drafter,
            max_draft_nodes=max(32, arguments.fixed),
        )
        for trace, completion in zip(some, completions, strict=True):
            expected, found = trace["output_ids"][: arguments.new_tokens], list(completion.token_ids)
            if found != expected:
                first = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
                differing.append((trace["question_id"], first, None if first is None else trace["gaps"][first]))
        print(f"{start + len(some)} questions, differing (id, position, gap): {differing}", flush=True)
    print(f"{arguments.drafter}, batch {arguments.batch}, {machine()}, commit {commit()}")
    print(engine.stats.as_dict())
    if isinstance(controller, SpeedController):
        print(controller.report())


def machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}"


def commit() -> str:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return git.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
