"""Runs one operation at a time on a prefix cache and on the brute-force model, and compares everything that shows.

The soak draws operations at random, the Hypothesis machine lets Hypothesis choose; both call the same methods. Rows
have contents: what is written for a token is a hash of the whole prefix that ends with it, so a page that is shared
wrongly, moved wrongly or freed too early is noticed by reading it.
"""

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from infercore.errors import OutOfPages
from infercore.radix import Match, Pin, PrefixCache, block_table
from infercore.radix import Sequence as PageSequence
from infercore.radix.host import Arrival, HostTier
from infercore.testing.page_stores import ArrayHostStore, ArrayStore
from infercore.testing.prefix_model import Entry, Order, Path, PrefixModel

ENDLESS = 5_000
_NO_ENTRY = Entry(page_id=-1, created=0, used=0)


@dataclass
class Track:
    """A sequence, and what it must be."""

    sequence: PageSequence
    namespace: Hashable
    tokens: list[int]
    num_published: int
    publishes: bool = True


@dataclass
class PrefixDriver:
    """A cache beside its model. Every method performs one operation on both and asserts that they agree.

    Methods take small integers that choose among what is there (`which`), so that any draw is a legal call.
    """

    cache: PrefixCache
    store: ArrayStore
    model: PrefixModel
    tracks: list[Track] = field(default_factory=list)
    locks: list[tuple[AbstractContextManager[Match], Match]] = field(default_factory=list)
    raw: list[npt.NDArray[np.int32]] = field(default_factory=list)
    pins: list[tuple[Pin, Path]] = field(default_factory=list)
    host: HostTier | None = None
    host_is_endless: bool = False  # it has a slot for whatever is evicted
    arrivals: list[tuple[Arrival, Track, list[int]]] = field(default_factory=list)

    def open(self, token_ids: Sequence[int], namespace: Hashable) -> None:
        path = self.model.path(namespace, token_ids)
        sequence = self.cache.open(token_ids, namespace=namespace)
        pages = self.model.longest(path)
        self._same(sequence.page_ids.tolist(), pages, "pages of an opened sequence")
        self.model.touch(path, len(pages))
        self.model.holders.update(pages)
        tokens = list(token_ids[: len(pages) * self.model.page_size])
        self._same(sequence.token_ids.tolist(), tokens, "tokens of an opened sequence")
        self.tracks.append(Track(sequence, namespace, tokens, len(pages)))

    def step(self, which: int, num_rows: int, tokens: Sequence[int], keep: int, in_two: bool) -> None:
        """Append `num_rows` rows, write them, commit as many as `tokens` has, rows with a bit in `keep` first."""
        if not self.tracks:
            return
        track = self.tracks[which % len(self.tracks)]
        order = sorted(range(num_rows), key=lambda row: (not keep >> row & 1, row))
        kept = sorted(order[: len(tokens)])
        slots = self._append(track, num_rows, in_two)
        if slots is None:
            return
        self.store.rows.reshape(-1)[slots] = -7  # rows that are not kept hold something that nobody may read
        contents = self._contents(track.namespace, [*track.tokens, *tokens])[len(track.tokens) :]
        for row, content in zip(kept, contents, strict=True):
            self.store.rows.reshape(-1)[slots[row]] = content
        before = track.sequence.page_ids.copy()
        track.sequence.commit(list(tokens), None if kept == list(range(len(kept))) and keep & 1 else kept)
        track.tokens += tokens
        self._trimmed(track, before)
        self.read(track)

    def rollback(self, which: int, num_tokens: int) -> None:
        if not self.tracks:
            return
        track = self.tracks[which % len(self.tracks)]
        num_tokens = min(num_tokens, len(track.tokens))
        before = track.sequence.page_ids.copy()
        track.sequence.rollback(num_tokens)
        del track.tokens[len(track.tokens) - num_tokens :]
        track.num_published = min(track.num_published, len(track.tokens) // self.model.page_size)
        self._trimmed(track, before)
        self.read(track)

    def fork(self, which: int) -> None:
        if not self.tracks:
            return
        track = self.tracks[which % len(self.tracks)]
        other = track.sequence.fork()
        self._same(other.page_ids.tolist(), track.sequence.page_ids.tolist(), "pages of a fork")
        self.model.holders.update(other.page_ids.tolist())
        self.tracks.append(Track(other, track.namespace, list(track.tokens), track.num_published, track.publishes))

    def publish(self, which: int) -> None:
        if self.tracks:
            track = self.tracks[which % len(self.tracks)]
            before = track.sequence.page_ids.tolist()
            num_new = track.sequence.insert()
            self._same(num_new, self._published(track, before), "tokens newly cached")
            self._same(track.sequence.page_ids.tolist(), before, "pages after publishing")
            self.read(track)

    def close(self, which: int, insert: bool) -> None:
        if not self.tracks:
            return
        track = self.tracks.pop(which % len(self.tracks))
        pages = track.sequence.page_ids.tolist()
        track.sequence.close(insert=insert)
        if insert:
            self._published(track, pages)
        self.model.holders.subtract(pages)
        track.sequence.close()

    def match(self, token_ids: Sequence[int], namespace: Hashable, lock: bool) -> None:
        path = self.model.path(namespace, token_ids)
        match = self.cache.match(token_ids, namespace=namespace)
        pages = self.model.longest(path)
        self._same(match.page_ids.tolist(), pages, "matched pages")
        self._same(match.num_tokens, len(pages) * self.model.page_size, "matched tokens")
        self.model.touch(path, len(pages))
        self._read(namespace, token_ids[: match.num_tokens], match.page_ids)
        if lock:
            held = self.cache.lock(match)
            held.__enter__()
            self.model.holders.update(pages)
            self.locks.append((held, match))

    def unlock(self, which: int) -> None:
        if self.locks:
            held, match = self.locks.pop(which % len(self.locks))
            self._read(match.namespace, match.token_ids[: match.num_tokens].tolist(), match.page_ids)
            held.__exit__(None, None, None)
            self.model.holders.subtract(match.page_ids.tolist())

    def allocate(self, num_pages: int) -> None:
        pages = self._allocate(num_pages)
        if pages is not None:
            self.raw.append(pages)

    def insert(self, token_ids: Sequence[int], namespace: Hashable, priority: int) -> None:
        """Allocate, write, insert; the pages stay held until `release`."""
        path = self.model.path(namespace, token_ids)
        pages = self._allocate(len(path) - 1)
        if pages is None:
            return
        whole = list(token_ids[: len(pages) * self.model.page_size])
        self.store.rows[pages] = np.asarray(self._contents(namespace, whole), np.int64).reshape(
            len(pages), self.model.page_size
        )
        num_new = self.cache.insert(token_ids, pages, namespace=namespace, priority=priority)
        expected = self.model.insert(path, pages.tolist(), priority)
        self._same(num_new, expected * self.model.page_size, "tokens newly cached")
        self.raw.append(pages)

    def insert_wrong(self, token_ids: Sequence[int], namespace: Hashable) -> None:
        """An insert with a page that is free must be refused, whatever else is right, unless all is cached."""
        free = sorted(self.model.free_pages())
        path = self.model.path(namespace, token_ids)
        known = len(self.model.longest(path))
        if not free or len(path) - 1 == known:
            return
        before = self.cache.counts()
        try:
            self.cache.insert(token_ids, free[:1] * (len(path) - 1), namespace=namespace)
        except ValueError:
            self._same(self.cache.counts(), before, "counts after a refused insert")
        else:
            raise AssertionError("a free page was cached")

    def release(self, which: int) -> None:
        if self.raw:
            pages = self.raw.pop(which % len(self.raw))
            self.cache.release(pages)
            self.model.holders.subtract(pages.tolist())

    def evict(self, num_pages: int) -> None:
        before = self.model.free_pages()
        gone = self.model.evict(num_pages)
        self._same(self.cache.evict(num_pages), len(gone), "evicted pages")
        self._same(self.model.free_pages() - before, set(gone), "freed pages")

    def fetch(self, token_ids: Sequence[int], namespace: Hashable) -> None:
        """Open a sequence, and start to bring back from the host what follows; without a host only the former."""
        self.open(token_ids, namespace)
        if self.host is None:
            return
        track = self.tracks[-1]
        path, size = self.model.path(namespace, token_ids), self.model.page_size
        start = len(track.tokens) // size
        free, evictable = self.model.free_pages(), self.model.num_evictable()
        wanted = self.model.num_kept(path, start)
        arrival = self.host.fetch(track.sequence, token_ids)
        if arrival is None:
            if wanted and self.host_is_endless and wanted <= len(free) + evictable:
                raise AssertionError(f"{wanted} pages of {path} are in host memory, but none were fetched")
            return
        count = arrival.num_tokens // size
        if not 0 < count <= wanted or (self.host_is_endless and count < wanted):
            raise AssertionError(f"{count} pages were fetched, expected {wanted}")
        gone = self.model.evict(count - len(free))
        new = track.sequence.page_ids[start:].tolist()
        if not set(new) <= free | set(gone) or len(set(new)) != count:
            raise AssertionError(f"a fetch reserved {new}, free were {sorted(free)}, evicted {gone}")
        self.model.holders.update(new)
        self.arrivals.append((arrival, self.tracks.pop(), list(token_ids[: (start + count) * size])))

    def land(self, which: int) -> None:
        """End a fetch: its tokens are part of the sequence, unless they were to be forgotten meanwhile."""
        if not self.arrivals:
            return
        arrival, track, tokens = self.arrivals.pop(which % len(self.arrivals))
        pages = track.sequence.page_ids.tolist()
        path, start = self.model.path(track.namespace, tokens), len(track.tokens) // self.model.page_size
        num_tokens = arrival.finish()
        self.tracks.append(track)
        if num_tokens == 0:
            if self.host_is_endless and all(path[:end] in self.model.kept_tree for end in range(2, len(path) + 1)):
                raise AssertionError(f"{path} was never forgotten, but its fetch was dropped")
            self.model.holders.subtract(pages[start:])
            return
        self._same(num_tokens, len(tokens) - len(track.tokens), "tokens brought back")
        if self.host_is_endless and path not in self.model.kept_tree:
            raise AssertionError(f"{path} was forgotten, but has come back")
        track.tokens = tokens
        self._published(track, pages)
        self._same(track.sequence.page_ids.tolist(), pages, "pages of a sequence that has come back")
        self.read(track)

    def call_off(self, which: int) -> None:
        """Cancel a fetch: the sequence is as it was."""
        if self.arrivals:
            arrival, track, _ = self.arrivals.pop(which % len(self.arrivals))
            pages = track.sequence.page_ids.tolist()
            arrival.cancel()
            self.model.holders.subtract(pages[len(track.tokens) // self.model.page_size :])
            self.tracks.append(track)
            self.read(track)

    def clear(self, namespace: Hashable) -> None:
        self.model.forget_kept((namespace,))
        gone = self.model.remove_below((namespace,))
        self._same(self.cache.clear(namespace=namespace), len(gone), "cleared pages")
        self._drop_pins()
        for track in (*self.tracks, *(track for _, track, _ in self.arrivals)):
            track.publishes &= track.namespace != namespace

    def invalidate(self, token_ids: Sequence[int], namespace: Hashable) -> None:
        path = self.model.path(namespace, token_ids)
        gone = self.model.invalidate(path)
        self._same(self.cache.invalidate(token_ids, namespace=namespace), len(gone), "invalidated pages")
        self._drop_pins()

    def pin(self, token_ids: Sequence[int], namespace: Hashable) -> None:
        path = self.model.path(namespace, token_ids)
        pin = self.cache.pin(token_ids, namespace=namespace)
        pages = self.model.longest(path)
        self._same(pin.page_ids.tolist(), pages, "pinned pages")
        self.model.holders.update(pages)
        self.pins.append((pin, path[: len(pages) + 1]))

    def unpin(self, which: int) -> None:
        if self.pins:
            pin, _ = self.pins.pop(which % len(self.pins))
            self.cache.unpin(pin)
            self.model.holders.subtract(pin.page_ids.tolist())

    def _drop_pins(self) -> None:
        """Pins on pages that were cleared or invalidated are gone."""
        for pin, path in list(self.pins):
            if len(path) > 1 and self.model.cached.get(path, _NO_ENTRY).page_id != pin.page_ids[-1]:
                self.pins.remove((pin, path))
                self.model.holders.subtract(pin.page_ids.tolist())

    def check(self) -> None:
        """Counts add up and agree with the model; O(pages)."""
        counts = self.cache.counts()
        cached = self.model.cached_pages()
        held = {page for page, n in self.model.holders.items() if n}
        self._same(counts.free + counts.cached + counts.in_use, counts.total, "the sum of the counts")
        self._same(counts.cached, len(cached), "cached pages")
        self._same(counts.in_use, len(held - cached), "pages in use")
        for page in range(1, self.model.num_pages):
            expected = self.model.holders[page] + (page in cached)
            self._same(self.cache.allocator.num_references(page), expected, f"references on page {page}")
        if self.host is not None:
            used = self.host.stats.num_used
            if used > len(self.model.kept) or (self.host_is_endless and used < len(self.model.kept)):
                raise AssertionError(f"{used} slots of the host are used for {len(self.model.kept)} evicted pages")

    def check_contents(self) -> None:
        """Every cached prefix is found, page for page, and holds what was computed for it; O(pages * depth)."""
        for path in self.model.cached:
            tokens = [token for page in path[1:] for token in page]
            match = self.cache.match(tokens, namespace=path[0])
            self.model.touch(path, len(path) - 1)
            self._same(match.page_ids.tolist(), self.model.longest(path), "pages of a cached prefix")
            self._read(path[0], tokens, match.page_ids)
        sequences = [track.sequence for track in self.tracks]
        table = block_table(sequences)
        for row, track in zip(table, self.tracks, strict=True):
            self._read(track.namespace, track.tokens, row)

    def finish(self) -> None:
        """Give everything up; all pages must be free."""
        while self.arrivals:
            self.call_off(0)
        while self.tracks:
            self.close(0, insert=False)
        while self.locks:
            self.unlock(0)
        while self.raw:
            self.release(0)
        while self.pins:
            self.unpin(0)
        self.evict(self.model.num_pages)
        self._same(self.cache.counts().free, self.model.num_pages - 1, "free pages at the end")

    def read(self, track: Track) -> None:
        self._same(track.sequence.token_ids.tolist(), track.tokens, "tokens of a sequence")
        self._read(track.namespace, track.tokens, track.sequence.page_ids)

    def _append(self, track: Track, num_rows: int, in_two: bool) -> npt.NDArray[np.int64] | None:
        """Reserve rows; None if there is no room, which must be so by the model as well."""
        sequence, size = track.sequence, self.model.page_size
        before = sequence.page_ids.tolist()
        offset = len(track.tokens) % size
        copies = bool(num_rows and offset and self._num_references(before[-1]) > 1)
        num_new = -(-(len(track.tokens) + num_rows) // size) - len(before) + copies
        free = self.model.free_pages()
        if num_new > len(free) + self.model.num_evictable():
            counts = self.cache.counts()
            try:
                sequence.append(num_rows)
            except OutOfPages:
                self._same(self.cache.counts(), counts, "counts after a failed append")
                self._same((sequence.page_ids.tolist(), sequence.num_reserved), (before, 0), "a failed append")
                return None
            raise AssertionError(f"{num_new} pages were appended, but only {len(free)} are free")
        if in_two and num_rows > 1 and not copies:  # a copy gives the old page up before the second call evicts
            slots = np.concatenate([sequence.append(1), sequence.append(num_rows - 1)])
        else:
            slots = sequence.append(num_rows)
        gone = self.model.evict(num_new - len(free))
        after = sequence.page_ids.tolist()
        kept = before[:-1] if copies else before
        self._same(after[: len(kept)], kept, "pages kept by an append")
        new = after[len(kept) :]
        self._same(len(new), num_new, "new pages")
        if not set(new) <= free | set(gone) or len(set(new)) != num_new:
            raise AssertionError(f"append handed out {new}, free were {sorted(free)}, evicted {gone}")
        self.model.holders.update(new)
        if copies:
            self.model.holders[before[-1]] -= 1
        rows = range(len(track.tokens), len(track.tokens) + num_rows)
        self._same(slots.tolist(), [after[row // size] * size + row % size for row in rows], "slots")
        return slots

    def _allocate(self, num_pages: int) -> npt.NDArray[np.int32] | None:
        free = self.model.free_pages()
        if num_pages > len(free) + self.model.num_evictable():
            counts = self.cache.counts()
            try:
                self.cache.allocate(num_pages)
            except OutOfPages:
                self._same(self.cache.counts(), counts, "counts after a failed allocation")
                return None
            raise AssertionError(f"{num_pages} pages were allocated, but only {len(free)} are free")
        pages = self.cache.allocate(num_pages)
        gone = self.model.evict(num_pages - len(free))
        if not set(pages.tolist()) <= free | set(gone) or len(set(pages.tolist())) != num_pages:
            raise AssertionError(f"allocate handed out {pages}, free were {sorted(free)}, evicted {gone}")
        self.model.holders.update(pages.tolist())
        return pages

    def _published(self, track: Track, pages: list[int]) -> int:
        """The model's side of publishing; `pages` becomes what the sequence must hold. Returns tokens newly cached."""
        size = self.model.page_size
        path = self.model.path(track.namespace, track.tokens)
        count = len(path) - 1
        cursor = self.model.cached.get(path[: track.num_published + 1], _NO_ENTRY).page_id
        stands = track.num_published == 0 or cursor == pages[track.num_published - 1]
        if not track.publishes or not stands or count <= track.num_published:
            return 0
        num_own, known = track.num_published, self.model.longest(path)
        # From where the last call ended: what this sequence published before stays its own, even if that was forgotten
        # since and another sequence has brought the same tokens in other pages.
        for i in range(num_own, len(known)):
            if pages[i] != known[i]:
                self.model.holders[pages[i]] -= 1
                self.model.holders[known[i]] += 1
                pages[i] = known[i]
        track.num_published = count
        return self.model.insert(path, pages[:count], num_own=num_own) * size

    def _trimmed(self, track: Track, before: npt.NDArray[np.int32]) -> None:
        """Pages behind the last committed token have gone back."""
        keep = -(-len(track.tokens) // self.model.page_size)
        self._same(track.sequence.page_ids.tolist(), before[:keep].tolist(), "pages after trimming")
        self.model.holders.subtract(before[keep:].tolist())

    def _num_references(self, page: int) -> int:
        return self.model.holders[page] + (page in self.model.cached_pages())

    def _contents(self, namespace: Hashable, tokens: Sequence[int]) -> list[int]:
        contents, content = [], hash(namespace) & 0xFFFF
        for token in tokens:
            content = (content * 1_000_003 + token + 1) % 2_147_483_629
            contents.append(content)
        return contents

    def _read(self, namespace: Hashable, tokens: Sequence[int], pages: npt.NDArray[np.int32]) -> None:
        count = -(-len(tokens) // self.model.page_size)
        stored = self.store.rows[pages[:count]].reshape(-1)[: len(tokens)]
        self._same(stored.tolist(), self._contents(namespace, tokens), f"contents of pages {pages[:count].tolist()}")

    def _same(self, found: Any, expected: Any, what: str) -> None:
        if found != expected:
            raise AssertionError(f"{what}: found {found}, expected {expected}")


def make_driver(
    cache: PrefixCache,
    store: ArrayStore,
    *,
    order: Order = "lru",
    bonus: int = 0,
    num_ghosts: int = 0,
    num_host_slots: int = 0,
) -> PrefixDriver:
    """A driver around an empty cache whose store is `store`; `order` and the rest as in `PrefixModel`.

    num_host_slots: pages that a host tier keeps; 0 for none, from `ENDLESS` on it never runs full in a test.
    """
    model = PrefixModel(store.rows.shape[0], cache.page_size, order=order, bonus=bonus, num_ghosts=num_ghosts)
    driver = PrefixDriver(cache, store, model)
    if num_host_slots:
        driver.host = HostTier(cache, ArrayHostStore(store, num_host_slots), poison=True)
        driver.host_is_endless = num_host_slots >= ENDLESS
    return driver


__all__ = ["ENDLESS", "ArrayHostStore", "ArrayStore", "Path", "PrefixDriver", "Track", "make_driver"]
