"""What `tree_attention` needs to know about a step's rows, checked and read once per step, not once per layer."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from infercore.kernels.tree_attention.cpu_rows import CpuRows


@dataclass(frozen=True, eq=False)
class PreparedRows:
    """The rows of one step, checked. Holds the tensors given to `prepare`: valid while they are unchanged."""

    position_ids: Int64[Tensor, " rows"]
    row_starts: Int32[Tensor, " starts"]
    context_lens: Int32[Tensor, " seqs"]
    num_causal_rows: Int32[Tensor, " seqs"]
    block_table: Int32[Tensor, "seqs max_pages"]
    ancestor_bits: Int32[Tensor, "rows words"] | None
    page_size: int
    num_rows: int
    group_starts: Int32[Tensor, " group_starts"] | None = None
    shared_lens: Int32[Tensor, " groups"] | None = None
    rows_together: int | None = None
    captured: bool = False  # made while a CUDA graph was being captured
    plans: dict[Any, Any] = field(default_factory=dict)  # of the GPU path, by tile shape

    @cached_property
    def on_cpu(self) -> CpuRows:
        """The same, read into numbers for the CPU path at its first use."""
        return CpuRows(self)

    def check_fits(self, query: Tensor, k_pages: Tensor) -> None:
        """Raise ValueError if these rows were prepared for other rows, another page size, device or a larger pool."""
        if len(query) != self.num_rows:
            raise ValueError(f"query has {len(query)} rows, but position_ids has {self.num_rows}")
        if k_pages.shape[1] != self.page_size:
            raise ValueError(
                f"k_pages has page size {k_pages.shape[1]}, but the rows were prepared for {self.page_size}"
            )
        if query.device != self.position_ids.device:
            raise ValueError(f"query is on {query.device}, but position_ids on {self.position_ids.device}")


def prepare(
    *,
    position_ids: Int64[Tensor, " rows"],
    row_starts: Int32[Tensor, " starts"],
    context_lens: Int32[Tensor, " seqs"],
    num_causal_rows: Int32[Tensor, " seqs"],
    block_table: Int32[Tensor, "seqs max_pages"],
    ancestor_bits: Int32[Tensor, "rows words"] | None,
    page_size: int,
    group_starts: Int32[Tensor, " group_starts"] | None = None,
    shared_lens: Int32[Tensor, " groups"] | None = None,
    rows_together: int | None = None,
) -> PreparedRows:
    """Check the description of a step's rows; the meaning of each tensor is given at `tree_attention`.

    Inside a CUDA graph call it within the capture, so that a replay plans for the lengths that it finds.

    Args:
        group_starts: sequences `group_starts[g]` to `group_starts[g + 1]` begin with the same pages; from 0 to the
            number of sequences. On a GPU their shared keys are then read once for the group and not once for each (a
            cascade); results change by rounding only. Layers with a sliding window and `batch_invariant` ignore it.
        shared_lens: how many leading tokens the sequences of group g share; at most any of their `context_lens`. Groups
            may be empty, or share nothing.
        rows_together: about how many rows the group has that matters most, to choose the tile; None: a group's mean.
    Returns: a record to pass as `prepared=` in every layer of the step.
    Raises: ValueError for shapes, dtypes or devices that do not fit each other, and on the CPU for contents that cannot
        be meant (rows that run backwards, more tree rows than bits, a sequence longer than its pages).
    Cost: on a GPU only looks at shapes; no host sync. On the CPU about 30 microseconds.
    """
    num_seqs = len(context_lens)
    device = position_ids.device
    for name, tensor, shape, dtype in (
        ("row_starts", row_starts, (num_seqs + 1,), torch.int32),
        ("context_lens", context_lens, (num_seqs,), torch.int32),
        ("num_causal_rows", num_causal_rows, (num_seqs,), torch.int32),
        ("position_ids", position_ids, (position_ids.numel(),), torch.int64),
    ):
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)} "
                f"for {num_seqs} sequences"
            )
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, but position_ids on {device}")
    if block_table.ndim != 2 or len(block_table) != num_seqs or block_table.dtype != torch.int32:
        raise ValueError(
            f"block_table is {block_table.dtype} {list(block_table.shape)}, expected int32 [{num_seqs}, max_pages]"
        )
    num_rows = len(position_ids)
    if ancestor_bits is not None and (
        ancestor_bits.ndim != 2 or len(ancestor_bits) != num_rows or ancestor_bits.dtype != torch.int32
    ):
        raise ValueError(
            f"ancestor_bits is {ancestor_bits.dtype} {list(ancestor_bits.shape)}, expected int32 [{num_rows}, words]"
        )
    if block_table.device != device or (ancestor_bits is not None and ancestor_bits.device != device):
        raise ValueError(f"block_table and ancestor_bits must be on {device}, where position_ids is")
    if page_size < 1:
        raise ValueError(f"page_size is {page_size}, expected at least 1")
    _check_groups(group_starts, shared_lens, device)
    rows = PreparedRows(
        position_ids,
        row_starts,
        context_lens,
        num_causal_rows,
        block_table,
        ancestor_bits,
        page_size,
        num_rows,
        group_starts,
        shared_lens,
        rows_together,
        captured=device.type == "cuda" and torch.cuda.is_current_stream_capturing(),
    )
    if device.type == "cpu":
        rows.on_cpu.check()
    return rows


def _check_groups(group_starts: Tensor | None, shared_lens: Tensor | None, device: torch.device) -> None:
    if group_starts is None and shared_lens is None:
        return
    if group_starts is None or shared_lens is None:
        raise ValueError("group_starts and shared_lens belong together; pass both or neither")
    if len(group_starts) != len(shared_lens) + 1 or group_starts.ndim != 1 or shared_lens.ndim != 1:
        raise ValueError(
            f"group_starts is {list(group_starts.shape)} and shared_lens {list(shared_lens.shape)}, expected "
            "[groups + 1] and [groups]"
        )
    for name, tensor in (("group_starts", group_starts), ("shared_lens", shared_lens)):
        if tensor.dtype != torch.int32 or tensor.device != device:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, expected torch.int32 on {device}")
