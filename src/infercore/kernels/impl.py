"""Which implementation an op runs: the rule behind `impl="auto"`, the same for every op."""

import os
from typing import Literal, TypeAlias

from torch import Tensor

Impl: TypeAlias = Literal["auto", "triton", "cpu", "reference"]
"""`"auto"`: Triton for CUDA tensors, the fast CPU path (or the reference where an op has none) otherwise."""


def choose_impl(
    impl: Impl, tensor: Tensor, *, cpu: Literal["cpu", "reference"]
) -> Literal["triton", "cpu", "reference"]:
    """The implementation to run on `tensor`; one that was asked for by name is never replaced by another.

    Args:
        cpu: what `"auto"` means on the CPU for this op; an op whose `cpu` is `"reference"` has no separate CPU path.
    Raises: ValueError for an unknown name, for `"triton"` on CPU tensors outside Triton's interpreter, for `"cpu"` on
        other devices or where the op has no such path.
    """
    has_cpu_path = cpu == "cpu"
    on_cpu = tensor.device.type == "cpu"
    if impl == "auto":
        return cpu if on_cpu else "triton"
    if impl == "reference":
        return "reference"
    if impl == "triton":
        if on_cpu and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                'impl="triton" got CPU tensors; move them to a GPU, or set TRITON_INTERPRET=1 before the first import'
            )
        return "triton"
    if impl == "cpu" and has_cpu_path:
        if not on_cpu:
            raise ValueError(f'impl="cpu" got tensors on {tensor.device}; use impl="auto"')
        return "cpu"
    names = '"auto", "triton", "cpu" or "reference"' if has_cpu_path else '"auto", "triton" or "reference"'
    raise ValueError(f"impl is {impl!r}, expected {names}")
