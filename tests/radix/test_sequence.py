"""Laws of a sequence: committed tokens are dense, shared pages are copied before writing, nothing leaks."""

import numpy as np
import pytest
import torch

from infercore.errors import OutOfPages
from infercore.radix import KVPool, PageCounts, PrefixCache, Sequence, block_table, slot_mapping


def make(num_pages: int = 17, page_size: int = 4) -> tuple[PrefixCache, KVPool]:
    pool = KVPool(num_pages, page_size)
    pool.layer(0, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    return PrefixCache(num_pages, page_size, store=pool, poison=True), pool


def write(pool: KVPool, slots: np.ndarray, values: list[int]) -> None:
    """K of a row is its token, V its negative."""
    k, v = pool.layer(0)
    k.view(-1)[torch.from_numpy(slots)] = torch.tensor(values, dtype=torch.float32)
    v.view(-1)[torch.from_numpy(slots)] = -torch.tensor(values, dtype=torch.float32)


def read(pool: KVPool, sequence: Sequence) -> list[int]:
    k, v = pool.layer(0)
    rows = torch.from_numpy(sequence.slots(0, sequence.num_tokens))
    assert torch.equal(k.view(-1)[rows], -v.view(-1)[rows])
    return [int(value) for value in k.view(-1)[rows]]


def extend(pool: KVPool, sequence: Sequence, values: list[int]) -> None:
    write(pool, sequence.append(len(values)), values)
    sequence.commit(values)


def test_what_is_closed_is_found_by_the_next_request() -> None:
    cache, pool = make()
    first = cache.open([1, 2, 3])
    extend(pool, first, list(range(10)))
    first.close()
    second = cache.open(range(9))
    assert second.num_tokens == 8
    assert second.token_ids.tolist() == list(range(8))
    extend(pool, second, [50, 51, 52])
    assert read(pool, second) == [*range(8), 50, 51, 52]
    second.close(insert=False)
    assert cache.counts() == PageCounts(total=16, free=14, cached=2, in_use=0)


def test_append_reserves_and_commit_gives_the_rest_back() -> None:
    cache, _pool = make()
    sequence = cache.open()
    slots = sequence.append(3)
    assert (sequence.append(6)[:1] - slots[0]).tolist() == [3]  # a second append extends the first
    assert sequence.num_pages == 3
    sequence.commit([7])
    assert (sequence.num_tokens, sequence.num_reserved, sequence.num_pages) == (1, 0, 1)
    sequence.commit([])
    assert sequence.token_ids.tolist() == [7]
    sequence.append(20)
    sequence.close()
    assert cache.counts().free == 16


def test_accepted_rows_are_moved_down() -> None:
    cache, pool = make()
    sequence = cache.open()
    extend(pool, sequence, [1, 2, 3])
    write(pool, sequence.append(7), [10, 11, 12, 13, 14, 15, 16])
    sequence.commit([10, 12, 13, 16], rows=[0, 2, 3, 6])
    assert read(pool, sequence) == [1, 2, 3, 10, 12, 13, 16]
    assert sequence.token_ids.tolist() == [1, 2, 3, 10, 12, 13, 16]
    assert cache.counts().in_use == 2


@pytest.mark.parametrize("rows", [[0, 0], [1, 0], [0, 5], [-1, 0], [0]])
def test_rows_that_do_not_fit_are_refused(rows: list[int]) -> None:
    cache, _pool = make()
    sequence = cache.open()
    sequence.append(5)
    with pytest.raises(ValueError, match="rows"):
        sequence.commit([1, 2], rows=rows)
    with pytest.raises(ValueError, match="append first"):
        sequence.commit(range(6))
    assert (sequence.num_tokens, sequence.num_reserved) == (0, 5)
    sequence.close()


def test_fork_copies_only_the_last_partial_page_and_only_when_written() -> None:
    cache, pool = make()
    first = cache.open()
    extend(pool, first, list(range(6)))
    second = first.fork()
    assert cache.counts().in_use == 2
    extend(pool, second, [20])
    assert cache.counts().in_use == 3
    extend(pool, first, [30, 31, 32])
    assert read(pool, first) == [*range(6), 30, 31, 32]
    assert read(pool, second) == [*range(6), 20]
    assert first.page_ids[0] == second.page_ids[0]
    second.close(insert=False)
    first.close(insert=False)
    assert cache.counts().free == 16


def test_rollback_into_a_published_page_does_not_write_into_the_tree() -> None:
    cache, pool = make()
    first = cache.open()
    extend(pool, first, list(range(8)))
    first.insert()
    first.rollback(2)
    extend(pool, first, [90, 91])
    assert read(pool, first) == [*range(6), 90, 91]
    first.close()
    both = [cache.open(ids) for ids in (list(range(8)), [*range(6), 90, 91])]
    assert [read(pool, s) for s in both] == [list(range(8)), [*range(6), 90, 91]]
    assert cache.counts().cached == 3


def test_failed_append_changes_nothing() -> None:
    cache, pool = make(num_pages=5)
    first = cache.open()
    extend(pool, first, list(range(6)))
    second = first.fork()
    before = (cache.counts(), first.page_ids.tolist(), first.num_tokens)
    with pytest.raises(OutOfPages):
        first.append(13)
    assert (cache.counts(), first.page_ids.tolist(), first.num_tokens) == before
    assert first.num_reserved == 0
    extend(pool, first, list(range(10, 15)))  # a copy of the shared page, and one more
    assert read(pool, first) == [*range(6), *range(10, 15)]
    extend(pool, second, [20, 21])  # its last page is its own by now
    with pytest.raises(OutOfPages):
        second.append(1)
    assert read(pool, second) == [*range(6), 20, 21]


def test_append_evicts_what_nobody_holds() -> None:
    cache, pool = make(num_pages=5)
    first = cache.open()
    extend(pool, first, list(range(12)))
    first.close()
    second = cache.open([0, 1, 2, 3, 4])
    extend(pool, second, list(range(100, 112)))
    assert read(pool, second) == [0, 1, 2, 3, *range(100, 112)]
    assert cache.counts() == PageCounts(total=4, free=0, cached=1, in_use=3)


def test_twin_requests_end_up_on_the_same_pages() -> None:
    cache, pool = make()
    twins = [cache.open(), cache.open()]
    for twin in twins:
        extend(pool, twin, list(range(9)))
    assert [twin.insert() for twin in twins] == [8, 0]
    assert twins[0].page_ids[:2].tolist() == twins[1].page_ids[:2].tolist()
    assert cache.counts() == PageCounts(total=16, free=12, cached=2, in_use=2)
    assert read(pool, twins[1]) == list(range(9))


def test_a_sequence_from_before_a_clear_publishes_nothing() -> None:
    cache, pool = make()
    opened = cache.open()
    extend(pool, opened, list(range(4)))
    opened.insert()
    fresh = cache.open()
    extend(pool, fresh, list(range(40, 44)))
    cache.clear()
    extend(pool, opened, list(range(4, 8)))
    assert opened.insert() == fresh.insert() == 0
    assert read(pool, opened) == list(range(8))
    opened.close()
    fresh.close()
    assert cache.counts().free == 16


def test_close_twice_is_one_close_and_closed_sequences_refuse_work() -> None:
    cache, pool = make()
    sequence = cache.open()
    extend(pool, sequence, list(range(5)))
    sequence.close()
    sequence.close()
    for call in (lambda: sequence.append(1), lambda: sequence.commit([]), sequence.fork, sequence.insert):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert cache.counts().free == 15


def test_fork_with_reserved_rows_is_refused() -> None:
    cache, _ = make()
    sequence = cache.open()
    sequence.append(1)
    with pytest.raises(ValueError, match="reserved"):
        sequence.fork()


def test_block_table_and_slot_mapping_follow_the_pages() -> None:
    cache, pool = make()
    first, second = cache.open(), cache.open()
    extend(pool, first, list(range(6)))
    extend(pool, second, list(range(9)))
    table = block_table([first, second])
    assert table.tolist() == [[*first.page_ids, -1], [*second.page_ids]]
    assert block_table([first], max_pages=4).shape == (1, 4)
    with pytest.raises(ValueError, match="wider"):
        block_table([second], max_pages=2)
    slots = slot_mapping([first, second], [4, 0], [6, 9])
    assert slots.tolist() == [*first.slots(4, 6), *second.slots(0, 9)]
    assert slots[0] == first.page_ids[1] * 4
    with pytest.raises(ValueError, match="not within"):
        first.slots(0, 99)


def test_what_was_published_stays_its_own_when_others_publish_the_same_tokens_after_an_invalidation() -> None:
    """A fork brings a shared page back below another's pages; the first sequence goes on from that page."""
    cache = PrefixCache(16, 2)
    tokens = [1, 1, 2, 2, 3, 3, 4, 4]
    first = cache.open()
    first.append(6)
    first.commit(tokens[:6])
    fork = first.fork()
    first.insert()
    own = first.page_ids.tolist()
    cache.invalidate(tokens[:6])
    other = cache.open()
    other.append(4)
    other.commit(tokens[:4])
    other.insert()
    fork.insert()
    cached = fork.page_ids.tolist()
    assert cached == [*other.page_ids.tolist(), own[2]]
    first.append(2)
    first.commit(tokens[6:])
    assert first.insert() == 2
    assert first.page_ids.tolist()[:3] == own
    last = first.page_ids.tolist()[3]
    for sequence in (first, other, fork):
        sequence.close()
    assert cache.match(tokens).page_ids.tolist() == [*cached, last]
    assert cache.evict(16) == 4
    assert cache.counts().free == 15
