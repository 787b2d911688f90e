"""`write_kv`, `move_kv` and `apply_token_bitmask_`: bit-for-bit laws and the doors' errors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infercore.kernels import apply_token_bitmask, apply_token_bitmask_, move_kv, slot_mover, write_kv

IMPLS = ["reference", "triton"]  # triton: under its interpreter, see tests/conftest.py


def pool(num_pages=7, page_size=4, heads=2, dim=3, v_dim=5, dtype=torch.float32):
    shape = (num_pages, page_size, heads)
    return torch.randn(*shape, dim).to(dtype), torch.randn(*shape, v_dim).to(dtype)


@pytest.mark.parametrize("impl", IMPLS)
@given(slots=st.lists(st.integers(0, 27), unique=True, max_size=28), skipped=st.sets(st.integers(0, 27)))
def test_write_kv_changes_exactly_the_named_slots(impl, slots, skipped):
    k_pages, v_pages = pool()
    before = k_pages.clone(), v_pages.clone()
    mapping = torch.tensor([-1 if i in skipped else s for i, s in enumerate(slots)], dtype=torch.int64)
    k, v = torch.randn(len(slots), 2, 3), torch.randn(len(slots), 2, 5)
    write_kv(k, v, k_pages, v_pages, mapping, impl=impl)
    for rows, pages, old in ((k, k_pages, before[0]), (v, v_pages, before[1])):
        expected = old.view(28, 2, -1).clone()
        for i, slot in enumerate(mapping.tolist()):
            if slot >= 0:
                expected[slot] = rows[i]
        assert torch.equal(pages.view(28, 2, -1), expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_write_kv_copies_bits_of_strided_rows(impl, dtype):
    k_pages, v_pages = pool(dtype=dtype)
    k = torch.randn(2, 6, 3).to(dtype).transpose(0, 1)  # as attention layers have it
    v = torch.randn(6, 2, 9).to(dtype)[..., :5]
    v[0, 0, 0] = torch.nan
    write_kv(k, v, k_pages, v_pages, torch.tensor([27, 0, 5, 6, 7, 8]), impl=impl)
    assert torch.equal(k_pages.view(28, 2, 3)[[27, 0, 5, 6, 7, 8]], k)
    assert torch.equal(v_pages.view(28, 2, 5)[[0, 5, 6, 7, 8]], v[1:])
    assert torch.isnan(v_pages.view(28, 2, 5)[27, 0, 0])


SHAPES = [(2, 5, torch.float32), (1, 6, torch.bfloat16), (3, 300, torch.float32), (2, 2, torch.int8)]


@pytest.mark.parametrize("impl", IMPLS)
@given(data=st.data(), n=st.integers(0, 20))
def test_move_kv_reads_everything_before_it_writes(impl, data, n):
    k_pages, v_pages = pool()
    src = data.draw(st.lists(st.integers(0, 27), min_size=n, max_size=n))
    dst = data.draw(st.lists(st.integers(0, 27), min_size=n, max_size=n, unique=True))
    expected = [p.view(28, 2, -1).clone() for p in (k_pages, v_pages)]
    for want, old in zip(expected, (k_pages.clone(), v_pages.clone()), strict=True):
        for a, b in zip(src, dst, strict=True):
            want[b] = old.view(28, 2, -1)[a]
    move_kv(k_pages, v_pages, torch.tensor(src, dtype=torch.int64), torch.tensor(dst, dtype=torch.int64), impl=impl)
    assert torch.equal(k_pages.view(28, 2, -1), expected[0])
    assert torch.equal(v_pages.view(28, 2, -1), expected[1])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 100, 1030])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_is_banned_exactly_where_its_bit_is_zero(impl, vocab, dtype):
    logits = torch.randn(3, vocab + 2).to(dtype)[:, :vocab]  # rows with a stride of their own
    bitmask = torch.randint(-(2**31), 2**31, (3, -(-vocab // 32)), dtype=torch.int32)
    before = logits.clone()
    assert torch.equal(apply_token_bitmask(logits, bitmask, impl=impl), apply_token_bitmask(logits, bitmask))
    assert torch.equal(logits, before)
    assert apply_token_bitmask_(logits, bitmask, impl=impl) is logits
    for i in range(3):
        words = bitmask[i].tolist()
        for t in range(vocab):
            allowed = words[t // 32] >> (t % 32) & 1
            assert logits[i, t] == (before[i, t] if allowed else -torch.inf)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_rows(impl):
    k_pages, v_pages = pool()
    before = k_pages.clone()
    none = torch.zeros(0, dtype=torch.int64)
    write_kv(torch.zeros(0, 2, 3), torch.zeros(0, 2, 5), k_pages, v_pages, none, impl=impl)
    move_kv(k_pages, v_pages, none, none, impl=impl)
    assert torch.equal(k_pages, before)
    assert apply_token_bitmask_(torch.zeros(0, 40), torch.zeros(0, 2, dtype=torch.int32), impl=impl).shape == (0, 40)


def test_what_does_not_fit_is_refused_and_nothing_is_written():
    k_pages, v_pages = pool()
    before = k_pages.clone()
    k, v, slots = torch.randn(2, 2, 3), torch.randn(2, 2, 5), torch.tensor([1, 2])
    with pytest.raises(ValueError, match="the pool holds"):
        write_kv(k.half(), v.half(), k_pages, v_pages, slots)
    with pytest.raises(ValueError, match="contiguous"):
        write_kv(k, v, k_pages[::2], v_pages[::2], slots)
    with pytest.raises(ValueError, match="impl is 'cpu', expected \"auto\""):
        write_kv(k, v, k_pages, v_pages, slots, impl="cpu")
    with pytest.raises(ValueError, match="contiguous"):
        move_kv(k_pages[::2], v_pages[::2], slots, slots)
    with pytest.raises(ValueError, match="needs 3; allocate it with"):
        apply_token_bitmask_(torch.zeros(2, 65), torch.zeros(2, 2, dtype=torch.int32))
    assert torch.equal(k_pages, before)


@given(data=st.data(), n=st.integers(1, 12))
def test_slots_of_all_layers_move_at_once_or_not_at_all(data, n):
    from infercore.kernels.move_kv.triton_layers import SlotMover, fits

    tensors = [torch.randn(4, 7, heads, dim).mul(9).to(dtype) for heads, dim, dtype in SHAPES]
    assert fits(tensors)
    before = [t.view(28, -1).clone() for t in tensors]
    src = data.draw(st.lists(st.integers(0, 27), min_size=n, max_size=n))
    dst = data.draw(st.lists(st.integers(0, 27), min_size=n, max_size=n, unique=True))
    later = any(dst[i] == src[j] for i in range(n) for j in range(i + 1, n))
    assert SlotMover(tensors)(np.array(src), np.array(dst)) is not later
    for tensor, old in zip(tensors, before, strict=True):
        expected = old.clone()
        if not later:
            expected[dst] = old[src]
        assert torch.equal(tensor.view(28, -1), expected)


def test_who_moves_all_layers_wants_words_and_a_gpu():
    from infercore.kernels.move_kv.triton_layers import fits

    assert slot_mover([torch.zeros(2, 4, 1, 2)]) is None
    assert not fits([torch.zeros(2, 4, 1, 3).half()])
