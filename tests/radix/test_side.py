"""Laws of `SideRows`: a row goes where its slot goes, and ends with its page."""

import gc

import numpy as np
import pytest
import torch

from infercore.radix import KVPool, PrefixCache, SideRows


def made(num_pages=6, page_size=4):
    pool = KVPool(num_pages, page_size)
    pool.layer(0, torch.zeros(1, 2, 8), torch.zeros(1, 2, 8))
    return pool, SideRows(pool, [(torch.zeros(0, 1, 3), torch.zeros(0, 1, 5))] * 2)


def rows(*values):
    return [
        tuple(torch.tensor(values)[:, None, None].expand(-1, 1, d) + layer for d in (3, 5)) for layer in (0.0, 10.0)
    ]


def values(side, *slots):
    (k, v), (k_above, _) = side.read(np.array(slots))
    assert torch.equal(k_above, k + 10)
    assert torch.equal(k[:, 0, 0], v[:, 0, 4])
    return k[:, 0, 0].tolist()


def test_rows_follow_their_slots():
    pool, side = made()
    side.write(np.array([4, 5, 9]), rows(1.0, 2.0, 3.0))
    pool.move_slots(np.array([4, 5, 6]), np.array([5, 8, 9]))  # overlapping; slot 6 holds none
    assert values(side, 4, 5, 8) == [1.0, 1.0, 2.0]
    assert np.flatnonzero(side.is_valid).tolist() == [4, 5, 8]
    with pytest.raises(ValueError, match="1 of 2 slots hold no row"):
        side.read(np.array([5, 9]))
    pool.gather_moves()
    pool.move_slots(np.array([8]), np.array([20]))
    assert not side.is_valid[20]
    pool.move_gathered()
    assert values(side, 20) == [2.0]


def test_rows_end_with_their_page():
    pool, side = made()
    side.write(np.array([4, 8]), rows(1.0, 2.0))
    pool.zero_pages(np.array([1], np.int32))
    assert np.flatnonzero(side.is_valid).tolist() == [8]
    pool.poison_pages(np.array([2], np.int32))
    assert not side.is_valid.any()
    assert all(tensor[2].isnan().all() and not tensor[1].isnan().any() for pair in side.layers for tensor in pair)


def test_a_page_that_is_copied_before_it_is_written_takes_its_rows_along():
    pool, side = made()
    cache = PrefixCache(6, 4, store=pool)
    first = cache.open()
    first.append(6)
    first.commit([1, 2, 3, 4, 5, 6])
    side.write(first.slots(0, 6), rows(*map(float, range(6))))
    second = first.fork()
    second.append(1)
    assert second.page_ids[1] != first.page_ids[1]
    assert values(side, *second.slots(0, 6)) == values(side, *first.slots(0, 6)) == list(range(6))
    assert not side.is_valid[second.slots(6, 7)].any()
    second.close()
    third = cache.open()
    third.append(12)
    assert not side.is_valid[third.slots(0, 12)].any()


def test_a_pool_forgets_rows_that_nobody_keeps():
    pool, side = made()
    del side
    gc.collect()
    assert not pool._sides
    pool.move_slots(np.array([4]), np.array([5]))
