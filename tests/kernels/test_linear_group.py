"""`linear_group` in Triton's interpreter against float64; `test_on_gpu.py` has the same in bfloat16 on a GPU."""

import pytest
import torch

from infercore.kernels import linear_group
from infercore.kernels.linear_group import MAX_ROWS


@pytest.mark.parametrize("num_rows", [1, 3, 16, 17, 33, 64])
@pytest.mark.parametrize("outputs", [(70,), (16, 33), (64, 128, 65)])
@pytest.mark.parametrize("inputs", [192, 256])
def test_products_equal_float64(num_rows, outputs, inputs):
    generator = torch.Generator().manual_seed(num_rows)
    x = torch.randn(num_rows, inputs, generator=generator).half()
    weights = [torch.randn(n, inputs, generator=generator).half() for n in outputs]
    for y, w in zip(linear_group(x, weights, impl="triton"), weights, strict=True):
        truth = x.double() @ w.double().T
        torch.testing.assert_close(y.double(), truth, atol=2e-3 * float(truth.abs().max()), rtol=0)


def test_on_a_cpu_it_is_the_ordinary_product():
    x, w = torch.randn(3, 64), torch.randn(5, 64)
    (y,) = linear_group(x, [w])
    assert torch.equal(y, torch.nn.functional.linear(x, w))


@pytest.mark.parametrize(
    ("x", "weights", "error"),
    [
        (torch.zeros(2, 64), [], "0 weights, expected 1 to 3"),
        (torch.zeros(2, 64), [torch.zeros(3, 64).half()], "must be alike"),
    ],
)
def test_what_does_not_fit_is_refused(x, weights, error):
    with pytest.raises(ValueError, match=error):
        linear_group(x, weights)


@pytest.mark.parametrize(
    ("x", "w"),
    [
        (torch.zeros(2, 64), torch.zeros(3, 64)),
        (torch.zeros(MAX_ROWS + 1, 64).half(), torch.zeros(3, 64).half()),
        (torch.zeros(2, 72).half(), torch.zeros(3, 72).half()),
        (torch.zeros(2, 64).half(), torch.zeros(64, 3).half().T),
    ],
)
def test_the_kernel_says_what_it_takes(x, w):
    with pytest.raises(ValueError, match='use impl="auto"'):
        linear_group(x, [w], impl="triton")
    assert linear_group(x, [w])[0].shape == (len(x), 3)
