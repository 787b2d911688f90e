"""What enters and leaves the tree, told to whoever wants to know: a router, a log, a second cache."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from infercore.radix import _compiled as c
from infercore.radix.layout import Layout
from infercore.radix.types import Namespace


@dataclass(frozen=True, slots=True)
class CacheEvent:
    """Pages that entered the tree ("insert") or left it ("evict": for room; "remove": cleared or invalidated).

    page_ids: int32 `[n]`, for "insert" in the order of the prefix. token_ids: int32 `[n, page_size]`, of each page.
    parent_page_id: of an insert, the page before the first, None at the root. Of pages that left: None.
    """

    kind: Literal["insert", "evict", "remove"]
    namespace: Namespace
    page_ids: npt.NDArray[np.int32]
    token_ids: npt.NDArray[np.int32]
    parent_page_id: int | None = None


Listener: TypeAlias = Callable[[CacheEvent], None]


class EventQueue:
    """Keeps events while the cache's lock is held, and hands them out after; costs nothing without listeners."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self._waiting: list[CacheEvent] = []

    def insert(self, layout: Layout, namespace: Namespace, pages: npt.NDArray[np.int32]) -> None:
        """`pages` were hung one below the other."""
        if self.listeners and len(pages):
            parent = int(layout.fields[c.PARENT, pages[0]])
            above = None if parent == 0 or parent >= layout.header[c.NUM_PAGES] else parent
            self._add("insert", layout, namespace, pages, above)

    def leave(
        self,
        kind: Literal["evict", "remove"],
        layout: Layout,
        names: dict[int, Namespace],
        pages: npt.NDArray[np.int32],
    ) -> None:
        """`pages` have just left the tree; their tokens and roots still stand in the arrays. `names`: of the roots."""
        if self.listeners and len(pages):
            roots = layout.fields[c.ROOT, pages]
            for root in np.unique(roots).tolist():
                self._add(kind, layout, names[root], pages[roots == root], None)

    def deliver(self) -> None:
        """Call the listeners, in order, without a lock. An exception of theirs reaches the caller; the rest waits."""
        while self._waiting:
            event = self._waiting.pop(0)
            for listener in tuple(self.listeners):
                listener(event)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def _add(
        self,
        kind: Literal["insert", "evict", "remove"],
        layout: Layout,
        namespace: Namespace,
        pages: npt.NDArray[np.int32],
        parent: int | None,
    ) -> None:
        tokens = layout.tokens.reshape(-1, int(layout.header[c.PAGE_SIZE]))[pages]
        self._waiting.append(CacheEvent(kind, namespace, pages.copy(), tokens, parent))
