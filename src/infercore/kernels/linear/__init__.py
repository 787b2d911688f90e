"""`linear`: a few rows times a weight matrix on the CPU, at the speed of memory.

Use it for decoding and for verifying drafts in float32, where a forward is a matrix product of 1 to 64 rows: general
libraries have a path for one row and one for many, and are slow in between (docs/log/hf.md). On other devices,
dtypes and sizes it is the ordinary product.

    with awake(torch.get_num_threads()):             # helper threads serve inside, for as many products as you like
        y = linear(x, weight, bias)                  # [..., inputs] x [outputs, inputs] -> [..., outputs]

Files in reading order: `reference.py` (what it means), `_compiled.py` (the loops, and how threads share one product),
`crew.py` (the threads).
"""

from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from infercore.kernels.linear.reference import linear as _reference

if TYPE_CHECKING:
    from infercore.kernels.linear.crew import Crew

__all__ = ["MAX_ROWS", "awake", "is_fast", "linear"]

MAX_ROWS = 64
"""Rows up to which the loops win over torch with MKL on two cores of an AMD EPYC (docs/log/hf.md)."""
_PLAIN = (Tensor, torch.nn.Parameter)  # others (quantised, distributed, fake) only look as if they held their numbers
_CHUNKS = 8  # per product: few enough to cost nothing, enough for one thread to finish what another began late
_SMALL = 1 << 15  # weights that one thread reads sooner than two agree


def linear(
    x: Float[Tensor, "*rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    impl: Literal["auto", "cpu", "reference"] = "auto",
) -> Float[Tensor, "*rows outputs"]:
    """x @ weight.T + bias.

    Args:
        x: any leading dimensions; their product is the number of rows.
        impl: "cpu" runs the compiled loops; "auto" does where `is_fast` says so, else
            `torch.nn.functional.linear`.
    Returns: a new tensor; sums are in float32, in another order than torch's, and the order may depend on the number of
        rows, as it does in any library. No gradients flow through the loops.
    Raises: ValueError for shapes that do not fit, or where `impl="cpu"` cannot run.
    Cost: reads `weight` once.
    """
    if x.shape[-1:] != weight.shape[1:] or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"x {tuple(x.shape)}, weight {tuple(weight.shape)}, bias {None if bias is None else tuple(bias.shape)}: "
            "expected [..., inputs], [outputs, inputs] and [outputs] or None"
        )
    if impl == "reference":
        return _reference(x, weight, bias)
    if impl == "cpu":
        _check_loops_can_run(x, weight, bias)
    elif impl != "auto":
        raise ValueError(f'impl is {impl!r}, expected "auto", "cpu" or "reference"')
    elif not is_fast(x, weight, bias):
        return F.linear(x, weight, bias)
    num_outputs, width = weight.shape
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], num_outputs)
    if out.numel():
        size = num_outputs * width
        chunk = num_outputs if size <= _SMALL else -(-num_outputs // _CHUNKS) + 3 & ~3
        _crew().multiply(
            x.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(),
            x.numel() // width, width, num_outputs, chunk,
        )  # fmt: skip
    return out


def is_fast(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether "auto" runs the compiled loops: a few rows, all in float32 on the CPU, and no gradients to keep."""
    return (
        x.dtype is torch.float32
        and weight.dtype is torch.float32
        and type(x) in _PLAIN
        and type(weight) in _PLAIN
        and x.device.type == "cpu"
        and 0 < x.numel() <= MAX_ROWS * weight.shape[1]
        and weight.is_contiguous()
        and (bias is None or (bias.dtype is torch.float32 and bias.is_contiguous()))
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and _is_compiled()
    )


def awake(num_threads: int) -> AbstractContextManager[None]:
    """Inside the block `num_threads - 1` helper threads share products; outside of one each runs on its caller alone.

    Helpers spin between products: leave the block when none are coming.
    """
    return _crew().awake(num_threads)


@cache
def _crew() -> "Crew":
    from infercore.kernels.linear.crew import crew  # here: it loads numba

    return crew


@cache
def _is_compiled() -> bool:
    from infercore._jit import is_compiled  # here: it loads numba

    return is_compiled()


def _check_loops_can_run(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype is not torch.float32 or tensor.device.type != "cpu"):
            raise ValueError(f'{name} is {tensor.dtype} on {tensor.device}; impl="cpu" multiplies float32 on the CPU')
    if not weight.is_contiguous() or (bias is not None and not bias.is_contiguous()):
        raise ValueError('weight and bias must be contiguous for impl="cpu"; pass .contiguous() ones')
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        raise ValueError('impl="cpu" keeps no gradients; call it under torch.no_grad()')
