"""Pages by number: handed out in bulk, counted by reference, contiguous where possible."""

import numpy as np
import numpy.typing as npt

from infercore.errors import OutOfPages
from infercore.radix import _compiled as c
from infercore.radix.layout import Layout, make_layout


class PageAllocator:
    """Gives out pages 1 .. num_pages - 1 and counts references; a page is free again when its count reaches 0.

    Page 0 is reserved for rows that belong to nobody and is never handed out. Alone it is a plain pool; `PrefixCache`
    lays a tree over the same arrays (`layout`), under its own lock. Not thread-safe by itself.
    """

    def __init__(self, num_pages: int, *, layout: Layout | None = None) -> None:
        self.layout = make_layout(num_pages, 1) if layout is None else layout
        self._parents = np.empty(num_pages, np.int32)

    @property
    def num_free(self) -> int:
        return int(self.layout.header[c.NUM_FREE])

    @property
    def num_total(self) -> int:
        """Pages that can be handed out: all but page 0."""
        return int(self.layout.header[c.NUM_PAGES]) - 1

    def num_references(self, page_id: int) -> int:
        """References on a page; 0 if it is free."""
        if not 0 < page_id <= self.num_total:
            raise ValueError(f"page {page_id} does not exist, expected 1 to {self.num_total}")
        return int(self.layout.fields[c.STATE, page_id]) & c.REFERENCES

    def allocate(self, num_pages: int, *, after: int = -1) -> npt.NDArray[np.int32]:
        """`num_pages` free pages with one reference each, in a contiguous run where one is near.

        after: a page that the first should follow directly if it can.
        Raises: OutOfPages, changing nothing, if fewer are free.
        Cost: O(num_pages) and a bounded search for a run.
        """
        if num_pages < 0:
            raise ValueError(f"num_pages is {num_pages}, expected 0 or more")
        if num_pages > self.num_free:
            raise OutOfPages(
                f"{num_pages} pages asked for, {self.num_free} of {self.num_total} are free; release some or make "
                "the pool larger",
                requested=num_pages,
                available=self.num_free,
            )
        out = np.empty(num_pages, np.int32)
        c.allocate_pages(*self.layout, num_pages, after, out, self._parents)
        return out

    def retain(self, page_ids: npt.ArrayLike) -> None:
        """One more reference on each page. Raises: ValueError, changing nothing, if one is not allocated."""
        pages = as_page_ids(page_ids)
        bad = c.retain_pages(self.layout.header, self.layout.fields, pages)
        if bad < 0:
            raise ValueError(f"page {pages[-1 - bad]} is not allocated; only pages in use can be retained")

    def release(self, page_ids: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """One reference less on each page; returns the pages that are free now.

        Raises: ValueError, changing nothing, if one has no reference that a caller could hold.
        """
        pages = as_page_ids(page_ids)
        freed = np.empty(len(pages), np.int32)
        header, fields, _, free_in_block, heap_ids, heap_keys, _ = self.layout
        num_freed = c.release_pages(header, fields, free_in_block, heap_ids, heap_keys, pages, freed)
        if num_freed < 0:
            raise ValueError(
                f"page {pages[-1 - num_freed]} has no reference to release; each page is released as often as it was "
                "allocated or retained"
            )
        return freed[:num_freed]


def as_page_ids(page_ids: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """`page_ids` as a writable contiguous int32 array, copied where it is not one. Raises: TypeError, ValueError."""
    if type(page_ids) is np.ndarray and page_ids.dtype == np.int32 and page_ids.ndim == 1 and page_ids.flags.carray:
        return page_ids
    array = np.asarray(page_ids)
    if array.ndim != 1:
        raise ValueError(f"page_ids has {array.ndim} dimensions, expected 1")
    if array.size == 0:
        return np.empty(0, np.int32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"page_ids holds {array.dtype}, expected integers")
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise ValueError(f"page_ids holds {array.min()} to {array.max()}, expected ids of pages")
    return np.array(array, np.int32)
