"""Which evicted pages are in host memory, and how they come back."""

import itertools
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from infercore.errors import OutOfPages
from infercore.radix import _compiled as c
from infercore.radix.allocator import PageAllocator
from infercore.radix.host.arrival import Arrival
from infercore.radix.host.types import HostStats, HostStore
from infercore.radix.keys import as_key
from infercore.radix.sequence import Sequence
from infercore.radix.types import Namespace
from infercore.typing import TokenIds

if TYPE_CHECKING:
    from infercore.radix.cache import PrefixCache


class HostTier:
    """Keeps what a prefix cache evicts, in the slots of a `HostStore`, and brings it back on demand.

    What is there is known to a second prefix tree, the index, whose nodes are named by the same tokens and namespaces.
    A page is evicted before the page it follows, so nodes above it may have no slot: their page is on the device, or
    was, and comes into its node's slot when it is evicted in its turn. Where slots are short the index evicts, least
    recently evicted or fetched first. A prefix that comes back stays in its slots as well: when the device evicts it
    once more there is nothing to copy.

    Laws: what `fetch` brings back was computed for exactly these tokens in this namespace; what the cache was told to
    forget (`clear`, `invalidate`) is forgotten here; no call of the cache fails for what happens here. Pages that are
    evicted because of a namespace's quota are kept like others: a quota limits what is on the device. `save` writes
    what is on the device only.

    Args:
        cache: whose pages are kept; from now on. One cache has one tier.
        store: where the bytes are.
        min_tokens: shorter prefixes are not fetched: computing them is as fast as waiting for a copy.
        bulk_pages: where the device's cache evicts for want of room, it evicts so many pages at once, so that copies
            are large; 1: as few as are needed.
        poison: fill slots that were given up with NaN, to show in tests that none is read.
    """

    def __init__(
        self,
        cache: "PrefixCache",
        store: HostStore,
        *,
        min_tokens: int = 0,
        bulk_pages: int = 1,
        poison: bool = False,
    ) -> None:
        from infercore.radix.cache import PrefixCache

        if cache.host is not None:
            raise ValueError("this cache has a host tier already; make one tier per cache")
        if store.num_slots < 1 or bulk_pages < 1:
            raise ValueError(f"num_slots {store.num_slots}, bulk_pages {bulk_pages}; expected 1 or more of both")
        num_pages = cache.allocator.num_total + 1
        self.store = store
        self.min_tokens = min_tokens
        self.bulk_pages = bulk_pages
        self._cache = cache
        self._poison = poison
        num_nodes = store.num_slots + num_pages + 1  # so many pages on the device may stand above pages with slots
        self._index = PrefixCache(num_nodes, cache.page_size)
        self._index._leaving = self._left_index
        self._slot_of = np.full(num_nodes, -1, np.int32)
        self._slots = PageAllocator(store.num_slots + 1)  # slot = page - 1
        self._gone = np.full(num_pages, -1, np.int32)
        self._path = np.empty(num_pages, np.int32)
        self._num_out = self._num_back = self._num_fetches = self._num_known = self._num_evicted = self._num_lost = 0
        cache.host = self
        cache._leaving = self._left_cache

    def fetch(self, sequence: Sequence, token_ids: TokenIds) -> Arrival | None:
        """Start to bring back what follows `sequence`'s tokens in `token_ids`, as far as it is here; None if it is not.

        Pages for it are reserved in the sequence, evicting as needed; where they are short, None comes back too. Pass
        what was passed to `open`.
        """
        cache, page_size = self._cache, self._cache.page_size
        tokens = as_key(token_ids)
        first = sequence.num_tokens // page_size
        least = max(self.min_tokens, 1)
        if sequence.num_tokens % page_size or sequence.num_reserved or len(tokens) < sequence.num_tokens + least:
            return None
        with cache._lock:
            found = self._index.match(tokens, namespace=sequence.namespace).page_ids[first:]
            absent = self._slot_of[found] < 0
            count = int(np.argmax(absent)) if absent.any() else len(found)
            if count * page_size < least or not self._continues(sequence, tokens):
                return None
            nodes = found[:count].copy()
            slots = self._slot_of[nodes]
            self._index.allocator.retain(nodes)
        try:
            sequence.append(count * page_size)
            ticket = self.store.copy_in(slots, sequence.page_ids[first : first + count].copy())
        except OutOfPages:
            self._let_go(nodes)
            return None
        except BaseException:
            sequence.commit([])
            self._let_go(nodes)
            raise
        self._num_fetches += 1
        self._num_back += count
        start = sequence.num_tokens
        return Arrival(self, sequence, tokens[start : start + count * page_size].copy(), nodes, ticket)

    def clear(self, *, namespace: Namespace) -> None:
        """Forget what is kept of `namespace`; `PrefixCache.clear` calls it."""
        self._index.clear(namespace=namespace)

    def invalidate(self, token_ids: TokenIds, *, namespace: Namespace) -> None:
        """Forget what is kept of one sequence; `PrefixCache.invalidate` calls it."""
        self._index.invalidate(token_ids, namespace=namespace)

    def warmup(self) -> None:
        """Compile ahead what copies need, if the pool has its layers."""
        if self.store.fits():
            self.store.warmup()

    @property
    def stats(self) -> HostStats:
        size = self.store.slot_bytes
        return HostStats(
            num_slots=self.store.num_slots,
            num_used=self.store.num_slots - self._slots.num_free,
            slot_bytes=size,
            bytes_out=self._num_out * size,
            bytes_back=self._num_back * size,
            num_fetches=self._num_fetches,
            num_tokens_back=self._num_back * self._cache.page_size,
            num_known=self._num_known,
            num_evicted=self._num_evicted,
            num_lost=self._num_lost,
        )

    # -- called by the cache, under its lock --------------------------------------------------------------------------

    def _left_cache(self, kind: Literal["evict", "remove"], pages: npt.NDArray[np.int32]) -> None:
        """`pages` have left the device's tree, tails first, and hold what they held; `cache._parents` says below what.

        Their tokens and parents still stand in the arrays. One copy for all of them.
        """
        if kind != "evict" or not len(pages):
            return
        if not self.store.fits():
            self._num_lost += len(pages)
            return
        cache = self._cache
        layout, parents = cache.allocator.layout, cache._parents[: len(pages)]
        c.spread_roots(layout.fields, pages, parents, len(pages))
        too_many = max(0, len(pages) - self.store.num_slots)  # these went first: they are the least recently used
        self._num_lost += too_many
        pages, parents = pages[too_many:], parents[too_many:]
        breaks = np.flatnonzero(parents[:-1] != pages[1:]) + 1  # where another branch begins
        bounds = [0, *breaks.tolist(), len(pages)]
        self._gone[pages] = parents
        held: list[npt.NDArray[np.int32]] = []
        copies: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]] = []
        try:
            for start, stop in itertools.pairwise(bounds):
                branch = pages[start:stop][::-1]
                above = int(c.path_above(layout.header, layout.fields, self._gone, parents[stop - 1], self._path))
                path = np.concatenate([self._path[:above], branch])
                tokens = layout.tokens.reshape(-1, cache.page_size)[path].reshape(-1)
                nodes = self._nodes(tokens, cache._names[int(layout.fields[c.ROOT, branch[0]])])
                if nodes is None:
                    self._num_lost += len(branch)
                    continue
                held.append(nodes)  # so that no slot that was given is taken for the next branch
                copies.append(self._place(branch, nodes[above:]))
            self._copy_out(copies)
        finally:
            self._gone[pages] = -1
            for nodes in held:
                self._index.release(nodes)

    def _left_index(self, kind: Literal["evict", "remove"], nodes: npt.NDArray[np.int32]) -> None:
        """Nodes have left the index: their slots are free at once. A fetch that still reads them brings nothing."""
        slots = self._slot_of[nodes]
        slots = slots[slots >= 0]
        self._slot_of[nodes] = -1
        self._slots.release(slots + np.int32(1))
        if kind == "evict":
            self._num_evicted += len(slots)
        if self._poison and len(slots):
            self.store.poison_slots(slots)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _continues(self, sequence: Sequence, tokens: npt.NDArray[np.int32]) -> bool:
        """Whether `tokens` begin with the sequence's, and these were not cleared since it was opened."""
        is_present = self._cache._epochs.get(sequence._root, 0) == sequence._epoch
        return is_present and np.array_equal(sequence.token_ids, tokens[: sequence.num_tokens])

    def _nodes(self, tokens: npt.NDArray[np.int32], namespace: Namespace) -> npt.NDArray[np.int32] | None:
        """The nodes of a path, made where they are missing, with one reference each; None if the index is full."""
        index = self._index
        known = index.match(tokens, namespace=namespace).page_ids
        index.allocator.retain(known)
        try:
            new = index.allocate(len(tokens) // index.page_size - len(known))
        except OutOfPages:
            index.release(known)
            return None
        nodes = np.concatenate([known, new])
        index.insert(tokens, nodes, namespace=namespace)
        return nodes

    def _place(
        self, pages: npt.NDArray[np.int32], nodes: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Slots for those nodes that have none: pages to copy, their nodes, their slots. If short, for the first."""
        new = np.flatnonzero(self._slot_of[nodes] < 0)
        slots = self._take_slots(len(new))
        self._num_known += len(nodes) - len(new)
        self._num_lost += len(new) - len(slots)
        new = new[: len(slots)]
        return pages[new], nodes[new], slots

    def _copy_out(
        self, copies: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]]
    ) -> None:
        """All of it in one call of the store; the nodes have their slots then, and not before."""
        if not copies:
            return
        pages, nodes, slots = (np.concatenate(parts) for parts in zip(*copies, strict=True))
        if not len(pages):
            return
        try:
            self.store.copy_out(pages, slots)
        except BaseException:
            self._slots.release(slots + np.int32(1))
            raise
        self._slot_of[nodes] = slots
        self._num_out += len(pages)

    def _take_slots(self, count: int) -> npt.NDArray[np.int32]:
        """Up to `count` slots, side by side where that is possible; what is not held gives its own up."""
        while self._slots.num_free < count and self._index.evict(count - self._slots.num_free):
            pass
        return self._slots.allocate(min(count, self._slots.num_free)) - np.int32(1)

    def _stand(self, nodes: npt.NDArray[np.int32]) -> bool:
        """Whether these nodes are still in the index."""
        return len(nodes) > 0 and bool(self._index.allocator.layout.are_cached(nodes).all())

    def _let_go(self, nodes: npt.NDArray[np.int32]) -> None:
        """Give back a fetch's references."""
        with self._cache._lock:
            self._index.release(nodes)
