"""How much faster does a program of prompts run than the plain Hugging Face code that does the same?

    python bench/lang.py [--save] [--only few-shot tree-of-thought ...] [--rounds 3] [--drafts]
                         [--page-size 1] [--batched-only]

Every side has a model of its own (SmolLM2-135M-Instruct, float32) and computes the same texts, which is checked. Ours
starts each round with an empty prefix cache. The sides take turns round by round; plain sequential code comes last.
"""

import argparse
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import lang_peers as peers
from infercore.demo import ensure_smollm2
from infercore.demo.stage import counted_forwards
from infercore.hf import Engine
from infercore.lang import Function
from infercore.lang.backends import EngineBackend
from infercore.speculative import SpeedController
from lang_programs import REVIEWS, RIDDLE, few_shot, few_shot_prompt, tree_of_thought

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "lang"))

RESULTS = Path(__file__).parent / "results" / "lang.md"
TITLE = "# Programs of prompts against plain Hugging Face code"
NOTE = """Rows are tokens that went through the model, padding included. "op by op" is the same program in eager mode,
one entry after the other. "HF sequential" is one `generate` call per gap, all of them, timed once."""


@dataclass
class Case:
    name: str
    program: Function
    batch: list[dict[str, Any]]
    batched: dict[str, Callable[[peers.SequentialHF, list[dict[str, Any]]], list[Any]]] = field(default_factory=dict)
    outcome: Callable[[Any], Any] = field(default=lambda run: run.value)


def cases() -> list[Case]:
    import chat
    import extraction
    import react
    import tips

    prompt = few_shot_prompt()
    by_size = {
        f"HF batched, prefix cache, {size} a batch": partial(peers.few_shot, batch_size=size) for size in (10, 25, 100)
    }
    trees = {
        "HF batched, prefix cache": peers.tree_of_thought,
        "HF batched, all caches kept": peers.tree_of_thought_kept,
    }
    return [
        Case("few-shot", few_shot, [{"prompt": prompt, "review": r} for r in REVIEWS], by_size),
        Case("tree-of-thought", tree_of_thought, [{"riddle": RIDDLE}], trees),
        Case("chat", chat.chat, [{"questions": chat.QUESTIONS}], outcome=lambda run: run.text),
        Case("tips", tips.tips, [{"topic": "staying healthy"}]),
        Case("extraction", extraction.extract, [{"text": t} for t in extraction.TEXTS]),
        Case("react", react.react, [{"question": q} for q in react.QUESTIONS]),
    ]


@dataclass
class Side:
    """One contestant: how it runs the case, and what came of it."""

    model: Any
    run: Callable[[], list[Any]]
    times: list[float] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    num_forwards: int = 0
    num_rows: int = 0
    num_reused: int | None = None

    def play(self) -> None:
        with counted_forwards(self.model) as counter:
            start = time.perf_counter()
            self.values = self.run()
            self.times.append(time.perf_counter() - start)
        self.num_forwards, self.num_rows = counter.num_forwards, counter.num_rows


def measure(
    case: Case, engine: Engine, peer: peers.SequentialHF, rounds: int, *, drafts: bool, batched_only: bool
) -> dict[str, Side]:
    def ours(drafter: Any = None, mode: Any = "auto") -> list[Any]:
        engine.cache.clear()
        engine.stats.reset()
        backend = EngineBackend(engine, drafter=drafter)
        if mode == "eager":
            return [case.outcome(case.program.run(backend, mode="eager", **entry)) for entry in case.batch]
        return [case.outcome(run) for run in case.program.run_batch(backend, case.batch)]

    sides = {"ours": Side(engine.model, ours)}
    if drafts:
        sides["ours, drafts"] = Side(engine.model, partial(ours, "auto"))
    for name, run in case.batched.items():
        sides[name] = Side(peer.model, partial(run, peer, case.batch))
    for i in range(rounds + 1):  # the first round warms up: compiled loops, memory, the tokenizer
        for name, side in sides.items():
            side.play()
            if name.startswith("ours"):
                side.num_reused = engine.stats.num_reused_tokens
            if i == 0:
                side.times.clear()
    if batched_only:
        return sides
    sides["ours, op by op"] = Side(engine.model, lambda: ours(mode="eager"))
    sides["ours, op by op"].play()
    sides["ours, op by op"].num_reused = engine.stats.num_reused_tokens
    sides["HF sequential"] = Side(
        peer.model, lambda: [case.outcome(case.program.run(peer, mode="eager", **entry)) for entry in case.batch]
    )
    sides["HF sequential"].play()
    return sides


