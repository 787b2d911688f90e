"""How fast and how right are grammars: ours beside llguidance and xgrammar, over MaskBench, in one thread?

    python -m bench.constrained --tiktoken tokenizer.model --files 300 --save        # the 128k vocabulary of Llama 3
    python -m bench.constrained --files 300 --save                                   # SmolLM2's 49k

Each schema is compiled afresh, with no mask kept from before; vocabulary tables are timed in a row of their own.
TTFM: compile and first mask. TBM: each later token, mask and advance together. A refused schema counts as not correct.
Times are CPU time of the process, so that a run which is suspended for a while says the same. Engines take turns in
coming first.
Every engine sees the same token ids: the canonical tokens of each instance as `json.dumps` writes it. Before the clock
starts, each engine runs the files of another sample once: code is loaded, nothing else is kept. Forced: tokens of the
valid instances that an engine accepts whole which it gives without a choice, and how many times these were not the
instance's own.
An engine that takes long to compile gets `--slow-seconds` in all, then no more files.
"""

import argparse
import copy
import datetime
import gc
import gzip
import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench.grammar_engines import ENGINES, load_smollm2, load_tiktoken, resident_mb

DATA = Path(os.environ.get("INFERCORE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def maskbench(count: int, seed: int) -> list[dict[str, Any]]:
    """A sample of MaskBench files."""
    with gzip.open(DATA / "maskbench" / "maskbench.jsonl.gz", "rt") as lines:
        files = [json.loads(line) for line in lines]
    random.Random(seed).shuffle(files)
    return files[:count]


class Score:
    """What one engine did over the files."""

    def __init__(self) -> None:
        self.ttfm_ms: list[float] = []
        self.tbm_us: list[float] = []
        self.correct = self.refused = self.over = self.under = self.files = 0
        self.tokens = self.forced = self.not_canonical = 0
        self.seconds = 0.0

    def row(self, name: str, reference: "Score | None") -> str:
        def spread(values: list[float], marks: tuple[float, ...]) -> str:
            return " / ".join(f"{np.percentile(values, mark):.3g}" for mark in marks) if values else "-"

        mean = f"{np.mean(self.tbm_us):.3g} / " if self.tbm_us else ""
        ratio = ""
        if reference is not None and self.tbm_us and reference.tbm_us:
            pairs = [np.mean(self.tbm_us) / np.mean(reference.tbm_us)]
            pairs += [np.percentile(self.tbm_us, m) / np.percentile(reference.tbm_us, m) for m in (50, 99, 99.9)]
            first = [np.percentile(self.ttfm_ms, m) / np.percentile(reference.ttfm_ms, m) for m in (50, 99)]
            ratio = " / ".join(f"{p:.2f}" for p in first) + " \N{MIDDLE DOT} " + " / ".join(f"{p:.2f}" for p in pairs)
        return (
            f"| {name} | {self.correct / max(self.files, 1):.1%} | {self.refused} | {self.over} | {self.under} | "
            f"{spread(self.ttfm_ms, (50, 99))} | {mean}{spread(self.tbm_us, (50, 99, 99.9))} | {ratio} | "
            f"{self.forced / max(self.tokens, 1):.1%} / {self.not_canonical} |"
        )


def run_file(engine: Any, file: dict[str, Any], tokens: list[list[int]], score: Score) -> None:
    """One schema and its instances through one engine."""
    score.files += 1
    clock: Callable[[], int] = time.process_time_ns
    begin = clock()
    try:
        session = engine.compile(file["schema"])
        session.fill()
    except Exception:
        score.refused += 1
        return
    score.ttfm_ms.append((clock() - begin) / 1e6)
    right = True
    for test, token_ids in zip(file["tests"], tokens, strict=True):
        try:
            session.restart()
            accepted = True
            for token_id in token_ids:
                begin = clock()
                session.fill()
                allowed = session.allows(token_id) and session.accept(token_id)
                score.tbm_us.append((clock() - begin) / 1e3)
                if not allowed:
                    accepted = False
                    break
            if accepted:
                begin = clock()
                session.fill()
                accepted = session.may_end()
                score.tbm_us.append((clock() - begin) / 1e3)
        except Exception:
            right = False
            continue
        if accepted != test["valid"]:
            right = False
            if test["valid"]:
                score.over += 1
            else:
                score.under += 1
    score.correct += right


def count_forced(engine: Any, file: dict[str, Any], tokens: list[list[int]], score: Score) -> None:
    """Forced tokens along the valid instances of one schema that the engine accepts whole."""
    try:
        session = engine.compile(file["schema"])
    except Exception:
        return
    for test, token_ids in zip(file["tests"], tokens, strict=True):
        if not test["valid"]:
            continue
        try:
            session.restart()
            accepted = all(session.accept(token_id) for token_id in token_ids)
            session.fill()
            if not accepted or not session.may_end():
                continue
            session.restart()
            score.tokens += len(token_ids)
            at = 0
            while at < len(token_ids):
                forced = [t for t in session.forced() if t != engine.eos]
                size = 0
                while size < len(forced) and forced[size] == (
                    token_ids[at + size] if at + size < len(token_ids) else -1
                ):
                    size += 1
                score.not_canonical += size < len(forced)
                score.forced += size
                step = token_ids[at : at + max(size, 1)]
                assert all(session.accept(token_id) for token_id in step)
                at += len(step)
        except Exception:
            continue


def held(engine: Any, files: list[dict[str, Any]], tokens: list[list[list[int]]]) -> str:
    """Memory of the first compiled grammars of `files`, all kept at once, with the masks of their instances."""
    memory, kept = resident_mb(), []
    for file, token_ids in zip(files, tokens, strict=True):
        one = copy.copy(engine)
        run_file(one, file, token_ids, Score())
        kept.append(one)
        if engine.slow and len(kept) == 4:
            break
    gc.collect()
    return f"{len(kept)} grammars with their masks {resident_mb() - memory:.0f} MB"


def main() -> None:
    """Print the table, and save it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiktoken", type=Path, help="Llama-3 tokenizer.model (PyPI: llama-models); else SmolLM2's")
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--slow-seconds", type=float, default=150.0, help="time in all for engines that compile slowly")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()

    token_bytes, eos, encode = load_tiktoken(arguments.tiktoken) if arguments.tiktoken else load_smollm2()
    name_of_vocabulary = "llama3" if arguments.tiktoken else "smollm2"
    files = maskbench(arguments.files, arguments.seed)
    tokens = [[encode(json.dumps(t["data"], ensure_ascii=False)) for t in file["tests"]] for file in files]
    others = maskbench(arguments.files + 12, arguments.seed)[arguments.files :]
    other_tokens = [[encode(json.dumps(t["data"], ensure_ascii=False)) for t in file["tests"]] for file in others]
    engines, scores = {}, {}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    lines = [
        f"MaskBench, {len(files)} files, seed {arguments.seed}, vocabulary of {len(token_bytes)} tokens | "
        f"{datetime.date.today()} | commit {commit.strip()} | load {os.getloadavg()[0]:.1f} | CPU time, one core",
        "",
    ]
    for name in arguments.engines.split(","):
        gc.collect()
        begin, memory = time.perf_counter(), resident_mb()
        try:
            engines[name] = ENGINES[name](token_bytes, eos, encode)
        except ImportError as error:
            lines.append(f"{name}: not installed ({error})")
            continue
        engines[name].compile({"type": "object"}).fill()
        gc.collect()
        lines.append(
            f"{name} {engines[name].version}: vocabulary tables {time.perf_counter() - begin:.2f} s, "
            f"{resident_mb() - memory:.0f} MB with code; {held(engines[name], others, other_tokens)}"
        )
        scores[name] = Score()
        for file, token_ids in zip(others, other_tokens, strict=True):
            if not engines[name].slow:
                run_file(engines[name], file, token_ids, Score())
    gc.collect()
    gc.freeze()  # what was loaded so far is not scanned again by collections that a measured call happens to trigger
    names = list(engines)
    for number, (file, token_ids) in enumerate(zip(files, tokens, strict=True)):
        gc.collect()
        first = number % len(names)  # who comes first finds nothing of its own in the processor's caches
        for name in names[first:] + names[:first]:
            engine, score = engines[name], scores[name]
            if not engine.slow or score.seconds < arguments.slow_seconds:
                begin = time.perf_counter()
                run_file(engine, file, token_ids, score)
                score.seconds += time.perf_counter() - begin
                if not engine.slow:
                    count_forced(engine, file, token_ids, score)
    reference = scores.get("llguidance")
    lines += [
        "",
        "| engine | correct | refused | over | under | TTFM ms p50 / p99 | TBM µs mean / p50 / p99 / p99.9 "
        "| ratio to llguidance | forced / not canonical |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(score.row(f"{name} ({score.files} files)", reference) for name, score in scores.items()),
    ]
    print("\n".join(lines))
    if arguments.save:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        (folder / f"constrained-{name_of_vocabulary}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
