"""`linear`: compiled loops against float64, on one thread and on several, and the door's rules."""

import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F

from infercore._jit import is_compiled
from infercore.kernels import linear
from infercore.kernels.linear import MAX_ROWS, awake, is_fast

SHAPES = [(1, 1), (3, 5), (4, 16), (64, 33), (7, 576), (300, 64), (513, 192)]
"""[outputs, inputs]: below, at and past a tile of 4, a cache line, and the size that threads share."""


def problem(num_rows, outputs, inputs, with_bias):
    generator = torch.Generator().manual_seed(num_rows * outputs + inputs)
    x = torch.randn(1, num_rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    return x, weight, torch.randn(outputs, generator=generator) if with_bias else None


def assert_close_to_float64(found, x, weight, bias):
    exact = linear(x.double(), weight.double(), None if bias is None else bias.double(), impl="reference")
    theirs = (F.linear(x, weight, bias) - exact).abs().max()
    assert (found - exact).abs().max() <= 2 * theirs + 1e-6 * exact.abs().max()


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_loops_give_what_float64_gives(with_bias, num_threads):
    with awake(num_threads):
        for outputs, inputs in SHAPES:
            for num_rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 17, MAX_ROWS):
                x, weight, bias = problem(num_rows, outputs, inputs, with_bias)
                found = linear(x, weight, bias, impl="cpu")
                assert found.shape == (1, num_rows, outputs)
                assert_close_to_float64(found, x, weight, bias)


@pytest.mark.skipif(not is_compiled(), reason="as plain Python one thread at a time is right")
def test_products_of_several_threads_do_not_mix():
    """Twelve thousand products by three callers and two helpers; each is compared with its own answer, bit for bit."""
    problems = [problem(rows, 260, 130, True) for rows in (1, 2, 5)]
    answers = [linear(*p, impl="cpu") for p in problems]
    wrong = []

    def multiply(p, answer):
        wrong.extend(p[0].shape for _ in range(4000) if not torch.equal(linear(*p, impl="cpu"), answer))

    with awake(3):
        callers = [threading.Thread(target=multiply, args=pair) for pair in zip(problems, answers, strict=True)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert not wrong


class Quantised(torch.Tensor):
    """Says that it is float32; what lies in its memory is another matter."""


def test_what_the_loops_cannot_do_goes_to_torch():
    x, weight, bias = problem(2, 8, 4, True)
    assert is_fast(x, weight, bias) == is_compiled()
    assert not is_fast(x.half(), weight.half(), bias.half())
    assert not is_fast(torch.zeros(MAX_ROWS + 1, 4), weight)
    assert not is_fast(torch.zeros(0, 4), weight)
    assert not is_fast(x, torch.zeros(4, 8).T)
    assert not is_fast(x, weight.clone().requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_fast(x, weight)
        assert linear(x, weight, bias).dtype is torch.bfloat16
    assert not is_fast(x, weight.as_subclass(Quantised))
    many = torch.randn(MAX_ROWS + 1, 4)
    assert torch.equal(linear(many, weight, bias), F.linear(many, weight, bias))
    assert linear(torch.zeros(0, 4), weight, bias).shape == (0, 8)
    trained = weight.clone().requires_grad_()
    linear(x, trained).sum().backward()
    assert trained.grad is not None


def test_rows_may_have_any_strides():
    x = torch.randn(6, 5, 2).permute(2, 1, 0)[:, ::2]
    weight = torch.randn(12, 6)
    assert_close_to_float64(linear(x, weight, impl="cpu"), x, weight, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 5).double(), torch.zeros(4, 5).double()), "multiplies float32"),
        ((torch.zeros(2, 5), torch.zeros(5, 4).T), "contiguous"),
        ((torch.zeros(2, 5), torch.zeros(4, 5).requires_grad_()), "no gradients"),
    ],
)
def test_what_the_loops_cannot_do_is_refused_where_they_are_asked_for_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear(*arguments, impl="cpu")


def test_the_same_source_runs_without_numba():
    program = (
        "import torch; from infercore.kernels import linear; from infercore.kernels.linear import awake\n"
        "x, w, b = torch.randn(3, 6), torch.randn(9, 6), torch.randn(9)\n"
        "with awake(1): y = linear(x, w, b, impl='cpu')\n"
        "assert torch.allclose(y, linear(x, w, b, impl='reference'), atol=1e-5)\n"
        "x, w = torch.randn(1, 200), torch.randn(400, 200)\n"
        "assert torch.allclose(linear(x, w, impl='cpu'), x @ w.T, atol=1e-3)\n"
        "for arguments in ((x, w[:, :5]), (x, w, b)):\n"
        "    try:\n"
        "        linear(*arguments)\n"
        "        raise SystemExit('a wrong shape was taken')\n"
        "    except ValueError as error:\n"
        "        assert 'expected [..., inputs]' in str(error)\n"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
