"""How much faster does a program of prompts run than the plain Hugging Face code that does the same?

    python bench/lang.py [--save] [--only few-shot tree-of-thought ...] [--rounds 3]

Every contestant has a model of its own (SmolLM2-135M-Instruct, float32) and computes the same texts, which is checked.
Ours starts each round with an empty prefix cache. "Sequential" is one `generate` call per gap of the program, in order;
"batched" is `generate` over all gaps that are ready at once, on a prefix computed once (its DynamicCache copied for
each batch), written by hand for the two programs where a careful user would.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LogitsProcessorList

from infercore.demo import ensure_smollm2
from infercore.hf import Engine, GrammarProcessor, cache_argument
from infercore.lang import Function, Job, assistant, function, gen, select, user
from infercore.lang.backends import EngineBackend
from infercore.lang.chat import ChatFormat
from infercore.lang.scoring import decide
from infercore.lang.types import GenJob, GenResult, Result

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "lang"))

CHOICES = (" positive", " negative")
REVIEWS = [
    f"The {thing} was {how}, and {what}."
    for thing in ("room", "soup", "parcel", "film", "staff")
    for how in ("lovely", "broken", "great", "awful")
    for what in ("we will come back", "nobody helped us", "I told my friends", "it was late", "they smiled")
]


class SequentialHF:
    """Plain Hugging Face code as a backend: every job is one `generate` call when its turn comes."""

    def __init__(self, model: Any, tokenizer: Any, vocabulary: Any) -> None:
        self.model, self.tokenizer, self.vocabulary = model, tokenizer, vocabulary
        self.chat = ChatFormat(tokenizer)
        self.tickets = count()
        self.waiting: dict[int, Job] = {}
        self.num_forwards = 0
        model.register_forward_hook(lambda *_: setattr(self, "num_forwards", self.num_forwards + 1))

    def submit(self, job: Job) -> int:
        ticket = next(self.tickets)
        self.waiting[ticket] = job
        return ticket

    def step(self) -> Mapping[int, Result]:
        ticket, job = self.waiting.popitem()
        return {ticket: self.generate(job) if isinstance(job, GenJob) else self.select(job)}

    def partial(self, ticket: int) -> str:
        return ""

    def cancel(self, ticket: int) -> None:
        self.waiting.pop(ticket, None)

    def encode(self, job: Job) -> tuple[str, torch.Tensor]:
        text = self.chat.render(job.transcript) if job.transcript.has_roles else job.transcript.text
        special = not job.transcript.has_roles
        return text, self.tokenizer(text, return_tensors="pt", add_special_tokens=special).input_ids

    def generate(self, job: GenJob) -> GenResult:
        options = job.options
        _, ids = self.encode(job)
        processors = LogitsProcessorList()
        if options.schema is not None or options.regex is not None:
            from infercore import constrained

            spec = (
                constrained.json_schema(json.loads(options.schema))
                if options.schema is not None
                else constrained.regex(options.regex)
            )
            processors.append(GrammarProcessor(spec.bind(self.vocabulary)))
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=options.max_tokens,
            do_sample=False,
            stop_strings=list(options.stop) or None,
            tokenizer=self.tokenizer if options.stop else None,
            logits_processor=processors,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        text = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        for stop in options.stop:
            text = text.split(stop)[0]
        return GenResult(text)

    def select(self, job: Any) -> Result:
        _, ids = self.encode(job)
        tokens = [self.tokenizer(c, add_special_tokens=False).input_ids for c in job.choices]
        if all(len(t) == 1 for t in tokens):  # one step of generate says it all
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=1,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
                pad_token_id=self.tokenizer.eos_token_id,
            )
            rows = [[out.logits[0][0].log_softmax(-1)[t[0]].item()] for t in tokens]
        else:
            rows = []
            for t in tokens:
                whole = torch.cat([ids, torch.tensor([t])], 1)
                with torch.no_grad():
                    logprobs = self.model(whole, use_cache=False).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
                rows.append(logprobs[torch.arange(len(t)), t].tolist())
        return decide(tokens, rows, method=job.method)


def batched_generate(peer: SequentialHF, prefix: list[int], suffixes: list[list[int]], **options: Any) -> Any:
    """`generate` over `suffixes`, left-padded behind a copy of the prefix's cache."""
    cache = copy.deepcopy(peer.prefix_cache)
    cache.batch_repeat_interleave(len(suffixes))
    longest = max(map(len, suffixes))
    pad = peer.tokenizer.eos_token_id
    ids = torch.tensor([prefix + [pad] * (longest - len(s)) + s for s in suffixes])
    mask = torch.ones_like(ids)
    for row, suffix in enumerate(suffixes):
        mask[row, len(prefix) : len(prefix) + longest - len(suffix)] = 0
    return peer.model.generate(
        ids, attention_mask=mask, do_sample=False, pad_token_id=pad, **cache_argument(peer.model, cache), **options
    )


