"""A request's hold on its pages: rows are reserved, committed, rolled back; pages shared until they are written."""

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from jaxtyping import Int32, Int64

from infercore.radix import _compiled as c
from infercore.radix.types import Namespace
from infercore.typing import TokenIds, as_token_ids

if TYPE_CHECKING:
    from infercore.radix.cache import PrefixCache


class Sequence:
    """The tokens of one request and the pages that hold their K/V. Made by `PrefixCache.open` or `fork`.

    A step is `slots = append(n)`, write K/V of n rows there, `commit(token_ids)` of those that stay. Committed tokens
    are dense, so the list of pages is all that attention needs. Whole committed pages are published with `insert` or
    `close`; rows that were never committed do not enter the tree. One thread at a time per sequence.
    """

    __slots__ = (
        "_cache",
        "_epoch",
        "_is_closed",
        "_num_pages",
        "_num_published",
        "_num_reserved",
        "_num_tokens",
        "_page_size",
        "_pages",
        "_root",
        "_tokens",
        "namespace",
    )

    def __init__(
        self,
        cache: "PrefixCache",
        namespace: Namespace,
        root: int,
        token_ids: npt.NDArray[np.int32],
        page_ids: npt.NDArray[np.int32],
        *,
        num_published: int,
    ) -> None:
        self._cache = cache
        self.namespace = namespace
        self._root = root
        self._epoch = cache._epochs.get(root, 0)
        self._page_size = cache.page_size
        self._num_tokens = len(token_ids)
        self._num_reserved = 0
        self._num_pages = len(page_ids)
        self._num_published = num_published
        self._tokens = np.empty(_capacity(self._num_tokens), np.int32)
        self._tokens[: self._num_tokens] = token_ids
        self._pages = np.empty(_capacity(self._num_pages, 8), np.int32)
        self._pages[: self._num_pages] = page_ids
        self._is_closed = False

    @property
    def num_tokens(self) -> int:
        """Committed tokens."""
        return self._num_tokens

    @property
    def num_reserved(self) -> int:
        """Rows appended and not committed yet."""
        return self._num_reserved

    @property
    def num_pages(self) -> int:
        """Pages held, those of reserved rows included."""
        return self._num_pages

    @property
    def token_ids(self) -> Int32[np.ndarray, "num_tokens"]:
        """The committed tokens; a view, not to be written."""
        return self._tokens[: self._num_tokens]

    @property
    def page_ids(self) -> Int32[np.ndarray, "num_pages"]:
        """The pages in order; a view, not to be written, and out of date after the next call that changes them."""
        return self._pages[: self._num_pages]

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def append(self, num_rows: int) -> Int64[np.ndarray, "num_rows"]:
        """Reserve slots for `num_rows` rows behind those that stand; evicts as needed.

        A last page that others hold as well is copied first.
        Raises: OutOfPages, changing nothing.
        Cost: O(num_rows); with page_size 16 one append in 16 of a decoding sequence needs a page.
        """
        if num_rows < 0:
            raise ValueError(f"num_rows is {num_rows}, expected 0 or more")
        self._check_open()
        page_size = self._page_size
        start = self._num_tokens + self._num_reserved
        num_missing = -(-(start + num_rows) // page_size) - self._num_pages
        offset = start % page_size
        if num_rows and offset and self._num_reserved == 0 and self._is_shared(start // page_size):
            self._append_pages(num_missing, copy_rows=offset)
        elif num_missing > 0:
            self._append_pages(num_missing, copy_rows=0)
        self._num_reserved += num_rows
        slots = np.empty(num_rows, np.int64)
        c.slots_of(self._pages, start, page_size, slots)
        return slots

    def commit(self, token_ids: TokenIds, rows: Seq[int] | npt.NDArray[np.int64] | None = None) -> None:
        """Keep some of the reserved rows as the next tokens and give every other back at once.

        Args:
            token_ids: the tokens of the kept rows.
            rows: which reserved rows, increasing, counted from the first one; None: the first `len(token_ids)`.
        Kept rows are moved down, so that committed tokens stay dense.
        """
        self._check_open()
        tokens = as_token_ids(token_ids)
        count = len(tokens)
        if count > self._num_reserved:
            raise ValueError(f"{count} tokens to commit, but {self._num_reserved} rows are reserved; append first")
        start = self._num_tokens
        if rows is not None:
            self._move_down(np.asarray(rows, np.int64), count)
        if start + count > len(self._tokens):
            self._tokens = _grown(self._tokens, start, start + count)
        self._tokens[start : start + count] = tokens
        self._num_tokens = start + count
        self._num_reserved = 0
        self._trim()

    def rollback(self, num_tokens: int) -> None:
        """Drop the last `num_tokens` committed tokens, and every reserved row."""
        self._check_open()
        if not 0 <= num_tokens <= self._num_tokens:
            raise ValueError(f"cannot roll back {num_tokens} tokens of a sequence of {self._num_tokens}")
        self._num_tokens -= num_tokens
        self._num_reserved = 0
        self._num_published = min(self._num_published, self._num_tokens // self._page_size)
        self._trim()

    def fork(self) -> "Sequence":
        """A second sequence with the same tokens and pages; whoever writes into the last, partial page first copies it.

        Raises: ValueError if rows are reserved: commit them first.
        """
        self._check_open()
        if self._num_reserved:
            raise ValueError(f"{self._num_reserved} rows are reserved; commit them (commit([]) drops all), then fork")
        with self._cache._lock:
            self._cache.allocator.retain(self.page_ids)
        other = Sequence(
            self._cache, self.namespace, self._root, self.token_ids, self.page_ids, num_published=self._num_published
        )
        other._epoch = self._epoch
        return other

    def insert(self) -> int:
        """Publish the whole committed pages in the tree, from where the last call ended; returns tokens newly cached.

        Where the tree has a page with the same tokens already, this sequence gives up its own and takes that one, so
        `page_ids` may change. After the namespace was cleared nothing is published.
        Cost: O(tokens since the last call).
        """
        self._check_open()
        count = self._num_tokens // self._page_size
        first = self._num_published
        if count <= first:
            return 0
        cache = self._cache
        with cache._lock:
            node = int(self._pages[first - 1]) if first else self._root
            if cache._epochs.get(self._root, 0) != self._epoch or (
                first and not cache._fields[c.STATE, node] & c.CACHED
            ):
                return 0
            num_new = cache._insert(self._tokens, first, node, self._root, self._pages[:count], adopt=True, priority=0)
        self._num_published = count
        if cache._events:
            cache._tell()
        return num_new * self._page_size

    def close(self, *, insert: bool = True) -> None:
        """Publish (unless told not to) and give up all pages. Reserved rows are dropped. A second call does nothing."""
        if self._is_closed:
            return
        if insert:
            self.insert()
        self._cache.release(self.page_ids)
        self._num_pages = self._num_reserved = 0
        self._is_closed = True

    def slots(self, start: int, stop: int) -> Int64[np.ndarray, "n"]:
        """Slots of the rows `start` .. `stop` - 1, counted from the first token."""
        if not 0 <= start <= stop <= self._num_pages * self._page_size:
            raise ValueError(f"rows {start} to {stop} are not within the {self._num_pages} pages of this sequence")
        slots = np.empty(stop - start, np.int64)
        c.slots_of(self._pages, start, self._page_size, slots)
        return slots

    def fill_block_table(self, out_row: npt.NDArray[np.int32]) -> None:
        """Write the page ids into `out_row`, -1 past the end."""
        count = self._num_pages
        if count > len(out_row):
            raise ValueError(f"a row of {len(out_row)} cannot hold {count} pages; make the block table wider")
        out_row[:count] = self._pages[:count]
        out_row[count:] = -1

    def block_table_row(self, max_pages: int) -> Int32[np.ndarray, "max_pages"]:
        """This sequence's row of a block table, -1 past the end."""
        row = np.empty(max_pages, np.int32)
        self.fill_block_table(row)
        return row

    def _append_pages(self, num_missing: int, *, copy_rows: int) -> None:
        """Add `num_missing` pages; with `copy_rows` replace the last page, whose first rows are copied, as well."""
        cache, count = self._cache, self._num_pages
        num_new = num_missing + (copy_rows > 0)
        pages = cache.allocate(num_new, after=int(self._pages[count - 1]) if count else -1)
        keep = count
        if copy_rows:
            keep = (self._num_tokens - 1) // self._page_size
            shared = self._pages[keep : keep + 1].copy()
            if cache.store is not None:
                rows = np.arange(copy_rows, dtype=np.int64)
                try:
                    cache.store.move_slots(
                        int(shared[0]) * self._page_size + rows, int(pages[0]) * self._page_size + rows
                    )
                except BaseException:
                    cache.release(pages)
                    raise
            cache.release(shared)
        if keep + num_new > len(self._pages):
            self._pages = _grown(self._pages, keep, keep + num_new)
        self._pages[keep : keep + num_new] = pages
        self._num_pages = keep + num_new

    def _is_shared(self, page_pos: int) -> bool:
        return bool(self._cache._fields[c.STATE, self._pages[page_pos]] & c.REFERENCES > 1)

    def _move_down(self, rows: npt.NDArray[np.int64], count: int) -> None:
        if len(rows) != count:
            raise ValueError(f"{len(rows)} rows for {count} tokens; pass one row per kept token")
        if count == 0:
            return
        if rows[0] < 0 or rows[-1] >= self._num_reserved or (np.diff(rows) <= 0).any():
            raise ValueError(f"rows {rows.tolist()} are not increasing within the {self._num_reserved} reserved ones")
        wanted = np.arange(count, dtype=np.int64)
        moved = rows != wanted
        if self._cache.store is not None and moved.any():
            slots = self.slots(self._num_tokens, self._num_tokens + self._num_reserved)
            self._cache.store.move_slots(slots[rows[moved]], slots[wanted[moved]])

    def _trim(self) -> None:
        """Give back the pages behind the last committed token."""
        keep = -(-self._num_tokens // self._page_size)
        if keep < self._num_pages:
            self._cache.release(self._pages[keep : self._num_pages])
            self._num_pages = keep

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("this sequence is closed; open a new one")


def block_table(sequences: Seq[Sequence], max_pages: int | None = None) -> Int32[np.ndarray, "num_seqs max_pages"]:
    """Pages of each sequence in order, -1 past the end. `max_pages` None: as wide as the longest."""
    if max_pages is None:
        max_pages = max((sequence.num_pages for sequence in sequences), default=0)
    table = np.empty((len(sequences), max_pages), np.int32)
    for row, sequence in zip(table, sequences, strict=True):
        sequence.fill_block_table(row)
    return table


def slot_mapping(sequences: Seq[Sequence], starts: Seq[int], stops: Seq[int]) -> Int64[np.ndarray, "num_tokens"]:
    """Slots of rows `starts[i]` .. `stops[i]` - 1 of each sequence, one after the other."""
    parts = [s.slots(start, stop) for s, start, stop in zip(sequences, starts, stops, strict=True)]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _capacity(count: int, least: int = 64) -> int:
    return max(least, count + count // 2)


def _grown(array: npt.NDArray[np.int32], used: int, needed: int) -> npt.NDArray[np.int32]:
    grown = np.empty(_capacity(needed), np.int32)
    grown[:used] = array[:used]
    return grown