def table(sides: dict[str, Side]) -> str:
    ours = statistics.median(sides["ours"].times)
    drafting = statistics.median(sides["ours, drafts"].times) if "ours, drafts" in sides else None
    lines = [
        "| side | seconds (min-max) | rounds | ours is faster by | with drafts by | forwards | rows | tokens reused "
        "| same texts |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, side in sides.items():
        median = statistics.median(side.times)
        ratio = "" if name == "ours" else f"{median / ours:.2f}x"
        with_drafts = "" if drafting is None or name == "ours, drafts" else f"{median / drafting:.2f}x"
        reused = "" if side.num_reused is None else str(side.num_reused)
        same = "" if name == "ours" else "yes" if side.values == sides["ours"].values else "NO"
        lines.append(
            f"| {name} | {median:.2f} ({min(side.times):.2f}-{max(side.times):.2f}) | {len(side.times)} | {ratio} | "
            f"{with_drafts} | "
            f"{side.num_forwards} | {side.num_rows} | {reused} | {same} |"
        )
    return "\n".join(lines)


def save(name: str, section: str) -> None:
    """Write a program's section into the results, in place of what stood there for it."""
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", old, re.MULTILINE | re.DOTALL))
    sections[name] = f"\n{section.strip()}\n\n"
    known = [name for case in cases() for name in (case.name, f"{case.name}-batched")]
    body = "".join(f"## {n}\n{sections[n]}" for n in sorted(sections, key=known.index))
    RESULTS.write_text(f"{TITLE}\n\n{NOTE}\n\n{body.rstrip()}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="also write bench/results/lang.md")
    parser.add_argument("--only", nargs="*", help="programs to run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--page-size", type=int, default=1, help="of our engine; prefixes are shared by whole pages")
    parser.add_argument(
        "--batched-only", action="store_true", help="without the slow sides; saved as a section of its own"
    )
    parser.add_argument("--drafts", action="store_true", help="a side of ours with a drafter, under a speed controller")
    options = parser.parse_args()
    folder = ensure_smollm2()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
    controller = SpeedController() if options.drafts else None
    engine = Engine(ours, tokenizer, controller=controller, page_size=options.page_size)
    peer = peers.SequentialHF(theirs, tokenizer, engine.vocabulary)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    for case in cases():
        if options.only and case.name not in options.only:
            continue
        sides = measure(case, engine, peer, options.rounds, drafts=options.drafts, batched_only=options.batched_only)
        command = f"python bench/lang.py --only {case.name} --rounds {options.rounds}" + " --drafts" * options.drafts
        command += " --batched-only" * options.batched_only
        name = f"{case.name}-batched" if options.batched_only else case.name
        conditions = (
            f"`{command}` | SmolLM2-135M-Instruct, float32, CPU, {torch.get_num_threads()} threads | "
            f"torch {torch.__version__} | transformers {transformers.__version__} | "
            f"python {platform.python_version()} | commit {commit} | greedy | one warm-up round | "
            f"pages of {options.page_size}"
        )
        section = f"{conditions}\n\n{table(sides)}\n"
        print(f"## {name}\n\n{section}", flush=True)
        if options.save:
            save(name, section)


if __name__ == "__main__":
    main()