def compute_prefix(peer: SequentialHF, prefix: list[int]) -> None:
    peer.prefix_cache = DynamicCache()
    with torch.no_grad():
        peer.model(torch.tensor([prefix]), logits_to_keep=1, **cache_argument(peer.model, peer.prefix_cache))


# --- few-shot classification: 100 questions behind 1000 tokens -------------------------------------------------------


def few_shot_prompt() -> str:
    moods = {"lovely": "positive", "great": "positive", "broken": "negative", "awful": "negative"}
    shots = [f"Review: {r}\nMood: {moods[next(m for m in moods if m in r)]}\n\n" for r in REVIEWS]
    return "Decide whether a review is positive or negative.\n\n" + "".join(shots[i * 37 % 100] for i in range(56))


@function
def few_shot(s, prompt, review):
    s += prompt
    s += f"Review: {review}\nMood:"
    s += select("mood", CHOICES)
    return s["mood"]


def batched_few_shot(peer: SequentialHF, batch: list[dict[str, Any]]) -> list[Any]:
    prefix = peer.tokenizer.encode(batch[0]["prompt"])
    compute_prefix(peer, prefix)
    choices = [peer.tokenizer.encode(c)[0] for c in CHOICES]
    values: list[Any] = []
    for first in range(0, len(batch), 25):
        texts = [entry["prompt"] + f"Review: {entry['review']}\nMood:" for entry in batch[first : first + 25]]
        suffixes = [ids[len(prefix) :] for ids in peer.tokenizer(texts).input_ids]
        out = batched_generate(
            peer, prefix, suffixes, max_new_tokens=1, return_dict_in_generate=True, output_logits=True
        )
        values += [CHOICES[int(row[choices].argmax())] for row in out.logits[0]]
    return values


# --- tree of thought: three plans, three solutions of each, all graded -----------------------------------------------

RIDDLE = "A farmer has 17 sheep. All but 9 run away. Then 4 come back. How many sheep does the farmer have now?"
PLANS = ("drawing a picture", "counting step by step", "writing an equation")
STYLES = ("short", "careful", "detailed")
GRADES = ("1", "2", "3", "4", "5")


@function
def tree_of_thought(s, riddle):
    s += user(riddle)
    plans = s.fork(len(PLANS))
    for plan, how in zip(plans, PLANS, strict=True):
        plan += assistant(f"I will solve this by {how}. Plan:", gen("plan", max_tokens=32))
        plan += user("Carry out this plan.")
        ways = plan.fork(len(STYLES))
        for way, style in zip(ways, STYLES, strict=True):
            way += assistant(f"Here is a {style} solution:", gen("solution", max_tokens=48))
            way += user("Grade this solution from 1 to 5. Answer with the number.")
            way += assistant(select("grade", GRADES))
        plan.join(ways)
    s.join(plans)
    return s["plan"], s["solution"], s["grade"]


def batched_tree_of_thought(peer: SequentialHF, batch: list[dict[str, Any]]) -> list[Any]:
    turns = [{"role": "user", "content": batch[0]["riddle"]}]
    prefix = peer.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    compute_prefix(peer, prefix)

    def run(conversations: list[list[dict[str, str]]], **options: Any) -> Any:
        texts = [
            peer.tokenizer.apply_chat_template(c, tokenize=False, continue_final_message=True) for c in conversations
        ]
        suffixes = [ids[len(prefix) :] for ids in peer.tokenizer(texts, add_special_tokens=False).input_ids]
        out = batched_generate(peer, prefix, suffixes, **options)
        sequences = out if isinstance(out, torch.Tensor) else out.sequences
        length = len(prefix) + max(map(len, suffixes))
        return [peer.tokenizer.decode(row[length:], skip_special_tokens=True) for row in sequences], out

    opened = [[*turns, {"role": "assistant", "content": f"I will solve this by {how}. Plan:"}] for how in PLANS]
    plans, _ = run(opened, max_new_tokens=32)
    solved = []
    for conversation, plan in zip(opened, plans, strict=True):
        done = [*turns, {"role": "assistant", "content": conversation[-1]["content"] + plan}]
        done.append({"role": "user", "content": "Carry out this plan."})
        solved += [[*done, {"role": "assistant", "content": f"Here is a {style} solution:"}] for style in STYLES]
    solutions, _ = run(solved, max_new_tokens=48)
    graded = []
    for conversation, solution in zip(solved, solutions, strict=True):
        done = [*conversation[:-1], {"role": "assistant", "content": conversation[-1]["content"] + solution}]
        done.append({"role": "user", "content": "Grade this solution from 1 to 5. Answer with the number."})
        graded.append([*done, {"role": "assistant", "content": "\ue010"}])
    texts = [
        peer.tokenizer.apply_chat_template(c, tokenize=False, continue_final_message=True).split("\ue010")[0]
        for c in graded
    ]
    suffixes = [ids[len(prefix) :] for ids in peer.tokenizer(texts, add_special_tokens=False).input_ids]
    out = batched_generate(peer, prefix, suffixes, max_new_tokens=1, return_dict_in_generate=True, output_logits=True)
    choices = [peer.tokenizer.encode(g)[0] for g in GRADES]
    grades = [GRADES[int(row[choices].argmax())] for row in out.logits[0]]
    n = len(STYLES)
    split = [
        tuple(values[i * n : i * n + n] for i in range(len(PLANS))) for values in (tuple(solutions), tuple(grades))
    ]
    return [(tuple(plans), *split)]


