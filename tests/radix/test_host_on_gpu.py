"""Pinned memory on a real GPU: pages go out and come back bit for bit beside running work.

TRITON_INTERPRET=0 pytest -m gpu tests/radix        # on a machine with a GPU; skips elsewhere
"""

import random

import numpy as np
import pytest
import torch

from infercore.kernels import page_packer
from infercore.radix import KVPool, PrefixCache
from infercore.radix.host import HostTier, PinnedMemory, host_memory

pytestmark = pytest.mark.gpu
SHAPES = [(8, 64, torch.bfloat16), (2, 3, torch.float32), (1, 5, torch.bfloat16)]


def make(num_pages: int, num_slots: int, page_size: int = 16) -> tuple[KVPool, PrefixCache, HostTier]:
    pool = KVPool(num_pages, page_size)
    for layer, (heads, dim, dtype) in enumerate(SHAPES):
        like = torch.zeros(1, heads, dim, dtype=dtype, device="cuda")
        pool.layer(layer, like, like)
    packer = page_packer([t for pair in pool.layers.values() for t in pair])
    cache = PrefixCache(num_pages, page_size, store=pool)
    memory = host_memory(
        pool,
        num_slots * packer.page_bytes,
        page_bytes=packer.page_bytes,
        make_packer=page_packer,
        device=torch.device("cuda"),
    )
    assert isinstance(memory, PinnedMemory)
    assert memory.num_slots == num_slots
    return pool, cache, HostTier(cache, memory, bulk_pages=8)


def tensors(pool: KVPool) -> list[torch.Tensor]:
    return [t for pair in pool.layers.values() for t in pair]


def content(tokens: np.ndarray) -> torch.Tensor:
    """One small number a row, which depends on the whole prefix; exact in bfloat16."""
    return torch.from_numpy((np.cumsum(tokens * 7 + 1) % 251).astype(np.float32)).cuda()


def write(pool: KVPool, slots: np.ndarray, values: torch.Tensor) -> None:
    at = torch.from_numpy(slots).cuda()
    for i, tensor in enumerate(tensors(pool)):
        rows = tensor.view(-1, *tensor.shape[2:])
        rows[at] = (values + i).to(tensor.dtype)[:, None, None].expand(-1, *rows.shape[1:])


def wrong_rows(pool: KVPool, slots: np.ndarray, values: torch.Tensor) -> torch.Tensor:
    """How many rows hold something else; on the device, so that nobody waits."""
    at = torch.from_numpy(slots).pin_memory().cuda(non_blocking=True)
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for i, tensor in enumerate(tensors(pool)):
        rows = tensor.view(-1, *tensor.shape[2:])[at]
        wrong += (rows != (values + i).to(tensor.dtype)[:, None, None]).sum()
    return wrong


@pytest.mark.parametrize(("num_slots", "block_bytes"), [(2000, 1 << 27), (2000, 1 << 17), (150, 1 << 16)])
def test_what_comes_back_is_right_whatever_the_device_does_meanwhile(num_slots, block_bytes, monkeypatch) -> None:
    """Prefixes of a few families come and go in a pool that holds a third of them; a busy device hides all copies."""
    monkeypatch.setattr("infercore.radix.host.pinned.BLOCK_BYTES", block_bytes)
    pool, cache, tier = make(num_pages=120, num_slots=num_slots)
    draw = random.Random(5)
    stems = [np.random.default_rng(i).integers(0, 1000, 400).astype(np.int32) for i in range(12)]
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    waiting: list = []
    for step in range(400):
        stem = draw.choice(stems)
        tokens = stem[: draw.randrange(100, 400)].copy()
        sequence = cache.open(tokens)
        arrival = tier.fetch(sequence, tokens)
        torch.cuda._sleep(draw.choice([0, 100_000, 2_000_000]))  # work that copies and their tickets must not overtake
        if arrival is not None and draw.random() < 0.15:
            arrival.cancel()
        elif arrival is not None and draw.random() < 0.3:
            waiting.append((arrival, sequence, tokens))
            if len(waiting) < 3:
                continue
        elif arrival is not None:
            arrival.finish()
        if waiting and (len(waiting) >= 3 or draw.random() < 0.5):
            late, other, their_tokens = waiting.pop(0)
            late.finish()
            wrong += wrong_rows(pool, other.slots(0, other.num_tokens), content(their_tokens)[: other.num_tokens])
            other.close()
        if any(sequence is other for _, other, _ in waiting):
            continue
        start = sequence.num_tokens
        wrong += wrong_rows(pool, sequence.slots(0, start), content(tokens)[:start])
        if len(tokens) > start and len(tokens) // 16 + 2 < cache.num_available_pages:
            write(pool, sequence.append(len(tokens) - start), content(tokens)[start:])
            sequence.commit(tokens[start:])
        sequence.close()
        if step % 50 == 0:
            assert int(wrong) == 0, step
    for arrival, sequence, _ in waiting:
        arrival.cancel()
        sequence.close()
    assert int(wrong) == 0
    stats = tier.stats
    assert stats.num_fetches > 50, stats
    assert stats.bytes_out > 100 * stats.slot_bytes, stats
    assert cache.counts().in_use == 0


def test_a_ticket_is_ready_when_the_copies_have_ended() -> None:
    _, cache, tier = make(num_pages=60, num_slots=100)
    tokens = np.arange(640, dtype=np.int32)
    sequence = cache.open(tokens)
    sequence.append(640)
    sequence.commit(tokens)
    sequence.close()
    assert cache.evict(40) == 40
    again = cache.open(tokens)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second: the pages may not be written before it has ended
    arrival = tier.fetch(again, tokens)
    assert arrival is not None
    assert not arrival.is_ready
    torch.cuda.synchronize()
    assert arrival.is_ready
    assert arrival.finish() == 640
    again.close()


def test_pinned_memory_that_cannot_be_had_is_a_warning(caplog) -> None:
    pool = KVPool(4, 2)
    nowhere = host_memory(pool, 1 << 50, page_bytes=1 << 20, make_packer=page_packer, device=torch.device("cuda"))
    assert nowhere is None
    assert "cannot be had" in caplog.text
    assert torch.zeros(3, device="cuda").sum() == 0  # the device is as usable as before
