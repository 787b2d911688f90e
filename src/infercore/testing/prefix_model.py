"""What a prefix cache must do, by brute force: a dict from prefix to page, and nothing clever.

A path is `(namespace, page, page, ...)`, each page a tuple of tokens; its parent is `path[:-1]`. Every access stamps
every page on its path. Shares no code with the cache.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Path: TypeAlias = tuple[Any, ...]
Order: TypeAlias = Literal["lru", "fifo", "lfu", "priority", "seen"]


@dataclass
class Entry:
    """One cached page, and what eviction orders may ask of it."""

    page_id: int
    created: int
    used: int
    num_uses: int = 0
    priority: int = 0
    was_seen: bool = False


@dataclass
class PrefixModel:
    """Cached prefixes of a pool of `num_pages` pages, page 0 reserved; `holders` counts references from outside.

    bonus, num_ghosts: for the order "seen" (least recent first, but a page that was seen before counts as used `bonus`
    ticks later; the last `num_ghosts` evictions are remembered). The clock ticks once per use and per new page.
    """

    num_pages: int
    page_size: int
    order: Order = "lru"
    bonus: int = 0
    num_ghosts: int = 0
    cached: dict[Path, Entry] = field(default_factory=dict)
    holders: Counter[int] = field(default_factory=Counter)
    clock: int = 0
    num_evicted: int = 0
    ghosts: dict[Path, int] = field(default_factory=dict)  # evicted prefixes, and the how manieth eviction it was
    kept: dict[Path, None] = field(
        default_factory=dict
    )  # evicted, and in host memory if there is a tier that never runs full
    kept_tree: set[Path] = field(default_factory=set)  # these, and what stands above them

    def path(self, namespace: Hashable, token_ids: Iterable[int]) -> Path:
        """The path of the whole pages of `token_ids`."""
        ids = list(token_ids)
        size = self.page_size
        return (namespace, *(tuple(ids[i : i + size]) for i in range(0, len(ids) - size + 1, size)))

    def longest(self, path: Path) -> list[int]:
        """Pages of the longest cached prefix of `path`."""
        pages = []
        for end in range(2, len(path) + 1):
            entry = self.cached.get(path[:end])
            if entry is None:
                break
            pages.append(entry.page_id)
        return pages

    def touch(self, path: Path, num_pages: int, *, seen: bool = True) -> None:
        """Count a use of the first `num_pages` pages of `path`; `seen`: they were there before."""
        if num_pages:
            self.clock += 1
        for end in range(2, num_pages + 2):
            entry = self.cached[path[:end]]
            entry.used = self.clock
            entry.num_uses += 1
            entry.was_seen |= seen

    def insert(self, path: Path, page_ids: list[int], priority: int = 0, *, num_own: int = 0) -> int:
        """Cache `path`; where a prefix is cached its page stays. Returns the pages newly cached.

        num_own: pages at the start that the caller cached itself; finding just these is not seeing them again.
        """
        num_pages = len(path) - 1
        num_known = len(self.longest(path))
        self.clock += num_pages - num_known
        self.touch(path, num_known, seen=num_known > num_own)
        self.clock -= num_known > 0
        remembered = True
        for end in range(num_known + 2, len(path) + 1):
            remembered = remembered and self._pop_ghost(path[:end])
            if remembered:  # whoever saw a prefix saw what it begins with
                for shorter in range(2, end):
                    self.cached[path[:shorter]].was_seen = True
            now = self.clock + 1
            self.cached[path[:end]] = Entry(page_ids[end - 2], now, now, num_uses=1, was_seen=remembered)
        self.clock += num_pages > 0
        for end in range(2, len(path) + 1):
            self.cached[path[:end]].priority = max(self.cached[path[:end]].priority, priority)
        return num_pages - num_known

    def cached_pages(self) -> set[int]:
        return {entry.page_id for entry in self.cached.values()}

    def free_pages(self) -> set[int]:
        return set(range(1, self.num_pages)) - self.cached_pages() - {page for page, n in self.holders.items() if n}

    def num_evictable(self, namespace: Hashable = ...) -> int:
        """Cached pages that nobody holds, nor anything below them."""
        kept: set[Path] = set()
        for path, entry in self.cached.items():
            if self.holders[entry.page_id]:
                kept.update(path[:end] for end in range(2, len(path) + 1))
        return sum(path not in kept for path in self.cached if namespace is ... or path[0] == namespace)

    def evict(self, count: int, namespace: Hashable = ...) -> list[int]:
        """Drop up to `count` pages, one leaf at a time by `order`; returns them in the order they went."""
        gone: list[int] = []
        while len(gone) < count:
            parents = {path[:-1] for path in self.cached}
            leaves = [
                path
                for path, entry in self.cached.items()
                if path not in parents
                and not self.holders[entry.page_id]
                and (namespace is ... or path[0] == namespace)
            ]
            if not leaves:
                break
            worst = min(leaves, key=lambda path: self._rank(self.cached[path]))
            gone.append(self.cached.pop(worst).page_id)
            self.kept[worst] = None
            self.kept_tree.update(worst[:end] for end in range(2, len(worst) + 1))
            self.num_evicted += 1
            self.ghosts[worst] = self.num_evicted
        return gone

    def remove_below(self, path: Path) -> list[int]:
        """Forget `path` and everything below it; returns the pages."""
        gone = [known for known in self.cached if known[: len(path)] == path]
        return [self.cached.pop(known).page_id for known in gone]

    def forget_kept(self, path: Path) -> None:
        """As `remove_below`, of what is in host memory."""
        self.kept_tree = {known for known in self.kept_tree if known[: len(path)] != path}
        self.kept = {known: None for known in self.kept if known in self.kept_tree}

    def invalidate(self, path: Path) -> list[int]:
        """Forget `path` from where no other cached path shares it, and everything below; returns the pages."""
        if (kept := _private_part(self.kept_tree, path)) is not None:
            self.forget_kept(kept)
        private = _private_part(self.cached.keys(), path)
        return [] if private is None else self.remove_below(private)

    def num_kept(self, path: Path, start: int) -> int:
        """How many pages of `path` behind the first `start` are in host memory, up to the first that is not."""
        end = start + 2
        while end <= len(path) and path[:end] in self.kept:
            end += 1
        return end - 2 - start

    def _pop_ghost(self, path: Path) -> bool:
        """Whether `path` is among the last `num_ghosts` evicted, which it leaves."""
        return self.num_evicted - self.ghosts.pop(path, -self.num_ghosts) < self.num_ghosts

    def _rank(self, entry: Entry) -> tuple[int, int]:
        match self.order:
            case "lru":
                return (0, entry.used)
            case "fifo":
                return (0, entry.created)
            case "lfu":
                return (entry.num_uses, entry.used)
            case "priority":
                return (entry.priority, entry.used)
            case "seen":
                return (entry.used + self.bonus * entry.was_seen, entry.used)


def _private_part(tree: Collection[Path], path: Path) -> Path | None:
    """Where `path` parts from all other paths of `tree`; None if it is not in there, or goes on there otherwise."""
    end = next((end for end in range(len(path), 1, -1) if path[:end] in tree), 1)
    if end == 1 or (end < len(path) and any(known[:-1] == path[:end] for known in tree)):
        return None
    while end > 2 and sum(known[:-1] == path[: end - 1] for known in tree) == 1:
        end -= 1
    return path[:end]