# --- measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    name: str
    program: Function
    batch: list[dict[str, Any]]
    batched: Callable[[SequentialHF, list[dict[str, Any]]], list[Any]] | None = None
    outcome: Callable[[Any], Any] = field(default=lambda run: run.value)
    sequential: int | None = None  # run only so many entries sequentially, and multiply: all of them take minutes


def cases() -> list[Case]:
    import chat
    import extraction
    import react
    import tips

    prompt = few_shot_prompt()
    texts = list(extraction.TEXTS)
    return [
        Case("few-shot", few_shot, [{"prompt": prompt, "review": r} for r in REVIEWS], batched_few_shot, sequential=10),
        Case("tree-of-thought", tree_of_thought, [{"riddle": RIDDLE}], batched_tree_of_thought),
        Case("chat", chat.chat, [{"questions": chat.QUESTIONS}], outcome=lambda run: run.text),
        Case("tips", tips.tips, [{"topic": "staying healthy"}]),
        Case("extraction", extraction.extract, [{"text": t} for t in texts]),
        Case("react", react.react, [{"question": q} for q in react.QUESTIONS]),
    ]


def measure(case: Case, engine: Engine, peer: SequentialHF, rounds: int) -> dict[str, Any]:
    backend = EngineBackend(engine)
    times: dict[str, list[float]] = {"ours": [], "ours, op by op": [], "HF batched": [], "HF sequential": []}
    forwards: dict[str, int] = {}
    values: dict[str, Any] = {}
    reused = 0
    for i in range(rounds):
        for name, mode in (("ours", "auto"), ("ours, op by op", "eager")):
            if name == "ours, op by op" and i:
                continue
            engine.cache.clear()
            engine.stats.reset()
            start = time.perf_counter()
            if mode == "eager":
                runs = [case.program.run(backend, mode="eager", **entry) for entry in case.batch]
            else:
                runs = case.program.run_batch(backend, case.batch)
            times[name].append(time.perf_counter() - start)
            values[name] = [case.outcome(run) for run in runs]
            forwards[name] = engine.stats.num_forwards
            reused = engine.stats.num_reused_tokens if name == "ours" else reused
        if case.batched is not None:
            peer.num_forwards = 0
            start = time.perf_counter()
            values["HF batched"] = case.batched(peer, case.batch)
            times["HF batched"].append(time.perf_counter() - start)
            forwards["HF batched"] = peer.num_forwards
    part = case.batch[: case.sequential]
    times_all = len(case.batch) // len(part)
    peer.num_forwards = 0
    start = time.perf_counter()
    values["HF sequential"] = [case.outcome(case.program.run(peer, mode="eager", **entry)) for entry in part]
    times["HF sequential"].append((time.perf_counter() - start) * times_all)
    forwards["HF sequential"] = peer.num_forwards * times_all
    agreed = {name: value == values["ours"][: len(value)] for name, value in values.items()}
    return {"name": case.name, "times": times, "forwards": forwards, "reused": reused, "agreed": agreed}


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| program | contestant | seconds (min-max) | rounds | ours is faster by | forwards | same texts |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        ours = statistics.median(result["times"]["ours"])
        for name, times in result["times"].items():
            if times:
                median = statistics.median(times)
                ratio = "" if name == "ours" else f"{median / ours:.2f}x"
                lines.append(
                    f"| {result['name']} | {name} | {median:.2f} ({min(times):.2f}-{max(times):.2f}) | {len(times)} | "
                    f"{ratio} | {result['forwards'][name]} | {'yes' if result['agreed'][name] else 'NO'} |"
                )
        lines.append(f"| {result['name']} | prefix tokens reused by ours: {result['reused']} | | | | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="also write bench/results/lang.md")
    parser.add_argument("--only", nargs="*", help="programs to run")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder = ensure_smollm2()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
    engine = Engine(ours, tokenizer)
    peer = SequentialHF(theirs, tokenizer, engine.vocabulary)
    results = []
    for case in cases():
        if not arguments.only or case.name in arguments.only:
            results.append(measure(case, engine, peer, arguments.rounds))
            print(table(results[-1:]), flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    head = (
        f"SmolLM2-135M-Instruct, float32, CPU, {torch.get_num_threads()} threads | torch {torch.__version__} | "
        f"transformers {transformers.__version__} | commit {commit} | greedy; "
        f"sequential Hugging Face timed once, few-shot over 10 of its 100 questions and multiplied"
    )
    report = f"# Programs of prompts against plain Hugging Face code\n\n{head}\n\n{table(results)}\n"
    print(f"\n{report}")
    if arguments.save:
        path = Path(__file__).parent / "results" / "lang.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(report)


if __name__ == "__main__":
    main()
