"""`page_packer`: pages of all layers, of any dtypes, go into blocks and come back bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infercore.kernels import page_packer

IMPLS = ["reference", "triton"]  # triton: under its interpreter, see tests/conftest.py
LAYERS = {
    "words of 8 bytes": [(2, 8, torch.float32), (1, 6, torch.bfloat16), (3, 600, torch.float32)],
    "words of 2 bytes": [(1, 1, torch.float32), (1, 3, torch.bfloat16)],
    "single bytes": [(1, 3, torch.int8), (2, 5, torch.float16), (1, 2049, torch.int8)],
}


def layers(kind, num_pages=9, page_size=3):
    """Random bits, NaN among them."""
    return [
        torch.randint(-128, 128, (num_pages, page_size, heads, dim * dtype.itemsize), dtype=torch.int8).view(dtype)
        for heads, dim, dtype in LAYERS[kind]
    ]


def bits(tensors):
    return [tensor.view(torch.int8).clone() for tensor in tensors]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", LAYERS)
@settings(max_examples=12)
@given(pages=st.lists(st.integers(0, 8), unique=True, max_size=9), data=st.data())
def test_pages_come_back_elsewhere_bit_for_bit(impl, kind, pages, data):
    tensors = layers(kind)
    before = bits(tensors)
    packer = page_packer(tensors, impl=impl)
    assert packer.page_bytes == sum(t[0].numel() * t.element_size() for t in tensors)
    blocks = torch.full((len(pages), packer.page_bytes), 0x55, dtype=torch.uint8)
    packer.pack(torch.tensor(pages, dtype=torch.int64), blocks)
    packed = b"".join(b"".join(t[p].numpy().tobytes() for t in before) for p in pages)
    assert blocks.numpy().tobytes() == packed
    others = data.draw(st.permutations(range(9)))[: len(pages)]
    packer.unpack(blocks, torch.tensor(others, dtype=torch.int64))
    for now, old in zip(bits(tensors), before, strict=True):
        expected = old.clone()
        expected[others] = old[pages]
        assert torch.equal(now, expected)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="no tensors"):
        page_packer([])
    with pytest.raises(ValueError, match="contiguous"):
        page_packer([torch.zeros(4, 2, 1, 4)[::2]])
    with pytest.raises(ValueError, match="one packer per device"):
        page_packer([torch.zeros(4, 2, 1, 4), torch.zeros(4, 2, 1, 4, device="meta")])
