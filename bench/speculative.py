"""How many tokens does each drafter gain per forward of SmolLM2 on Spec-Bench?

    python bench/speculative.py record               greedy traces by plain HF generate, once (10 minutes on 2 cores);
                                                     questions that are on file already are left out
    python bench/speculative.py replay [--save]      text-only drafters on those traces: no model, seconds
    python bench/speculative.py replay --eagle HEAD  an EAGLE head as well, alone and beside the suffix automaton: the
                                                     model runs once over each trace for its features

The questions come from $INFERCORE_DATA/spec_bench (first turns), the model from the cache that `infercore demo` fills
or from --model. A trace holds the tokens that greedy decoding produced, and the 8 likeliest at each step.
`bench/speculative_engine.py` runs the engine itself.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from infercore.speculative import (
    Drafter,
    DraftRequest,
    NGramDrafter,
    RecyclingDrafter,
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
    parser.add_argument("mode", choices=["record", "replay"])
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--questions", type=int, default=240, help="record: how many, spread over all categories")
    parser.add_argument("--batch", type=int, default=8, help="record: prompts in one call of generate")
    parser.add_argument("--eagle", type=Path, help="replay: folder of an EAGLE head for the model")
    add_common_arguments(parser)
    arguments = parser.parse_args()
    if arguments.mode == "record":
        record(arguments)
    else:
        name = "speculative_replay.md" if arguments.eagle is None else "speculative_replay_eagle.md"
        show(replay(arguments), name, arguments)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--traces", type=Path, default=Path.home() / ".cache" / "infercore" / "spec_bench_smollm2.jsonl"
    )
    parser.add_argument("--model", type=Path, help="folder of the model; default: the one that the demo converted")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--save", action="store_true", help="write the table to bench/results/")


def show(table: str, name: str, arguments: argparse.Namespace) -> None:
    print(table)
    if arguments.save:
        (Path(__file__).parent / "results" / name).write_text(table + "\n")


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


def record(arguments: argparse.Namespace) -> None:
    """Prompts of like lengths go through `generate` together, padded on the left."""
    import torch

    model, tokenizer = load_model(arguments.model)
    arguments.traces.parent.mkdir(parents=True, exist_ok=True)
    done = {trace["question_id"] for trace in traces(arguments.traces)} if arguments.traces.exists() else set()
    missing = [
        (prompt_ids(tokenizer, question), question)
        for question in questions()[: arguments.questions]
        if question["question_id"] not in done
    ]
    missing.sort(key=lambda pair: len(pair[0]))
    with arguments.traces.open("a") as file:
        for start in range(0, len(missing), arguments.batch):
            some = missing[start : start + arguments.batch]
            longest = max(len(prompt) for prompt, _ in some)
            ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(prompt)) + prompt for prompt, _ in some])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in some])
            with torch.inference_mode():
                output = model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=arguments.new_tokens,
                    do_sample=False,
                    return_dict_in_generate=True,
                    output_logits=True,
                )
            values, top_ids = torch.stack(output.logits, 1).topk(8)
            for row, (prompt, question) in enumerate(some):
                output_ids = output.sequences[row, longest:].tolist()
                if tokenizer.eos_token_id in output_ids:
                    output_ids = output_ids[: output_ids.index(tokenizer.eos_token_id) + 1]
                length = len(output_ids)
                trace = {
                    "question_id": question["question_id"],
                    "category": question["category"],
                    "prompt_ids": prompt,
                    "output_ids": output_ids,
                    "top_ids": top_ids[row, :length].tolist(),
                    "gaps": [round(gap, 5) for gap in (values[row, :length, 0] - values[row, :length, 1]).tolist()],
                }
                file.write(json.dumps(trace) + "\n")
            file.flush()
            print(f"{start + len(some)} of {len(missing)}, {longest} tokens", flush=True)


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


def traces(path: Path) -> list[dict[str, Any]]:
    """What was recorded, in the order of `questions`."""
    place = {question["question_id"]: index for index, question in enumerate(questions())}
    with path.open() as file:
        return sorted(map(json.loads, file), key=lambda trace: place[trace["question_id"]])


# ------------------------------------------------------------------------------------------------------------- replay


def replay(arguments: argparse.Namespace) -> str:
    """Accept length per task group, and host time per step, of every drafter on the same traces in the same order."""
    if not arguments.traces.exists():
        raise SystemExit(f"no traces at {arguments.traces}; run `python bench/speculative.py record` first")
    recorded = list(traces(arguments.traces))[: arguments.questions]
    drafters = dict(DRAFTERS)
    features: Features = {}
    if arguments.eagle is not None:
        drafters, features = with_eagle(arguments, recorded)
    groups = sorted({group_of(trace["category"]) for trace in recorded})
    lines = [
        f"machine: {machine()} | commit {commit()} | {len(recorded)} questions, {arguments.new_tokens} new tokens, "
        f"trees of {arguments.nodes} nodes | greedy fp32 traces, replayed in one order, tables kept across questions",
        "",
        "| drafter | accept length | " + " | ".join(groups) + " | acceptance rate of nodes | host µs per step |",
        "| --- " * (len(groups) + 4) + "|",
    ]
    for name, make in drafters.items():
        replay_drafter(make(), recorded[:2], arguments, features)  # compile and warm
        gained, drafted, seconds = replay_drafter(make(), recorded, arguments, features)
        everything = [length for lengths in gained.values() for length in lengths]
        accepted = sum(everything) - len(everything)
        lines.append(
            f"| {name} | {np.mean(everything):.3f} | "
            + " | ".join(f"{np.mean(gained[group]):.2f}" for group in groups)
            + f" | {accepted / max(drafted, 1):.1%} | {seconds / len(everything) * 1e6:.0f} |"
        )
    return "\n".join(lines)


Features = dict[int, Any]
"""By question: hidden states `[tokens, columns]` of prompt and output."""


def with_eagle(
    arguments: argparse.Namespace, recorded: list[dict[str, Any]]
) -> tuple[dict[str, Callable[[], Drafter]], Features]:
    """The head alone, and beside the best text-only drafters; features of every trace by one forward each."""
    import torch

    from infercore.hf import EagleDrafter
    from infercore.hf.features import Features as Noted

    model, _ = load_model(arguments.model)
    eagle = EagleDrafter.from_pretrained(arguments.eagle, model)
    noted = Noted(model, eagle.feature_layers)
    features: Features = {}
    for number, trace in enumerate(recorded):
        text = [*trace["prompt_ids"], *trace["output_ids"][: arguments.new_tokens]]
        with torch.inference_mode():
            model.base_model(torch.tensor([text]), use_cache=False)
        features[number] = noted.rows(len(text)).clone()
    drafters: dict[str, Callable[[], Drafter]] = {
        "suffix": SuffixDrafter,
        "EAGLE": lambda: eagle,
        "suffix + EAGLE": lambda: Union(SuffixDrafter(), eagle),
        "suffix + recycling + EAGLE": lambda: Union(SuffixDrafter(), RecyclingDrafter(VOCAB_SIZE), eagle),
    }
    return drafters, features


def show_features(drafter: Drafter, features: Features, number: int, first: int, text: np.ndarray, length: int) -> None:
    """Tell what the forward over `text[first:length - 1]` noted, as the engine does."""
    from infercore.hf.features import feature_observers

    for observer in feature_observers(drafter):
        observer.see([number], [first], [np.arange(first, length - 1)], features[number], [text[:length]])


def replay_drafter(
    drafter: Drafter, recorded: list[dict[str, Any]], arguments: argparse.Namespace, features: Features
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
        if features:
            show_features(drafter, features, number, 0, text, length)
        while length < len(text):
            started = time.thread_time()
            (tree,) = drafter.propose([DraftRequest(number, text[:length], arguments.nodes)])
            seconds += time.thread_time() - started
            targets = follow(tree, text[length:])
            started = time.thread_time()
            (verdict,) = verify_greedy([tree], [targets])
            new = verdict.token_ids(tree)[: len(text) - length]
            drafter.commit(number, new)
            seconds += time.thread_time() - started
            if isinstance(drafter, TopTokenObserver):
                first = length - len(prompt)
                drafter.observe(text[length - 1 : length - 1 + len(new)], tops[first : first + len(new)])
            gained[group_of(trace["category"])].append(len(new))
            num_drafted += tree.num_nodes
            length += len(new)
            if features:
                show_features(drafter, features, number, length - len(new) - 1, text, length)
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
