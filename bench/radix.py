"""How fast is the prefix cache, beside those of SGLang (Python and Rust) and vLLM, call by call and over a day's trace?

    INFERCORE_PEERS=... python bench/radix.py [--save] [--rows micro bytes linear trace]      # one core

Page size 16. Every contestant answers the same questions in one process, taking turns round by round, and its answers
are checked. Each turn begins with a call that is not counted, so that nobody pays for the cache misses that the one
before left behind. The rows of calls start from an int32 array, or from a Python list, and count what a contestant
needs to turn that into its own format; figures "own format" leave that out. Pages and slots are there beforehand, for
all, where it does not say otherwise. Peers are called at their own lowest public level.
See `radix_peers.py` for how the peers are found and `radix_trace.py` for the trace.
"""

import argparse
import gc
import os
import platform
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).parent))
from infercore.radix import FIFO, LFU, SLRU, GhostHistory, PrefixCache
from infercore.radix.eviction import Policy
from radix_peers import available_peers, slots_like
from radix_trace import belady_hit_rate, read_trace, replay_ours, replay_peer, trace_path, whole_trace_path

PAGE = 16
SEED = 0
Tokens = npt.NDArray[np.int32]


class Ours:
    """`PrefixCache` with the verbs of the bench."""

    name = "infercore"

    def __init__(self, page_size: int, num_tokens: int) -> None:
        self.cache = PrefixCache(num_tokens // page_size + 2, page_size)

    def native(self, token_ids: Tokens) -> Tokens:
        return token_ids

    def from_list(self, token_ids: list[int]) -> Tokens:
        return np.frombuffer(array("i", token_ids), np.int32)

    def match(self, key: Any) -> int:
        return self.cache.match(key).num_tokens

    def insert(self, key: Any, _: Any) -> int:
        pages = self.cache.allocate(len(key) // PAGE)
        known = len(key) // PAGE * PAGE - self.cache.insert(key, pages)
        self.cache.release(pages)
        return known

    def serve(self, key: Any) -> int:
        """A request: found, given pages and slots, committed, published, closed."""
        sequence = self.cache.open(key)
        found = sequence.num_tokens
        sequence.append(len(key) - found)
        sequence.commit(key[found:])
        sequence.close()
        return found

    def evict(self, num_tokens: int) -> int:
        return self.cache.evict(num_tokens // PAGE) * PAGE


@dataclass
class Row:
    """One line of the table: a figure per contestant, the target relative to one of them."""

    what: str
    unit: str
    cells: dict[str, list[float]] = field(default_factory=dict)
    target: float | None = None  # ours / SGLang Rust at most (less is better), or at least for rates
    absolute: float | None = None  # ours at most
    more_is_better: bool = False

    def add(self, name: str, value: float) -> None:
        self.cells.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        values = self.cells.get(name)
        return float(np.median(values)) if values else None

    def verdict(self) -> tuple[str, str]:
        """Target and result in words."""
        ours, rust = self.median("infercore"), self.median("SGLang Rust")
        if self.absolute is not None and ours is not None:
            ok = ours >= self.absolute if self.more_is_better else ours <= self.absolute
            return f"{'>=' if self.more_is_better else '<='} {self.absolute:g}", "met" if ok else "missed"
        if self.target is None or ours is None:
            return "", ""
        sign = ">=" if self.more_is_better else "<="
        if rust is None:
            return f"{sign} {self.target:.3g} x Rust", "no peer"
        ratio = ours / rust
        ok = ratio >= self.target if self.more_is_better else ratio <= self.target
        return f"{sign} {self.target:.3g} x Rust", f"{'met' if ok else 'missed'}: {ratio:.3g} x"


def timed(call: Callable[[], Any]) -> float:
    """Microseconds of one call."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6


def micro_rows(kinds: list[Any]) -> list[Row]:
    rows = [*full_hit(kinds), *small_hit(kinds), *insert_new(kinds), *eviction(kinds), *chain(kinds), *storm(kinds)]
    gc.collect()
    return rows


def full_hit(kinds: list[Any], rounds: int = 60) -> list[Row]:
    """match 32k tokens that are all cached."""
    rng = np.random.default_rng(SEED)
    ids = rng.integers(0, 100_000, 32_768).astype(np.int32)
    as_array, as_list = (
        Row("match 32k tokens, full hit", "µs", target=0.5),
        Row("the same from a Python list", "µs"),
    )
    listed = ids.tolist()
    contestants = [(kind.name, kind(PAGE, 40_000)) for kind in kinds]
    for name, cache in contestants:
        _serve(cache, cache.native(ids))
        assert cache.match(cache.native(ids)) == len(ids), name
    for _ in range(rounds):
        for name, cache in contestants:
            if name == "vLLM BlockPool" and len(as_array.cells.get(name, ())) >= 5:
                continue
            cache.match(cache.native(ids))
            as_array.add(name, timed(lambda cache=cache: cache.match(cache.native(ids))))
            key = cache.native(ids)
            as_array.add(f"{name}, own format", timed(lambda cache=cache, key=key: cache.match(key)))
            cache.match(cache.from_list(listed))
            as_list.add(name, timed(lambda cache=cache: cache.match(cache.from_list(listed))))
    return [as_array, as_list]


def small_hit(kinds: list[Any], rounds: int = 400) -> list[Row]:
    """match 320 tokens in a tree of 10k nodes: 100 stems of 160 tokens with 100 leaves of 160 each."""
    rng = np.random.default_rng(SEED)
    stems = rng.integers(0, 100_000, (100, 160)).astype(np.int32)
    prompts = [
        np.concatenate([stem, leaf]) for stem in stems for leaf in rng.integers(0, 100_000, (100, 160)).astype(np.int32)
    ]
    as_array = Row("match 320 tokens in a 10k-node tree", "µs", target=1.0)
    as_list = Row("the same from a Python list", "µs")
    contestants = [(kind.name, kind(PAGE, 100 * 160 + 10_000 * 160 + 1600)) for kind in kinds]
    keys = {name: [cache.native(ids) for ids in prompts] for name, cache in contestants}
    for name, cache in contestants:
        for key in keys[name]:
            _serve(cache, key)
    picks = rng.integers(0, len(prompts), rounds)
    for pick in picks.tolist():
        for name, cache in contestants:
            key, listed = keys[name][pick], prompts[pick].tolist()
            found: list[int] = []
            ids = prompts[pick]
            cache.match(keys[name][pick - 1])
            as_array.add(name, timed(lambda cache=cache, ids=ids, f=found: f.append(cache.match(cache.native(ids)))))
            cache.match(keys[name][pick - 1])
            as_array.add(f"{name}, own format", timed(lambda cache=cache, key=key: cache.match(key)))
            as_list.add(name, timed(lambda cache=cache, listed=listed: cache.match(cache.from_list(listed))))
            assert found == [320], (name, found)
    return [as_array, as_list]


def insert_new(kinds: list[Any], rounds: int = 24) -> list[Row]:
    """match + insert 32k tokens that are new.

    Between rounds everything is evicted, uncounted, so that the memory used has been used before. "Through a sequence"
    is all that a request does here: pages found and allocated, tokens kept, a slot for each, published, given back.
    """
    rng = np.random.default_rng(SEED)
    as_array, as_list = Row("match + insert 32k new", "µs", target=0.5), Row("the same from a Python list", "µs")
    contestants = [(kind.name, kind(PAGE, 40_000)) for kind in kinds]
    ours = contestants[0][1]
    slots = slots_like(32_768)
    for done in range(rounds):
        ids = rng.integers(0, 100_000, 32_768).astype(np.int32)
        listed = ids.tolist()
        for name, cache in contestants:
            if name == "vLLM BlockPool" and done >= 4:
                continue
            native = cache.native(ids)
            ways: dict[str, tuple[Row, Callable[[], Any]]] = {
                name: (as_array, lambda c=cache, ids=ids: c.native(ids)),
                f"{name}, own format": (as_array, lambda key=native: key),
                f"{name}, list": (as_list, lambda c=cache, listed=listed: c.from_list(listed)),
            }
            for label, (row, key) in ways.items():
                pages = ours.cache.allocate(2048) if cache is ours else None
                took = timed(lambda c=cache, key=key, pages=pages: _match_insert(c, key(), slots, pages))
                if done:
                    row.add(label.removesuffix(", list"), took)
                if pages is not None:
                    ours.cache.release(pages)
                if hasattr(cache, "evict"):
                    cache.evict(40_000)
        as_array.add("infercore, through a sequence", timed(lambda ids=ids: ours.serve(ids)))
        ours.evict(40_000)
    return [as_array, as_list]


def eviction(kinds: list[Any]) -> list[Row]:
    """evict from a tree of 100k leaves of one page, below 1000 stems of one page."""
    rng = np.random.default_rng(SEED)
    one, many = (
        Row("evict one leaf of 100k", "µs", target=0.01),
        Row("evict 10% of 100k leaves, per leaf", "µs", target=1 / 6),
    )
    stems = rng.integers(0, 100_000, (1000, PAGE)).astype(np.int32)
    leaves = rng.integers(0, 100_000, (100_000, PAGE)).astype(np.int32)
    order = rng.permutation(100_000)
    slots = slots_like(2 * PAGE)
    for kind in kinds:
        if not hasattr(kind, "evict"):
            continue
        cache = kind(PAGE, 102_000 * PAGE)
        for leaf in order.tolist():
            cache.insert(cache.native(np.concatenate([stems[leaf % 1000], leaves[leaf]])), slots)
        gc.collect()
        cache.evict(PAGE)
        for _ in range(12):
            one.add(kind.name, timed(lambda cache=cache: cache.evict(PAGE)))
        for _ in range(3):
            freed: list[int] = []
            took = timed(lambda cache=cache, freed=freed: freed.append(cache.evict(10_000 * PAGE)))
            many.add(kind.name, took / (freed[0] / PAGE))
    return [one, many]


def chain(kinds: list[Any]) -> list[Row]:
    """A conversation of 2048 turns of one page each: find it, and add one more turn."""
    rng = np.random.default_rng(SEED)
    ids = rng.integers(0, 100_000, 2048 * PAGE).astype(np.int32)
    found, turn = (
        Row("2048-node chain: match", "µs", target=1 / 8),
        Row("2048-node chain: one more turn", "µs", target=0.01),
    )
    found_list, turn_list = Row("the same from a Python list", "µs"), Row("the same from a Python list", "µs")
    listed = ids.tolist()
    for kind in kinds:
        cache = kind(PAGE, 3000 * PAGE)
        key = cache.native(ids)
        _serve(cache, key)
        if kind.name != "vLLM BlockPool":
            for length in range(2047 * PAGE, 0, -PAGE):  # splits the one edge of a radix tree into 2048
                cache.match(key[:length])
        cache.match(key)
        for _ in range(8):
            found.add(kind.name, timed(lambda cache=cache, key=key: cache.match(key)))
            found_list.add(kind.name, timed(lambda cache=cache: cache.match(cache.from_list(listed))))
        longer = ids
        for _ in range(5):
            longer = np.concatenate([longer, rng.integers(0, 100_000, PAGE).astype(np.int32)])
            key, slots = cache.native(longer), slots_like(len(longer))
            turn.add(kind.name, timed(lambda cache=cache, key=key, slots=slots: _serve(cache, key, slots)))
        for _ in range(5):
            longer = np.concatenate([longer, rng.integers(0, 100_000, PAGE).astype(np.int32)])
            new, slots = longer.tolist(), slots_like(len(longer))
            turn_list.add(
                kind.name, timed(lambda cache=cache, new=new, slots=slots: _serve(cache, cache.from_list(new), slots))
            )
        if isinstance(cache, Ours):
            sequence = cache.cache.open(longer)
            new = rng.integers(0, 100_000, PAGE).astype(np.int32)
            for _ in range(20):
                turn.add(
                    "infercore, from its handle", timed(lambda sequence=sequence, new=new: _one_turn(sequence, new))
                )
            sequence.close()
    return [found, found_list, turn, turn_list]


def storm(kinds: list[Any]) -> list[Row]:
    """match 16k tokens before and after 1000 lookups that leave it at random pages."""
    rng = np.random.default_rng(SEED)
    ids = rng.integers(0, 100_000, 16_384).astype(np.int32)
    row = Row("16k match after 1000 diverging lookups, slowdown", "x", absolute=1.2)
    from_list = Row("the same from a Python list, slowdown", "x")
    listed = ids.tolist()
    for kind in kinds:
        cache = kind(PAGE, 20_000)
        key = cache.native(ids)
        _serve(cache, key)
        repeats = 5 if kind.name == "vLLM BlockPool" else 40

        def median(call: Callable[[], Any], repeats: int = repeats) -> float:
            return float(np.median([timed(call) for _ in range(repeats)]))

        ways: list[tuple[Row, Callable[[], Any]]] = [
            (row, lambda cache=cache, key=key: cache.match(key)),
            (from_list, lambda cache=cache: cache.match(cache.from_list(listed))),
        ]
        before = [median(call) for _, call in ways]
        for at in rng.integers(0, 1024, 1000 if kind.name != "vLLM BlockPool" else 20).tolist():
            other = ids.copy()
            other[at * PAGE :] = 7
            cache.match(cache.native(other))
        for (to, call), was in zip(ways, before, strict=True):
            to.add(kind.name, median(call) / was)
    return [row, from_list]


def byte_rows(kinds: list[Any]) -> list[Row]:
    """Resident bytes per cached token of a million tokens, measured in a fresh process per contestant and shape."""
    rows = []
    for what, shape, limit in (("long leaves (256 x 4096)", "long", 7.0), ("short leaves (32768 x 32)", "short", 12.0)):
        row = Row(f"metadata bytes per token, {what}", "B", absolute=limit)
        for kind in kinds:
            run = subprocess.run(
                [sys.executable, __file__, "--bytes-of", kind.name, shape], capture_output=True, text=True, check=False
            )
            if run.returncode == 0:
                row.add(kind.name, float(run.stdout.split()[-1]))
            else:
                print(run.stderr[-500:], file=sys.stderr)
        rows.append(row)
    return rows


def bytes_per_token(kind: Any, shape: str) -> float:
    rng = np.random.default_rng(SEED)
    count, length = (256, 4096) if shape == "long" else (32_768, 32)
    warm = kind(PAGE, 4096)
    _serve(warm, warm.native(np.arange(64, dtype=np.int32)), slots_like(64))
    gc.collect()
    before = _resident_bytes()
    cache = kind(PAGE, count * length)
    for _ in range(count):
        ids = rng.integers(0, 100_000, length).astype(np.int32)
        cache_key = cache.native(ids)
        if hasattr(cache, "serve") and not isinstance(cache, Ours):
            cache.serve(cache_key)
        else:
            cache.insert(cache_key, slots_like(length))
    gc.collect()
    return (_resident_bytes() - before) / (count * length)


def linear_rows() -> list[Row]:
    """Ours alone: is a lookup O(L)? Time per token over lengths and tree sizes, and counted comparisons.

    Less the time of a hit of one page, which would hide the slope: at 1k tokens it is ten times the walk.
    """
    rng = np.random.default_rng(SEED)
    rows = []
    lengths = [1024, 4096, 16_384, 65_536, 131_072]
    ids = rng.integers(0, 100_000, lengths[-1]).astype(np.int32)
    cache = Ours(PAGE, len(ids) + 64)
    cache.serve(ids)
    per_token = {}
    for length in lengths:
        per_token[length] = _per_token(cache, ids[:length].copy())
        row = Row(f"match {length} tokens: per token", "ns")
        row.add("infercore", per_token[length])
        rows.append(row)
    spread = Row("the same, greatest over least", "x", absolute=1.5)
    spread.add("infercore", max(per_token.values()) / min(per_token.values()))
    rows.append(spread)
    sizes = {}
    worst = 0.0
    for num_nodes in (10, 100, 1000, 10_000, 100_000):
        prompts = rng.integers(0, 100_000, (num_nodes, 64)).astype(np.int32)
        tree = Ours(PAGE, num_nodes * 64 + 2048 + 64)
        deep = rng.integers(0, 100_000, 2048).astype(np.int32)
        tree.serve(deep)
        for prompt in prompts:
            tree.serve(prompt)
        compared = tree.cache.stats.num_tokens_compared
        tree.match(deep)
        worst = max(worst, (tree.cache.stats.num_tokens_compared - compared) / (2048 + PAGE))
        sizes[num_nodes] = _per_token(tree, deep)
        row = Row(f"match 2048 tokens beside {num_nodes} other leaves: per token", "ns")
        row.add("infercore", sizes[num_nodes])
        rows.append(row)
    spread = Row("the same, greatest over least", "x", absolute=1.5)
    spread.add("infercore", max(sizes.values()) / min(sizes.values()))
    counted = Row("token comparisons over L + page_size x nodes on the path", "x", absolute=1.0)
    counted.add("infercore", worst)
    return [*rows, spread, counted, _lookup_storm(rng)]


def _per_token(cache: Ours, key: Tokens, rounds: int = 400) -> float:
    """Nanoseconds per token of a hit, less what a hit of one page takes in the same rounds; the least of both."""
    one_page = key[:PAGE].copy()
    short, full = [], []
    for _ in range(rounds):
        short.append(timed(lambda: cache.match(one_page)))
        full.append(timed(lambda: cache.match(key)))
    return (min(full) - min(short)) / (len(key) - PAGE) * 1000


def _lookup_storm(rng: np.random.Generator) -> Row:
    """A tree of 1.6M tokens in 100k leaves: latency of hits before and after 100k lookups that leave it everywhere."""
    stems = rng.integers(0, 100_000, (1000, PAGE)).astype(np.int32)
    leaves = rng.integers(0, 100_000, (100_000, PAGE)).astype(np.int32)
    cache = Ours(PAGE, 102_000 * PAGE)
    keys = [np.concatenate([stems[i % 1000], leaves[i]]) for i in range(100_000)]
    for key in keys:
        cache.insert(key, None)
    picks = rng.integers(0, 100_000, 2000).tolist()
    before = float(np.median([timed(lambda key=keys[i]: cache.match(key)) for i in picks]))
    for i in range(100_000):
        key = keys[i].copy()
        key[i % 32] += 1
        cache.match(key)
    after = float(np.median([timed(lambda key=keys[i]: cache.match(key)) for i in picks]))
    row = Row("hit in a 1.6M-token, 100k-leaf tree after a storm of 100k lookups, slowdown", "x", absolute=1.2)
    row.add("infercore", after / before)
    return row


def trace_rows(kinds: list[Any]) -> list[Row]:
    requests = read_trace(trace_path())
    half = len(requests) // 2
    replay_ours(requests[:50], 100_000, None)
    replay_ours(requests[:50], 100_000, GhostHistory())
    speed = Row("Mooncake conversation trace, 4M tokens", "req/s", target=1.5, more_is_better=True)
    hits = Row("its hit rate", "%")
    listed = Row("the same from Python lists", "req/s")
    for kind in kinds:
        if kind is Ours:
            listed.add(kind.name, replay_ours(requests, 4_000_000, None, from_lists=True)[1])
        else:
            listed.add(kind.name, replay_peer(requests, 4_000_000, kind, slots_like, from_lists=True)[1])
    for _ in range(3):
        for kind in kinds:
            if kind is Ours:
                rate, per_second = replay_ours(requests, 4_000_000, None)
                speed.add("infercore, through sequences", replay_ours(requests, 4_000_000, None, as_sequences=True)[1])
            elif kind.name == "vLLM BlockPool" and speed.cells.get(kind.name):
                continue
            else:
                rate, per_second = replay_peer(requests, 4_000_000, kind, slots_like)
            speed.add(kind.name, per_second)
            hits.add(kind.name, 100 * rate)
    hits.add("Belady", 100 * belady_hit_rate(requests, 4_000_000))
    rows = [speed, listed, hits]
    whole = whole_trace_path()
    if whole is not None:
        rows.append(_whole_trace(kinds, read_trace(whole)))
    policies: dict[str, Policy | None] = {
        "LRU": None,
        "FIFO": FIFO(),
        "LFU": LFU(),
        "SLRU": SLRU(),
        "ghost": GhostHistory(),
    }
    limits = {1: 1.5, 2: 1.5, 4: 1.1}
    for millions in (0.5, 1, 2, 4, 6, 8, 12, 16):
        capacity = int(millions * 1_000_000)
        row = Row(f"second half of the trace, {millions:g}M tokens: hit rate", "%")
        for name, policy in policies.items():
            row.add(name, 100 * replay_ours(requests[half:], capacity, policy, as_sequences=True)[0])
        row.add("Belady", 100 * belady_hit_rate(requests[half:], capacity))
        ratio = Row(
            f"ghost over LRU at {millions:g}M tokens", "x", absolute=limits.get(millions, 1.0), more_is_better=True
        )
        ratio.add("infercore", (row.median("ghost") or 0) / (row.median("LRU") or 1))
        rows += [row, ratio]
    return rows


def _whole_trace(kinds: list[Any], requests: list[tuple[list[int], int]]) -> Row:
    row = Row(
        f"hit rate over all {len(requests):,} requests as published, 4M tokens", "%", absolute=18.1, more_is_better=True
    )
    for kind in kinds:
        if kind is Ours:
            rate, _ = replay_ours(requests, 4_000_000, None)
        else:
            rate, _ = replay_peer(requests, 4_000_000, kind, slots_like)
        row.add(kind.name, 100 * rate)
    row.add("Belady", 100 * belady_hit_rate(requests, 4_000_000))
    return row


def _match_insert(cache: Any, key: Any, slots: torch.Tensor, pages: Tokens | None) -> None:
    if pages is not None:
        cache.match(key)
        cache.cache.insert(key, pages)
    else:
        _serve(cache, key, slots)


def _one_turn(sequence: Any, new: Tokens) -> None:
    sequence.append(len(new))
    sequence.commit(new)
    sequence.insert()


def _serve(cache: Any, key: Any, slots: torch.Tensor | None = None) -> None:
    """match + insert in the words of the contestant."""
    if hasattr(cache, "serve"):
        cache.serve(key)
    else:
        cache.match(key)
        cache.insert(key, slots_like(len(key)) if slots is None else slots)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _processor() -> str:
    """The processor by name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def print_table(rows: Iterable[Row], names: list[str]) -> str:
    """Markdown; medians, the spread (p20-p80) for ours."""
    lines = [f"| | {' | '.join(names)} | target | result |", f"| --- | {'--- | ' * len(names)}--- | --- |"]
    for row in rows:
        cells = []
        for name in names:
            value = row.median(name)
            text = "" if value is None else f"{value:,.4g}" if value < 10_000 else f"{value:,.0f}"
            if name == "infercore" and len(row.cells.get(name, ())) > 4:
                low, high = np.percentile(row.cells[name], [20, 80])
                text += f" ({low:,.3g}-{high:,.3g})"
            cells.append(text)
        others = [n for n in row.cells if n not in names]
        extra = "".join(f"; {n}: {row.median(n):,.4g}" for n in others)
        target, result = row.verdict()
        lines.append(f"| {row.what}, {row.unit}{extra} | {' | '.join(cells)} | {target} | {result} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write bench/results/radix.md")
    parser.add_argument("--rows", nargs="+", default=["micro", "bytes", "linear", "trace"])
    parser.add_argument("--bytes-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    torch.set_num_threads(1)
    peers, missing = available_peers()
    kinds: list[Any] = [Ours, *peers]
    if options.bytes_of:
        name, shape = options.bytes_of
        print(bytes_per_token(next(kind for kind in kinds if kind.name == name), shape))
        return 0
    load, began = os.getloadavg()[0], time.perf_counter()
    rows: list[Row] = []
    if "micro" in options.rows:
        rows += micro_rows(kinds)
    if "bytes" in options.rows:
        rows += byte_rows(kinds)
    if "linear" in options.rows:
        rows += linear_rows()
    if "trace" in options.rows:
        if trace_path().exists():
            rows += trace_rows(kinds)
        else:
            missing.append(f"trace: {trace_path().name} is not there; set INFERCORE_DATA")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    head = (
        f"# The prefix cache beside its peers\n\n`python bench/radix.py {' '.join(sys.argv[1:])}`, "
        f"{time.strftime('%Y-%m-%d')}, {(time.perf_counter() - began) / 60:.1f} minutes, "
        f"load of the machine before it {load:.2f}\n\n"
        f"{_processor()}, one core of {os.cpu_count()} | python {platform.python_version()} | numpy "
        f"{np.__version__} | torch {torch.__version__} | sglang 0.5.23, vllm 0.33.0 | commit {commit.stdout.strip()} | "
        f"page size {PAGE} | seed {SEED} | medians, ours with p20-p80\n\n"
    )
    text = head + print_table(rows, [kind.name for kind in kinds]) + "\n"
    text += "".join(f"\nNot measured: {line}" for line in missing)
    print(text)
    if options.save:
        Path(__file__).with_name("results").joinpath("radix.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
