"""The arrays that hold pages, their references and the prefix tree: what `_compiled.py` works on.

Memory: 32 bytes of fields per page, 12 of eviction heap, 4 per token, and one block counter per 64 pages; at
page_size 16 that is 6.8 bytes per token of the pool, whatever the shape of the tree. Pages of these arrays that were
never used are not resident.
"""

import os
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from infercore.radix import _compiled as c


class Layout(NamedTuple):
    """Arrays of one pool of pages; several objects may look at the same ones, under one lock.

    header: int64 counters and settings. fields: int32 `[rows, nodes]`. tokens: int32, the tokens of each cached page at
    its slots. free_in_block: free pages per block of 64. heap_ids, heap_keys: leaves that wait for eviction. ghost:
    hashes of evicted prefixes, for the policy that remembers them.
    """

    header: npt.NDArray[np.int64]
    fields: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]
    free_in_block: npt.NDArray[np.int32]
    heap_ids: npt.NDArray[np.int32]
    heap_keys: npt.NDArray[np.int64]
    ghost: npt.NDArray[np.int64]

    @property
    def size_bytes(self) -> int:
        return sum(array.nbytes for array in self)

    @property
    def num_nodes(self) -> int:
        return int(self.fields.shape[1])

    def references(self, page_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """References on each page, the tree's own included; 0 of free ones."""
        states: npt.NDArray[np.int32] = self.fields[c.STATE, page_ids]
        return states & np.int32(c.REFERENCES)

    def are_cached(self, page_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Which of the pages are in the tree."""
        flags: npt.NDArray[np.bool_] = (self.fields[c.STATE, page_ids] & c.CACHED) != 0
        return flags

    def settle(self) -> None:
        """Make PARENT, FIRST, CHILDREN and ROOT true for every page; inside runs they are implied. O(pool)."""
        c.settle(self.header, self.fields)


def make_layout(
    num_pages: int,
    page_size: int,
    *,
    policy: int = c.LRU,
    has_aux: bool = False,
    bonus: int = 0,
    num_ghosts: int = 0,
) -> Layout:
    """All pages free, an empty tree, and the root of the default namespace.

    bonus, num_ghosts: of the policies that know pages they have seen before; see `eviction.py`.
    """
    if num_pages < 2:
        raise ValueError(f"num_pages is {num_pages}, expected at least 2; page 0 is reserved")
    if page_size < 1:
        raise ValueError(f"page_size is {page_size}, expected at least 1")
    if num_pages >= c.REFERENCES:
        raise ValueError(f"num_pages is {num_pages}, expected fewer than 2**28 - 1")
    if num_pages * page_size >= 2**31:
        raise ValueError(
            f"{num_pages} pages of {page_size} tokens are {num_pages * page_size} slots, expected fewer than 2**31"
        )
    header = np.zeros(c.HEADER_SIZE, np.int64)
    header[c.NUM_PAGES] = num_pages
    header[c.PAGE_SIZE] = page_size
    header[c.NUM_FREE] = num_pages - 1
    header[c.CURSOR] = header[c.FREED] = 1
    header[c.NUM_BUCKETS] = num_pages
    header[c.SEED] = int.from_bytes(os.urandom(4), "little") >> 1
    header[c.POLICY] = policy
    header[c.HAS_AUX] = has_aux
    header[c.BONUS] = min(bonus, 2**30 - 1)  # with a stamp above 32 bits of a key
    header[c.GHOST_PAGES] = num_ghosts
    header[c.GHOST_SLOTS] = 2 * num_ghosts
    fields = np.zeros((c.NUM_FIELDS + has_aux, num_pages), np.int32)
    fields[c.PARENT] = c.ABSENT
    fields[c.PARENT, 0] = c.IS_ROOT
    fields[c.FIRST] = -1
    fields[c.BUCKET] = -1
    free_in_block = np.full(-(-num_pages // c.BLOCK), c.BLOCK, np.int32)
    free_in_block[-1] = num_pages - c.BLOCK * (len(free_in_block) - 1)
    free_in_block[0] -= 1
    return Layout(
        header,
        fields,
        np.zeros(num_pages * page_size, np.int32),
        free_in_block,
        np.zeros(num_pages, np.int32),
        np.zeros(num_pages, np.int64),
        np.full(num_pages + 3 * num_ghosts if policy == c.GHOST else 0, -1, np.int64),
    )


def with_more_namespaces(old: Layout, num_namespaces: int) -> Layout:
    """The same state with room for more namespace roots; node ids stay as they are."""
    num_pages = int(old.header[c.NUM_PAGES])
    fields = np.zeros((old.fields.shape[0], num_pages + num_namespaces), np.int32)
    fields[:, : old.num_nodes] = old.fields
    fields[c.PARENT, old.num_nodes :] = c.IS_ROOT
    fields[c.FIRST, old.num_nodes :] = -1
    fields[c.BUCKET, old.num_nodes :] = -1
    return old._replace(fields=fields)
