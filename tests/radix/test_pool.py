"""Laws of `KVPool`: layers of any shape, moves that overlap, and NaN only where nobody should look."""

import numpy as np
import pytest
import torch

from infercore.radix import KVPool, PageStore


def test_layers_take_their_shape_from_the_first_write() -> None:
    pool = KVPool(4, 2)
    k, v = pool.layer(3, torch.zeros(5, 2, 8, dtype=torch.bfloat16), torch.zeros(5, 2, 6, dtype=torch.bfloat16))
    assert k.shape == (4, 2, 2, 8)
    assert v.shape == (4, 2, 2, 6)
    assert k.dtype == torch.bfloat16
    assert pool.layer(3)[0] is k
    assert pool.layer(0, torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))[0].shape == (4, 2, 1, 4)
    assert pool.size_bytes == (4 * 2 * 2 * 14) * 2 + 4 * 2 * 8 * 4
    assert isinstance(pool, PageStore)


def test_shapes_that_do_not_fit_are_refused() -> None:
    pool = KVPool(4, 2)
    with pytest.raises(KeyError, match="layer 0"):
        pool.layer(0)
    pool.layer(0, torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="one pool serves one model"):
        pool.layer(0, torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))


def test_moves_read_everything_before_they_write() -> None:
    pool = KVPool(3, 4)
    k, v = pool.layer(0, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    k.view(-1).copy_(torch.arange(12))
    v.view(-1).copy_(-torch.arange(12))
    pool.move_slots(np.asarray([5, 6, 7, 4]), np.asarray([4, 5, 6, 11]))
    assert k.view(-1).tolist() == [0, 1, 2, 3, 5, 6, 7, 7, 8, 9, 10, 4]
    assert torch.equal(k, -v)
    pool.move_slots(np.empty(0, np.int64), np.empty(0, np.int64))


def test_gathered_moves_are_made_in_one_go_or_before_a_source_is_poisoned() -> None:
    pool = KVPool(4, 4)
    k, _ = pool.layer(0, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    k.view(-1).copy_(torch.arange(16))
    pool.gather_moves()
    pool.move_slots(np.asarray([5, 6]), np.asarray([4, 5]))
    pool.move_slots(np.asarray([14]), np.asarray([8]))
    assert k.view(-1).tolist() == list(range(16))
    pool.poison_pages(np.asarray([3], np.int32))
    assert k.view(-1)[:12].tolist() == [0, 1, 2, 3, 5, 6, 6, 7, 14, 9, 10, 11]
    pool.move_slots(np.asarray([6]), np.asarray([7]))
    assert k.view(-1)[7] == 7
    pool.move_gathered()
    assert k.view(-1)[7] == 6
    pool.move_slots(np.asarray([0]), np.asarray([1]))
    assert k.view(-1)[1] == 0


def test_a_mover_of_all_layers_is_asked_first_and_made_anew_when_a_layer_came() -> None:
    made, moved = [], []

    def make(tensors):
        made.append(len(tensors))

        def move(src, dst):
            moved.append((src.tolist(), dst.tolist()))
            return len(src) == 1

        return move

    pool = KVPool(3, 4, make_mover=make)
    k, _ = pool.layer(0, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    k.view(-1).copy_(torch.arange(12))
    pool.move_slots(np.asarray([5]), np.asarray([4]))
    assert k.view(-1)[4] == 4  # the mover said that it did it
    pool.move_slots(np.asarray([5, 6]), np.asarray([4, 5]))
    assert k.view(-1)[4:6].tolist() == [5, 6]
    pool.layer(1, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    pool.move_slots(np.asarray([5]), np.asarray([4]))
    assert made == [2, 4]
    assert moved == [([5], [4]), ([5, 6], [4, 5]), ([5], [4])]


def test_pages_are_zeroed_only_where_poison_could_be() -> None:
    pages = np.asarray([1], np.int32)
    pool = KVPool(3, 4)
    k, _ = pool.layer(0, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    k.fill_(3)
    pool.zero_pages(pages)
    assert (k == 3).all()
    pool.poison_pages(np.asarray([1, 2], np.int32))
    pool.zero_pages(pages)
    assert (k[1] == 0).all()
    assert k[2].isnan().all()
    assert (k[0] == 3).all()


def test_zeroing_follows_the_argument() -> None:
    for zero_on_alloc in (True, False):
        pool = KVPool(3, 4, zero_on_alloc=zero_on_alloc)
        k, _ = pool.layer(0, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
        pool.poison_pages(np.asarray([1], np.int32))
        pool.zero_pages(np.asarray([1], np.int32))
        assert bool((k[1] == 0).all()) is zero_on_alloc
