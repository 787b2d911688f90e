"""The prefix cache: which prefix is computed already, and in which pages."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from infercore.errors import OutOfPages
from infercore.radix import _compiled as c
from infercore.radix.allocator import PageAllocator, as_page_ids
from infercore.radix.events import EventQueue, Listener
from infercore.radix.eviction import LRU, Policy, settings_of
from infercore.radix.explain import Explanation, explain_miss
from infercore.radix.keys import as_key
from infercore.radix.layout import make_layout, with_more_namespaces
from infercore.radix.pins import Pin, PinBoard
from infercore.radix.render import Decode, as_graphviz, as_text, runs_below
from infercore.radix.saving import load_into, save_cache
from infercore.radix.sequence import Sequence
from infercore.radix.types import CacheStats, Match, Namespace, PageCounts, PageStore
from infercore.typing import TokenIds

if TYPE_CHECKING:
    from infercore.radix.host import HostTier

_INT32 = np.dtype(np.int32)


class PrefixCache:
    """Finds the longest cached prefix of a token sequence, hands out pages, and evicts what was used least.

    Whole pages only: a page is shared if all its tokens, and all before them, are equal. Every page has a reference
    count; the tree holds one on each page it stores, a sequence one on each page it uses, and a page that nobody but
    the tree holds may be evicted. Thread-safe under one lock.

    Laws, after every operation: `counts()` adds up; what somebody holds is never evicted or written by the cache; a
    call that raises changed nothing.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int = 16,
        *,
        store: PageStore | None = None,
        policy: Policy | None = None,
        poison: bool = False,
        clock: Callable[[], int | float] = time.monotonic,
    ) -> None:
        """
        Args:
            num_pages: pages of the pool, the reserved page 0 included.
            store: moves K/V rows when pages are copied or tokens moved down; None: bookkeeping only.
            policy: eviction order, see `eviction.py`; None is `LRU()`.
            poison: for tests, have the store fill every freed page with NaN.
            clock: seconds, for pins that expire.
        """
        settings = settings_of(LRU() if policy is None else policy, num_pages, page_size)
        self.store = store
        self.page_size = page_size
        self.allocator = PageAllocator(num_pages, layout=make_layout(num_pages, page_size, **asdict(settings)))
        self._poison = poison
        self._lock = threading.RLock()
        self._roots: dict[Namespace, int] = {None: 0}
        self._names: dict[int, Namespace] = {0: None}  # of the roots
        self._epochs: dict[int, int] = {}  # how often a namespace was cleared, by root
        self._quotas: dict[int, int] = {}  # pages that a namespace may keep cached, by root
        self._pins = PinBoard(clock)
        self._events = EventQueue()
        self._use_layout()
        self._found = np.empty(2 * num_pages, np.int32)  # scratch under the lock; holds taken and evicted pages
        self._parents = np.empty(num_pages, np.int32)
        self._num_inserted = 0
        self.host: HostTier | None = None  # set by the tier: see `infercore.radix.host`
        self._leaving: Callable[[Literal["evict", "remove"], npt.NDArray[np.int32]], None] | None = None

    def match(self, token_ids: TokenIds, *, namespace: Namespace = None) -> Match:
        """The longest cached prefix of `token_ids`, in whole pages. Changes nothing but how recent that prefix is.

        Cost: O(tokens) and one compiled call; no page is split, moved or locked.
        """
        if (
            type(token_ids) is np.ndarray
            and token_ids.dtype is _INT32
            and token_ids.flags.carray
            and token_ids.ndim == 1
        ):
            tokens: npt.NDArray[np.int32] = token_ids  # type: ignore[assignment]  # dtype was just checked
        else:
            tokens = as_key(token_ids)
        page_size = self.page_size
        pages = np.empty(len(tokens) // page_size, _INT32)
        with self._lock:
            root = 0 if namespace is None else self._roots.get(namespace, -1)
            if root < 0:
                self._header[c.NUM_LOOKUPS] += 1
                self._header[c.NUM_LOOKED_UP] += len(tokens)
                count = 0
            else:
                count = int(
                    c.match_pages(self._header, self._fields, self._token_pool, tokens, root, True, False, pages)
                )
            num_removed = self._header.item(c.NUM_REMOVED)
        return Match(count * page_size, pages[:count], tokens, namespace, num_removed)

    @contextmanager
    def lock(self, match: Match) -> Iterator[Match]:
        """Hold the pages of `match` for the length of a `with` block: they are not evicted.

        Raises: ValueError if part of it has been evicted since; match again.
        Cost: O(pages); if anything has left the tree since, the prefix is looked up again.
        """
        with self._lock:
            if match.num_removed != self._header[c.NUM_REMOVED]:
                self._check_stands(match)
            self.allocator.retain(match.page_ids)
        try:
            yield match
        finally:
            self.release(match.page_ids)

    def insert(
        self, token_ids: TokenIds, page_ids: npt.ArrayLike, *, namespace: Namespace = None, priority: int = 0
    ) -> int:
        """Cache the whole pages of `token_ids`, whose K/V stands in `page_ids`; returns the tokens newly cached.

        The tree takes its own reference on each new page; the caller keeps theirs and releases it when done. Where
        the tree has the tokens already its page stays, and the caller's is not taken over.
        priority: of the whole prefix, 0 or more, for the `Priority` policy.
        Raises: ValueError, changing nothing, if pages are missing, free, named twice, or cached for other tokens.
        """
        if not 0 <= priority < 2**30:
            raise ValueError(f"priority is {priority}, expected 0 to 2**30 - 1")
        tokens = as_key(token_ids)
        pages = as_page_ids(page_ids)
        count = len(tokens) // self.page_size
        if len(pages) < count:
            raise ValueError(
                f"{len(tokens)} tokens fill {count} pages of {self.page_size}, but {len(pages)} were given"
            )
        with self._lock:
            root = self._root(namespace)
            num_new = self._insert(tokens, 0, root, root, pages[:count], adopt=False, priority=priority)
        self._tell()
        return num_new * self.page_size

    def evict(self, num_pages: int) -> int:
        """Give up to `num_pages` cached pages back, least recently used first; returns how many it were."""
        if num_pages < 0:
            raise ValueError(f"num_pages is {num_pages}, expected 0 or more")
        with self._lock:
            self._expire_pins()
            done = self._evict(min(num_pages, len(self._parents)), -1)
        self._tell()
        return done

    def allocate(self, num_pages: int, *, after: int = -1) -> npt.NDArray[np.int32]:
        """`num_pages` pages with one reference each, evicting as needed; in a contiguous run where one is near.

        after: a page that the first should follow directly if it can.
        Raises: OutOfPages, changing nothing, if not enough can be freed.
        """
        if num_pages < 0:
            raise ValueError(f"num_pages is {num_pages}, expected 0 or more")
        with self._lock:
            if len(self._pins):
                self._expire_pins()
            num_evicted = -1
            if num_pages < len(self._parents):
                num_evicted = int(c.allocate_pages(*self._arrays, num_pages, after, self._found, self._parents))
            if num_evicted < 0:
                raise self._out_of_pages(num_pages)
            pages = self._found[:num_pages].copy()
            if num_evicted:
                num_evicted += self._evict_more(num_pages, num_evicted)
                self._left("evict", self._found[num_pages : num_pages + num_evicted])
        if self._events:
            self._tell()
        if self.store is not None and num_pages:
            self.store.zero_pages(pages)
        return pages

    def release(self, page_ids: npt.ArrayLike) -> None:
        """Give back one reference on each page. Raises: ValueError, changing nothing, for a page that has none."""
        pages = as_page_ids(page_ids)
        with self._lock:
            self._freed(self.allocator.release(pages))
            if self._quotas:
                for root in self._quotas:
                    self._keep_quota(root)
        if self._events:
            self._tell()

    def open(self, token_ids: TokenIds = (), *, namespace: Namespace = None) -> Sequence:
        """A sequence that starts with the longest cached prefix of `token_ids` and holds its pages.

        `sequence.num_tokens` tells how much was found. Pass all of a prompt but its last token, which has to be
        computed for its logits.
        """
        tokens = as_key(token_ids)
        with self._lock:
            root = self._root(namespace)
            count = int(c.match_pages(*self._tree, tokens, root, True, True, self._found))
            pages = self._found[:count].copy()
        return Sequence(self, namespace, root, tokens[: count * self.page_size], pages, num_published=count)

    def clear(self, *, namespace: Namespace | EllipsisType = ...) -> int:
        """Forget everything cached in `namespace`, by default in all; returns the pages that left the tree.

        Sequences that are open keep their pages, and publish nothing more: what they hold belongs to the past.
        """
        with self._lock:
            roots = list(self._roots.values()) if namespace is ... else [self._roots.get(namespace, -1)]
            count = sum(self._clear(root) for root in roots if root >= 0)
            if self.host is not None:
                for name in list(self._roots) if namespace is ... else [namespace]:
                    self.host.clear(namespace=name)
        self._tell()
        return count

    def invalidate(self, token_ids: TokenIds, *, namespace: Namespace = None) -> int:
        """Forget one cached sequence: its pages from where it parts from all others, and what hangs below it.

        What it shares with other cached sequences stays. Returns the pages that left the tree.
        """
        tokens = as_key(token_ids)
        with self._lock:
            if self.host is not None:
                self.host.invalidate(tokens, namespace=namespace)
            root = self._roots.get(namespace, -1)
            count = c.match_pages(*self._tree, tokens, root, False, False, self._found) if root >= 0 else 0
            self.allocator.layout.settle()
            children = self._fields[c.CHILDREN]
            if not count or (count < len(tokens) // self.page_size and children[self._found[count - 1]]):
                return 0
            first = count - 1
            while first and children[self._found[first - 1]] == 1:
                first -= 1
            num_removed = self._remove(int(self._found[first]))
        self._tell()
        return num_removed

    def pin(self, token_ids: TokenIds, *, ttl_s: int | float | None = None, namespace: Namespace = None) -> Pin:
        """Keep the cached prefix of `token_ids` whatever happens, until `unpin`, `clear`, or for `ttl_s` seconds.

        `pin.num_tokens` tells how much was there to be pinned.
        """
        tokens = as_key(token_ids)
        with self._lock:
            root = self._roots.get(namespace, -1)
            count = c.match_pages(*self._tree, tokens, root, False, True, self._found) if root >= 0 else 0
            return self._pins.add(self._found[:count].copy(), self.page_size, namespace, ttl_s)

    def unpin(self, pin: Pin) -> None:
        """Let a pinned prefix be evicted again. Does nothing for a pin that has expired or was cleared."""
        with self._lock:
            if self._pins.remove(pin):
                self._freed(self.allocator.release(pin.page_ids))
                for root in self._quotas:
                    self._keep_quota(root)
        self._tell()

    def set_quota(self, namespace: Namespace, num_pages: int | None) -> None:
        """Let a namespace keep at most `num_pages` pages cached (None: no limit); its own worst go first, at once.

        Pages that somebody holds go as soon as they are given up.
        """
        if num_pages is not None and num_pages < 0:
            raise ValueError(f"num_pages is {num_pages}, expected 0 or more, or None")
        with self._lock:
            root = self._root(namespace)
            if num_pages is None:
                self._quotas.pop(root, None)
            else:
                self._quotas[root] = num_pages
                self._keep_quota(root)
        self._tell()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` called with a `CacheEvent` for all that enters or leaves the tree; returns how to stop that.

        It is called after the operation, in the thread that caused it, and never under the cache's lock. What it raises
        reaches the caller of the operation, which is complete by then.
        """
        with self._lock:
            self._events.listeners.append(listener)

        def unsubscribe() -> None:
            with self._lock:
                if listener in self._events.listeners:
                    self._events.listeners.remove(listener)

        return unsubscribe

    def explain(self, token_ids: TokenIds, *, namespace: Namespace = None) -> Explanation:
        """Why a lookup of `token_ids` finds no more than it does; changes nothing, recency included. O(pool)."""
        tokens = as_key(token_ids)
        with self._lock:
            matched = {
                name: int(c.match_pages(*self._tree, tokens, root, False, False, self._found))
                for name, root in self._roots.items()
            }
            count = matched.pop(namespace, 0)
            root = self._roots.get(namespace, -1)
            c.match_pages(*self._tree, tokens, max(root, 0), False, False, self._found)
            node = int(self._found[count - 1]) if count else root
            elsewhere = {name: pages * self.page_size for name, pages in matched.items() if pages}
            return explain_miss(self.allocator.layout, tokens, count, node, elsewhere)

    def save(self, path: str | Path) -> int:
        """Write the tree, and the K/V of its pages if there is a store, to one safetensors file; returns the tokens.

        Raises: ValueError for a store that cannot export pages, and for namespaces other than strings, integers, None.
        """
        return save_cache(self, Path(path))

    def load(self, path: str | Path) -> int:
        """Add what `save` wrote to this cache, evicting as needed; returns the tokens that were not cached yet.

        All of the file is checked first; a call that raises has changed nothing.
        Raises: CacheFileError if the file is damaged, foreign, or does not fit; OutOfPages if the pool is too small.
        """
        return load_into(self, Path(path))

    def counts(self) -> PageCounts:
        """Where all pages are at this moment."""
        with self._lock:
            total, free = self.allocator.num_total, self.allocator.num_free
            cached = int(self._header[c.NUM_CACHED])
        return PageCounts(total, free, cached, total - free - cached)

    @property
    def num_available_pages(self) -> int:
        """Pages that `allocate` could give at this moment: free ones, and cached ones that nobody holds."""
        with self._lock:
            return self.allocator.num_free + int(self._header[c.NUM_CACHED]) - int(self._header[c.NUM_HELD])

    @property
    def stats(self) -> CacheStats:
        with self._lock:
            return CacheStats(
                num_lookups=int(self._header[c.NUM_LOOKUPS]),
                num_hits=int(self._header[c.NUM_HITS]),
                num_tokens_looked_up=int(self._header[c.NUM_LOOKED_UP]),
                num_tokens_matched=int(self._header[c.NUM_MATCHED]),
                num_tokens_inserted=self._num_inserted,
                num_tokens_compared=int(self._header[c.NUM_COMPARED]),
                num_pages_evicted=int(self._header[c.NUM_EVICTED]),
                num_pages_removed=int(self._header[c.NUM_REMOVED]),
            )

    @property
    def metadata_bytes(self) -> int:
        """Bytes of tree, reference counts and eviction order, for a pool of this size; K/V not counted."""
        return self.allocator.layout.size_bytes

    def render(self, *, decode: Decode | None = None, graphviz: bool = False) -> str:
        """The tree, one line or box per run of pages without a branch, most recently used first; * marks held pages.

        Args: decode: turns token ids into text for the labels. graphviz: give Graphviz source instead of text.
        """
        with self._lock:
            trees = [(name, runs_below(self.allocator.layout, root)) for name, root in self._roots.items()]
            counts = self.counts()
        summary = f"{counts.cached} pages cached, {counts.in_use} in use, {counts.free} free of {counts.total}"
        draw = as_graphviz if graphviz else as_text
        shown = [
            draw(f"{'default namespace' if name is None else f'namespace {name!r}'} ({summary})", runs, decode)
            for name, runs in trees
            if runs or name is None
        ]
        return "\n".join(shown)

    def _check_stands(self, match: Match) -> None:
        """Raises: ValueError if the prefix of `match` is not cached in the same pages any more."""
        root = self._roots.get(match.namespace, -1)
        tokens = match.token_ids[: match.num_tokens]
        count = int(c.match_pages(*self._tree, tokens, root, False, False, self._found)) if root >= 0 else 0
        if not np.array_equal(self._found[:count], match.page_ids):
            raise ValueError(
                f"{len(match.page_ids) - count} pages of this match have been evicted since; match again, and lock "
                "before anything is allocated"
            )

    # -- shared with Sequence; callers hold the lock ------------------------------------------------------------------

    def _insert(
        self,
        tokens: npt.NDArray[np.int32],
        first: int,
        node: int,
        root: int,
        pages: npt.NDArray[np.int32],
        *,
        adopt: bool,
        priority: int,
    ) -> int:
        """Hang `pages[first:]` below `node` of the namespace `root`; see `insert_pages`. Returns the new pages."""
        num_new = int(c.insert_pages(*self._arrays, tokens, first, node, root, pages, adopt, priority, self._found))
        if num_new < 0:
            bad = -1 - num_new
            raise ValueError(
                f"page_ids[{bad}] = {pages[bad]} cannot be cached: not allocated, named twice, or cached for other "
                "tokens; allocate pages, write them, then insert"
            )
        if adopt:
            self._freed(self._found[1 : 1 + self._found[0]])
        if num_new:
            self._events.insert(self.allocator.layout, self._names[root], pages[len(pages) - num_new :])
            if self._quotas:
                self._keep_quota(root)
            if self._header[c.CLOCK] >= c.CLOCK_LIMIT:
                self._set_clock_back()
        self._num_inserted += num_new * self.page_size
        return num_new

    def _tell(self) -> None:
        """Deliver events; the caller has given the lock back."""
        if self._events:
            self._events.deliver()

    def _evict(self, num_pages: int, root: int) -> int:
        done = int(c.evict_pages(*self._arrays, num_pages, root, self._found, self._parents))
        self._left("evict", self._found[:done])
        return done

    def _evict_more(self, start: int, num_evicted: int) -> int:
        """After an allocation that evicted: as many more as a host tier wants at once, listed behind the others."""
        more = min(self.host.bulk_pages - num_evicted, len(self._parents) - num_evicted) if self.host is not None else 0
        if more <= 0:
            return 0
        found, parents = self._found[start + num_evicted :], self._parents[num_evicted:]
        return int(c.evict_pages(*self._arrays, more, -1, found, parents))

    def _left(self, kind: Literal["evict", "remove"], pages: npt.NDArray[np.int32]) -> None:
        if self._leaving is not None:
            self._leaving(kind, pages)
        if self._events.listeners and kind == "evict":
            c.spread_roots(self._fields, pages, self._parents, len(pages))
        self._events.leave(kind, self.allocator.layout, self._names, pages)
        self._freed(pages if kind == "evict" else pages[self._fields[c.STATE, pages] == 0])

    def _keep_quota(self, root: int) -> None:
        over = int(self._fields[c.STATE, root]) - self._quotas.get(root, len(self._parents))
        if over > 0:
            self._evict(over, root)

    def _expire_pins(self) -> None:
        for pin in self._pins.pop_expired():
            self._freed(self.allocator.release(pin.page_ids))

    def _set_clock_back(self) -> None:
        """Stamps are int32; long before the clock passes them, all are set back."""
        layout = self.allocator.layout
        shift = int(layout.header[c.CLOCK]) - 2**29
        c.age_stamps(layout.header, layout.fields, layout.heap_ids, layout.heap_keys, shift)

    def _freed(self, pages: npt.NDArray[np.int32]) -> None:
        if self._poison and self.store is not None and len(pages):
            self.store.poison_pages(pages.copy())

    def _root(self, namespace: Namespace) -> int:
        """The root of `namespace`, made if need be."""
        root = self._roots.get(namespace, -1)
        if root < 0:
            layout = self.allocator.layout
            num_pages = int(self._header[c.NUM_PAGES])
            root = num_pages + len(self._roots) - 1
            if root >= layout.num_nodes:
                self.allocator.layout = with_more_namespaces(layout, max(8, 2 * (layout.num_nodes - num_pages)))
                self._use_layout()
            self._roots[namespace] = root
            self._names[root] = namespace
        return root

    def _use_layout(self) -> None:
        layout = self.allocator.layout
        self._arrays: tuple[Any, ...] = tuple(layout)
        self._header, self._fields, self._token_pool = layout.header, layout.fields, layout.tokens
        self._tree = (layout.header, layout.fields, layout.tokens)

    def _clear(self, root: int) -> int:
        self._epochs[root] = self._epochs.get(root, 0) + 1
        return self._remove(root)

    def _remove(self, node: int) -> int:
        """Take a node (of a root: all below it) out of the tree, and pins on what is gone with it."""
        marks = np.zeros(self._fields.shape[1], np.int8)
        count = int(c.remove_pages(*self._arrays, node, self._found, marks))
        self._left("remove", self._found[:count])
        if len(self._pins):
            layout = self.allocator.layout
            for pin in self._pins.pop_if(lambda pin: not layout.are_cached(pin.page_ids).all()):
                self._freed(self.allocator.release(pin.page_ids))
        return count

    def _out_of_pages(self, num_pages: int) -> OutOfPages:
        counts = self.counts()
        held = int(self._header[c.NUM_HELD])
        available = counts.free + counts.cached - held
        return OutOfPages(
            f"{num_pages} pages asked for, but of {counts.total} only {available} are free or can be evicted "
            f"({counts.in_use + held} are held by open sequences and callers); close some, or make the pool larger",
            requested=num_pages,
            available=available,
        )
