"""Laws of `PageAllocator`: runs where there are runs, references that balance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercore.errors import OutOfPages
from infercore.radix import PageAllocator


def test_bulk_allocation_is_contiguous_where_it_can_be() -> None:
    allocator = PageAllocator(300)
    first, second = allocator.allocate(100), allocator.allocate(100)
    assert (np.diff(first) == 1).all()
    assert (np.diff(second) == 1).all()
    allocator.release(first[10:90])
    assert allocator.allocate(70).tolist() == [*range(201, 271)]
    assert allocator.allocate(75).tolist() == [*range(11, 86)]


def test_the_page_behind_a_given_one_comes_first() -> None:
    allocator = PageAllocator(64)
    mine = allocator.allocate(3)
    allocator.allocate(3, after=20)
    assert allocator.allocate(2, after=int(mine[-1])).tolist() == [4, 5]
    assert allocator.allocate(1, after=21).tolist() != [22]


def test_pages_are_free_after_their_last_reference() -> None:
    allocator = PageAllocator(8)
    pages = allocator.allocate(3)
    allocator.retain(pages[:2])
    assert allocator.release(pages).tolist() == [pages[2]]
    assert allocator.num_references(int(pages[0])) == 1
    assert allocator.release(pages[:2]).tolist() == pages[:2].tolist()
    assert allocator.num_free == allocator.num_total == 7


def test_misuse_is_refused_and_changes_nothing() -> None:
    allocator = PageAllocator(8)
    pages = allocator.allocate(3)
    for bad in ([0], [99], [-1], [7], [*pages, pages[0]]):
        with pytest.raises(ValueError, match=r"page"):
            allocator.release(np.asarray(bad))
    with pytest.raises(ValueError, match="not allocated"):
        allocator.retain(np.asarray([pages[0], 7]))
    with pytest.raises(OutOfPages, match="4 of 7 are free"):
        allocator.allocate(5)
    assert [allocator.num_references(int(page)) for page in pages] == [1, 1, 1]
    assert allocator.num_free == 4


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 200)), max_size=60))
def test_no_page_is_given_out_twice(steps: list[tuple[bool, int, int]]) -> None:
    allocator = PageAllocator(200)
    held: list[np.ndarray] = []
    for take, count, which in steps:
        if take and count <= allocator.num_free:
            held.append(allocator.allocate(count, after=which))
        elif held:
            allocator.release(held.pop(which % len(held)))
        out = np.concatenate([np.empty(0, np.int32), *held])
        assert len(np.unique(out)) == len(out) == allocator.num_total - allocator.num_free
        assert ((out > 0) & (out < 200)).all()
