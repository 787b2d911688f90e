"""Does speculation make SmolLM2 on Spec-Bench faster?

    python bench/speculative_engine.py run [--save]     HF generate, prompt lookup, our engine plain, with trees of
                                                        fixed sizes, and with the controller; outputs are compared.
                                                        A question counts once all contestants have finished it
    python bench/speculative_engine.py drafters [--save]  the same with each drafter, each under a controller of its own
    python bench/speculative_engine.py curve [--save]   what a forward over n rows costs, at context 512
    python bench/speculative_engine.py host [--save]    host time of drafting and verifying, per step and sequence

Questions, model and traces are those of `bench/speculative.py`.
"""

import argparse
import copy
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infercore.hf import Engine
from infercore.speculative import Drafter, FixedBudget, SpeedController, TokenTree
from speculative import (
    DRAFTERS,
    add_common_arguments,
    commit,
    group_of,
    load_model,
    machine,
    prompt_ids,
    questions,
    show,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["run", "drafters", "curve", "host"])
    parser.add_argument("--questions", type=int, default=240, help="how many, spread over all categories")
    parser.add_argument("--timings", type=Path, help="run: append every timing here, and go on from what is there")
    parser.add_argument("--seconds", type=float, default=1e9, help="run: begin no question later than this")
    parser.add_argument(
        "--clock", choices=["seconds", "cpu_seconds"], default="seconds",
        help="wall time, or processor time of the one thread, for a machine that others use as well",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    add_common_arguments(parser)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.mode == "run":
        show(run(arguments, make_contestants(arguments)), "speculative_engine.md", arguments)
    elif arguments.mode == "drafters":
        show(run(arguments, make_drafters(arguments)), "speculative_drafters.md", arguments)
    elif arguments.mode == "host":
        show(host(arguments), "speculative_host.md", arguments)
    else:
        show(curve(arguments), "speculative_curve.md", arguments)


# ---------------------------------------------------------------------------------------------------------------- run

FIXED = (4, 8, 16, 32)


def run(arguments: argparse.Namespace, contestants: dict[str, Any]) -> str:
    """Every contestant on every question, from an empty prefix cache, prefill included.

    Hugging Face's calls come one after the other; our engines take their steps in turn, whoever has the fewest tokens
    first, and each step is timed: a machine whose memory is slow for a second is slow for all of them.
    """
    some = stratified(arguments.questions)
    results = []
    if arguments.timings and arguments.timings.exists():
        results = [json.loads(line) for line in arguments.timings.read_text().splitlines()]
    done = {result["question_id"] for result in results}
    for question in questions()[-2:]:  # warm up, compile
        run_question(contestants, question, arguments.new_tokens)
    begin = time.perf_counter()
    for question in some:
        if question["question_id"] in done:
            continue
        if time.perf_counter() - begin > arguments.seconds:
            break
        results.append(run_question(contestants, question, arguments.new_tokens))
        if arguments.timings:
            with arguments.timings.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    for name, contestant in contestants.items():
        if isinstance(contestant, Ours) and contestant.controller is not None:
            print(f"{name}: {contestant.report()}")
    return run_table(results, arguments, list(contestants))


def stratified(num_questions: int) -> list[dict[str, Any]]:
    """As many of each task group, one of each in turn; within chat one of each of its categories."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for question in questions():
        groups[group_of(question["category"])].append(question)
    turns = zip(*(some[: len(min(groups.values(), key=len))] for some in groups.values()), strict=True)
    return [question for turn in turns for question in turn][:num_questions]


def without_our_drafts(arguments: argparse.Namespace) -> tuple[dict[str, Any], Any, Any]:
    """Those that everyone is compared with, the model of our engines, and its tokenizer."""
    model, tokenizer = load_model(arguments.model)
    ours, _ = load_model(arguments.model)
    references: dict[str, Any] = {
        "HF greedy": HuggingFace(model, tokenizer),
        "HF prompt lookup": HuggingFace(model, tokenizer, prompt_lookup_num_tokens=10),
        "plain": Ours(ours, tokenizer, None, None, 0),
    }
    return references, ours, tokenizer


def make_contestants(arguments: argparse.Namespace) -> dict[str, Any]:
    contestants, ours, tokenizer = without_our_drafts(arguments)
    for num_nodes in FIXED:
        contestants[f"fixed {num_nodes}"] = Ours(ours, tokenizer, best_drafter(), None, num_nodes)
    controlled = contestants["controller"] = Ours(ours, tokenizer, best_drafter(), SpeedController(), 32)
    controlled.controller.curve = controlled.engine.cost_curve(refresh=True)
    return contestants


def make_drafters(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every drafter, 32 nodes at most, as many of them as its controller thinks pay."""
    contestants, ours, tokenizer = without_our_drafts(arguments)
    curve = contestants["plain"].engine.cost_curve(refresh=True)
    for name, make in DRAFTERS.items():
        contestants[name] = Ours(ours, tokenizer, make(), SpeedController(copy.deepcopy(curve)), 32)
    return contestants


def best_drafter() -> Drafter:
    return DRAFTERS["suffix + recycling"]()


class HuggingFace:
    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, options

    def __call__(self, prompt: list[int], max_new_tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, **self.options
            )
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens


class Ours:
    def __init__(self, model: Any, tokenizer: Any, drafter: Any, controller: Any, num_nodes: int) -> None:
        self.engine = Engine(model, tokenizer, num_pages=256, controller=controller)
        self.drafter, self.controller, self.num_nodes = drafter, controller, num_nodes

    def submit(self, prompt: list[int], max_new_tokens: int) -> Any:
        self.engine.cache.clear()
        request = self.engine.request(
            prompt, max_new_tokens=max_new_tokens, drafter=self.drafter, max_draft_nodes=self.num_nodes
        )
        return self.engine.submit(request)[0]

    def report(self) -> str:
        return f"{self.controller.report()}\n{self.engine.stats.as_dict()}"


def run_question(contestants: dict[str, Any], question: dict[str, Any], max_new_tokens: int) -> dict[str, Any]:
    prompt = prompt_ids(next(iter(contestants.values())).tokenizer, question)
    result: dict[str, Any] = {
        "question_id": question["question_id"], "category": question["category"], "num_prompt": len(prompt),
        "seconds": {}, "cpu_seconds": {}, "forwards": {}, "outputs": {},
    }  # fmt: skip
    sequential = [name for name, contestant in contestants.items() if isinstance(contestant, HuggingFace)]
    for name in sequential[:: 1 if int(question["question_id"]) % 2 else -1]:
        start, cpu_start = time.perf_counter(), time.process_time()
        result["outputs"][name] = contestants[name](prompt, max_new_tokens)
        result["seconds"][name] = time.perf_counter() - start
        result["cpu_seconds"][name] = time.process_time() - cpu_start
    ours = {name: contestant for name, contestant in contestants.items() if isinstance(contestant, Ours)}
    handles = {name: contestant.submit(prompt, max_new_tokens) for name, contestant in ours.items()}
    seconds, cpu_seconds, forwards = (result[key] for key in ("seconds", "cpu_seconds", "forwards"))
    for name in ours:
        seconds[name], cpu_seconds[name], forwards[name] = 0.0, 0.0, 0
    while running := [name for name, handle in handles.items() if not handle.is_done]:
        fewest = min(len(handles[name].output_ids) for name in running)
        turn = [name for name in running if len(handles[name].output_ids) == fewest]
        for name in turn[fewest % len(turn) :] + turn[: fewest % len(turn)]:  # nobody always follows the same one
            start, cpu_start = time.perf_counter(), time.process_time()
            ours[name].engine.step()
            seconds[name] += time.perf_counter() - start
            cpu_seconds[name] += time.process_time() - cpu_start
            forwards[name] += 1
    for name, handle in handles.items():
        result["outputs"][name] = handle.token_ids
    return result


def run_table(results: list[dict[str, Any]], arguments: argparse.Namespace, names: list[str]) -> str:
    """Speed-ups are ratios of summed times; a group's best fixed setting is what the controller is held against."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        groups[group_of(result["category"])].append(result)
    groups = {"all": results, **dict(sorted(groups.items()))}

    def total(name: str, group: str) -> float:
        return sum(result[arguments.clock][name] for result in groups[group])

    differing = {
        name: [r["question_id"] for r in results if r["outputs"][name] != r["outputs"]["HF greedy"]] for name in names
    }
    tokens = sum(len(result["outputs"]["plain"]) for result in results)
    lines = [
        f"machine: {machine()} | commit {commit()} | {len(results)} questions ("
        + ", ".join(f"{len(some)} {group}" for group, some in groups.items() if group != "all")
        + f"), {arguments.new_tokens} new tokens, fp32, batch 1, prefill included, "
        f"{arguments.threads or os.cpu_count()} threads, {arguments.clock} summed, "
        f"Hugging Face's calls in turn on each question, our engines' steps in turn | "
        + ("suffix + recycling drafter" if arguments.mode == "run" else "each drafter under a controller of its own"),
        "",
        "| contestant | tokens per forward | over HF greedy | "
        + " | ".join(f"{g}" for g in groups if g != "all")
        + " | over our plain | worst group over plain | outputs unlike HF greedy |",
        "| --- " * (len(groups) + 5) + "|",
    ]
    for name in names:
        forwards = sum(result["forwards"].get(name, 0) for result in results)
        over_plain = {group: total("plain", group) / total(name, group) for group in groups}
        worst = min((group for group in groups if group != "all"), key=over_plain.__getitem__)
        per_forward = f"{tokens / forwards:.2f}" if forwards else ""
        lines.append(
            f"| {name} | {per_forward} | {total('HF greedy', 'all') / total(name, 'all'):.2f} | "
            + " | ".join(f"{total('HF greedy', g) / total(name, g):.2f}" for g in groups if g != "all")
            + f" | {over_plain['all']:.2f} | {over_plain[worst]:.2f} ({worst}) | {len(differing[name])} |"
        )
    if arguments.mode == "drafters":
        return "\n".join(lines)
    best = {g: max(total("controller", g) and total("plain", g) / total(n, g) for n in names[2:-1]) for g in groups}
    lines += ["", "controller's speed relative to the best fixed setting (0, 4, 8, 16 or 32 nodes) of each group: "]
    lines[-1] += ", ".join(f"{g} {total('plain', g) / total('controller', g) / best[g]:.3f}" for g in groups)
    lines += ["", f"questions whose output differs from HF greedy: { {k: v for k, v in differing.items() if v} }"]
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- curve


class Useless:
    """Proposes a chain of the wanted length; what it holds does not matter."""

    num_nodes = 0

    def propose(self, requests: Any) -> list[TokenTree]:
        return [TokenTree.chain(np.arange(7, 7 + min(self.num_nodes, request.max_nodes))) for request in requests]

    def commit(self, request_id: int, accepted_token_ids: Any, features: Any = None) -> None: ...

    def close(self, request_id: int) -> None: ...


def curve(arguments: argparse.Namespace, *, context: int = 512, rounds: int = 12) -> str:
    """Median time of a decoding step by its rows, sizes taking turns, relative to one row."""
    model, tokenizer = load_model(arguments.model)
    engine, drafter = Engine(model, tokenizer), Useless()
    clock = time.process_time if arguments.clock == "cpu_seconds" else time.perf_counter
    sizes = (1, 2, 4, 8, 16, 32, 64)
    prompt = np.random.default_rng(0).integers(100, 40_000, context)
    request = engine.request(prompt, max_new_tokens=2048, drafter=drafter, max_draft_nodes=64, eos_token_ids=())
    (handle,) = engine.submit(request)
    engine.step()
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for round_ in range(rounds + 1):
        for size in sizes:
            drafter.num_nodes = size - 1
            start = clock()
            engine.step()
            if round_:
                times[size].append(clock() - start)
    handle.cancel()
    one = float(np.median(times[1]))
    return "\n".join(
        [
            f"machine: {machine()} | commit {commit()} | SmolLM2 fp32, batch 1, context {context}, "
            f"{arguments.threads or os.cpu_count()} threads, {arguments.clock}, median of {rounds} (p20-p80)",
            "",
            "| rows | " + " | ".join(str(size) for size in sizes) + " |",
            "| --- " * (len(sizes) + 1) + "|",
            "| ms | "
            + " | ".join(
                f"{np.median(t) * 1e3:.1f} ({np.quantile(t, 0.2) * 1e3:.1f}-{np.quantile(t, 0.8) * 1e3:.1f})"
                for t in times.values()
            )
            + " |",
            "| relative | " + " | ".join(f"{np.median(t) / one:.2f}" for t in times.values()) + " |",
        ]
    )


# --------------------------------------------------------------------------------------------------------------- host


class Timed:
    """A callable whose calls are timed."""

    def __init__(self, function: Any) -> None:
        self.function, self.seconds = function, []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = self.function(*args, **kwargs)
        self.seconds.append(time.perf_counter() - start)
        return result


def host(arguments: argparse.Namespace) -> str:
    """Trees of 32 nodes in every step; the caches are cold, since the forward reads 540 MB between two drafts.

    The first draft of a request reads its prompt; it is part of the mean.

    Warm: each draft of the run is asked for a second time at once. Operations over `[rows, vocab]` are what is left of
    choosing tokens when verification is taken off.
    """
    from infercore.hf import choose

    model, tokenizer = load_model(arguments.model)
    some = stratified(arguments.questions if arguments.questions < 240 else 16)
    prompts = [prompt_ids(tokenizer, question) for question in some]
    lines = [
        f"machine: {machine()} | commit {commit()} | SmolLM2 fp32, {len(prompts)} questions, {arguments.new_tokens} "
        f"new tokens, suffix + recycling, trees of 32 nodes in every step, {torch.get_num_threads()} threads",
        "",
        "| batch | µs per step and sequence: draft, cold (median, mean, p99) | draft, warm (median) | "
        "verify (median, mean) | commit + observe (mean) | draft + verify, cold (median, mean) | rows x vocab (mean) | "
        "accept length |",
        "| --- " * 8 + "|",
    ]
    for batch in (1, 8):
        drafter: Any = best_drafter()
        engine = Engine(model, tokenizer, num_pages=1024, controller=FixedBudget(32))
        other = [prompt_ids(tokenizer, questions()[-1])] * batch  # loads what was compiled
        engine.generate(other, max_new_tokens=8, drafter=best_drafter(), max_draft_nodes=32)
        engine.cache.clear()
        engine.stats.reset()
        propose, warm = Timed(drafter.propose), Timed(drafter.propose)

        def both(requests: Any, propose: Timed = propose, warm: Timed = warm) -> Any:
            trees = propose(requests)
            warm(requests)
            return trees

        drafter.propose = both
        learn = [Timed(drafter.commit), Timed(drafter.observe)]
        drafter.commit, drafter.observe = learn
        verify = choose.verify_greedy = Timed(choose.verify_greedy)
        for start in range(0, len(prompts), batch):
            engine.generate(
                prompts[start : start + batch], max_new_tokens=arguments.new_tokens, drafter=drafter, max_draft_nodes=32
            )
        choose.verify_greedy = verify.function
        stats = engine.stats
        turns = stats.num_sampling_turns
        per_call = 1e6 * np.array(propose.seconds) * len(propose.seconds) / turns
        per_verify = 1e6 * np.array(verify.seconds) * len(verify.seconds) / turns
        mean = {
            "draft": 1e6 * sum(propose.seconds) / turns,
            "verify": 1e6 * sum(verify.seconds) / turns,
            "learn": 1e6 * sum(sum(timed.seconds) for timed in learn) / turns,
        }
        rows_x_vocab = 1e6 * (stats.choose_time_s - sum(verify.seconds) - sum(learn[1].seconds)) / turns
        lines.append(
            f"| {batch} | {np.median(per_call):.0f}, {mean['draft']:.0f}, {np.quantile(per_call, 0.99):.0f} | "
            f"{1e6 * np.median(warm.seconds) * len(warm.seconds) / turns:.0f} | "
            f"{np.median(per_verify):.1f}, {mean['verify']:.1f} | "
            f"{mean['learn']:.1f} | {np.median(per_call) + np.median(per_verify):.0f}, "
            f"{mean['draft'] + mean['verify']:.0f} | {rows_x_vocab:.0f} | {stats.accept_length:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
