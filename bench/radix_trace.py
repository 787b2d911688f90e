"""How many of a day's prompt tokens would each cache have saved, and how many requests a second can it serve?

Replays the Mooncake conversation trace: 512 tokens per hash id, expanded deterministically, cut to the prompt's length.
Used by `bench/radix.py`; needs INFERCORE_DATA (default `../shared/data`), which holds the first 7,218 of the 12,031
requests that were published. INFERCORE_WHOLE_TRACE may name the published file itself, to be had at
https://github.com/kvcache-ai/Mooncake as FAST25-release/traces/conversation_trace.jsonl; nothing is tuned on it.
"""

import gzip
import heapq
import json
import os
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infercore.radix import PrefixCache
from infercore.radix.eviction import Policy

PAGE_SIZE = 16
TOKENS_PER_ID = 512
Tokens = npt.NDArray[np.int32]


def trace_path() -> Path:
    folder = Path(os.environ.get("INFERCORE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    return folder / "mooncake" / "conversation_trace.jsonl.gz"


def whole_trace_path() -> Path | None:
    """The trace as it was published, None if it is not there."""
    path = Path(os.environ.get("INFERCORE_WHOLE_TRACE", ""))
    return path if path.is_file() else None


def read_trace(path: Path) -> list[tuple[list[int], int]]:
    """Per request its hash ids and its prompt length."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [(row["hash_ids"], row["input_length"]) for row in map(json.loads, file)]


def expand(hash_ids: Sequence[int], length: int) -> Tokens:
    """The prompt's tokens: token j of block `id` is a mix of both, below 2**17."""
    ids = np.asarray(hash_ids, np.uint64)[:, None]
    mixed = (ids * np.uint64(TOKENS_PER_ID) + np.arange(TOKENS_PER_ID, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(47)).astype(np.int32).ravel()[:length]


def replay_ours(
    requests: Sequence[tuple[list[int], int]],
    num_tokens: int,
    policy: Policy | None,
    *,
    as_sequences: bool = False,
    from_lists: bool = False,
) -> tuple[float, float]:
    """Hit rate, and requests per second: each is matched, given pages, inserted, and gives its pages back.

    as_sequences: through `open`, `append`, `commit` and `close`, which also keep the tokens and tell every slot.
    from_lists: prompts come as Python lists, and turning them into arrays counts.
    """
    cache = PrefixCache(num_tokens // PAGE_SIZE + 1, PAGE_SIZE, policy=policy)
    hits = total = 0
    seconds = 0.0
    for hash_ids, length in requests:
        tokens = expand(hash_ids, length)
        listed = tokens.tolist() if from_lists else []
        start = time.perf_counter()
        if from_lists:
            tokens = np.frombuffer(array("i", listed), np.int32)
        if as_sequences:
            sequence = cache.open(tokens)
            found = sequence.num_tokens
            sequence.append(length - found)
            sequence.commit(tokens[found:])
            sequence.close()
        else:
            match = cache.match(tokens)  # under LRU the most recent there is: allocating cannot evict it
            found = match.num_tokens
            pages = cache.allocate((length - found) // PAGE_SIZE)
            cache.insert(tokens, np.concatenate([match.page_ids, pages]))
            cache.release(pages)
        seconds += time.perf_counter() - start
        hits += found
        total += length
    return hits / total, len(requests) / seconds


def replay_peer(
    requests: Sequence[tuple[list[int], int]],
    num_tokens: int,
    peer: type[Any],
    slots_like: Callable[[int], Any],
    *,
    from_lists: bool = False,
) -> tuple[float, float]:
    """The same for a peer with `match`, `insert` and `evict`; its slots cost nothing, and only it evicts by need."""
    cache = peer(PAGE_SIZE, num_tokens)
    hits = total = used = 0
    seconds = 0.0
    for hash_ids, length in requests:
        tokens = expand(hash_ids, length)
        whole = length // PAGE_SIZE * PAGE_SIZE
        slots = slots_like(length)
        listed = tokens.tolist() if from_lists else []
        start = time.perf_counter()
        key = cache.from_list(listed) if from_lists else cache.native(tokens)
        if hasattr(cache, "serve"):
            found = cache.serve(key)
        else:
            found = cache.match(key)
            missing = used + whole - found - num_tokens
            if missing > 0:
                used -= cache.evict(missing)
            known = cache.insert(key, slots)
            used += whole - known
        seconds += time.perf_counter() - start
        hits += found
        total += length
    return hits / total, len(requests) / seconds


def belady_hit_rate(requests: Sequence[tuple[list[int], int]], num_tokens: int) -> float:
    """Upper bound: the leaf block whose next use is farthest goes first, at the grain of 512 tokens."""
    capacity = num_tokens // TOKENS_PER_ID
    coming: dict[int, int] = {}
    next_use: list[list[int]] = []
    for i in range(len(requests) - 1, -1, -1):
        ids = requests[i][0]
        next_use.append([coming.get(block, 1 << 40) for block in ids])
        coming.update(dict.fromkeys(ids, i))
    next_use.reverse()
    parent: dict[int, int] = {}
    children: dict[int, int] = {}
    due: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    hits = total = 0
    for (ids, length), uses in zip(requests, next_use, strict=True):
        found = 0
        while found < len(ids) and ids[found] in parent:
            found += 1
        hits += min(found * TOKENS_PER_ID, length)
        total += length
        due.update(zip(ids, uses, strict=True))
        missing = len(parent) + len(ids) - found - capacity
        path, kept = set(ids), []
        while missing > 0 and heap:
            entry = heapq.heappop(heap)
            block = entry[1]
            if block not in parent or children[block] or -due[block] != entry[0]:
                continue
            if block in path:
                kept.append(entry)
                continue
            above = parent.pop(block)
            missing -= 1
            if above >= 0:
                children[above] -= 1
                if not children[above]:
                    heapq.heappush(heap, (-due[above], above))
        for entry in kept:
            heapq.heappush(heap, entry)
        for j in range(found, len(ids)):
            parent[ids[j]] = ids[j - 1] if j else -1
            children[ids[j]] = 0
            if j:
                children[ids[j - 1]] += 1
        heapq.heappush(heap, (-due[ids[-1]], ids[-1]))
    return hits / total
