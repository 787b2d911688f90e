"""What `tree_attention` needs to know about a step's rows, checked and read once per step, not once per layer."""

from dataclasses import dataclass

import torch
from jaxtyping import Int32, Int64
from torch import Tensor


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

    def check_fits(self, query: Tensor, k_pages: Tensor) -> None:
        """Raise ValueError if these rows were prepared for another number of rows or another page size."""
        if len(query) != self.num_rows:
            raise ValueError(f"query has {len(query)} rows, but position_ids has {self.num_rows}")
        if k_pages.shape[1] != self.page_size:
            raise ValueError(
                f"k_pages has page size {k_pages.shape[1]}, but the rows were prepared for {self.page_size}"
            )


def prepare(
    *,
    position_ids: Int64[Tensor, " rows"],
    row_starts: Int32[Tensor, " starts"],
    context_lens: Int32[Tensor, " seqs"],
    num_causal_rows: Int32[Tensor, " seqs"],
    block_table: Int32[Tensor, "seqs max_pages"],
    ancestor_bits: Int32[Tensor, "rows words"] | None,
    page_size: int,
) -> PreparedRows:
    """Check the description of a step's rows; the meaning of each tensor is given at `tree_attention`.

    Returns: a record to pass as `prepared=` in every layer of the step.
    Raises: ValueError for shapes, dtypes or devices that do not fit each other, and on the CPU for contents that cannot
        be meant (rows that run backwards, more tree rows than bits, a sequence longer than its pages).
    Cost: on a GPU only looks at shapes; no host sync.
    """
    num_seqs = len(context_lens)
    expected = {
        "row_starts": (row_starts, (num_seqs + 1,), torch.int32),
        "context_lens": (context_lens, (num_seqs,), torch.int32),
        "num_causal_rows": (num_causal_rows, (num_seqs,), torch.int32),
        "position_ids": (position_ids, (position_ids.numel(),), torch.int64),
    }
    for name, (tensor, shape, dtype) in expected.items():
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape} for {num_seqs} sequences"
            )
    if block_table.ndim != 2 or len(block_table) != num_seqs or block_table.dtype != torch.int32:
        raise ValueError(
            f"block_table is {block_table.dtype} {tuple(block_table.shape)}, expected int32 [{num_seqs}, max_pages]"
        )
    num_rows = len(position_ids)
    if ancestor_bits is not None and (
        ancestor_bits.ndim != 2 or len(ancestor_bits) != num_rows or ancestor_bits.dtype != torch.int32
    ):
        raise ValueError(
            f"ancestor_bits is {ancestor_bits.dtype} {tuple(ancestor_bits.shape)}, expected int32 [{num_rows}, words]"
        )
    return PreparedRows(
        position_ids, row_starts, context_lens, num_causal_rows, block_table, ancestor_bits, page_size, num_rows
    )
