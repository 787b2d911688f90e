"""Attention and KV kernels over a paged pool: a plain-torch reference, a fast CPU path and Triton, one door per op.

Use them when you run a model yourself and keep keys and values in pages: in a scheduler, a notebook or a paper's code.
They take plain tensors and know nothing of caches, engines or models.

    from infercore.kernels import tree_attention, write_kv
    write_kv(key, value, k_pages, v_pages, slot_mapping)                      # [rows, kv_heads, head_dim] into the pool
    out = tree_attention(query, k_pages, v_pages, position_ids=position_ids, row_starts=row_starts,
                         context_lens=context_lens, num_causal_rows=num_causal_rows, block_table=block_table,
                         ancestor_bits=ancestor_bits, scaling=head_dim**-0.5)  # prefill, decode and draft trees alike

Every op is a folder: `__init__.py` holds the contract and its checks, `reference.py` the specification in plain torch,
`triton.py` the GPU kernel (imported only when it is used), `cpu.py` a faster CPU path where it matters. In reading
order: `write_kv`, `move_kv`, `pack_pages`, `token_bitmask`, `verify_tree`, `linear`, `linear_group`, `tree_attention`,
`paged_prefill`, `expand_frontier`; `impl.py` says what `impl="auto"` picks.
"""

from infercore.kernels.expand_frontier import Expanded, expand_frontier
from infercore.kernels.impl import Impl
from infercore.kernels.linear import linear
from infercore.kernels.linear_group import linear_group
from infercore.kernels.move_kv import move_kv, slot_mover
from infercore.kernels.pack_pages import PagePacker, page_packer
from infercore.kernels.paged_prefill import paged_prefill
from infercore.kernels.token_bitmask import apply_token_bitmask, apply_token_bitmask_
from infercore.kernels.tree_attention import PreparedRows, prepare, tree_attention
from infercore.kernels.verify_tree import AcceptedPaths, verify_tree
from infercore.kernels.write_kv import write_kv

__all__ = [
    "AcceptedPaths",
    "Expanded",
    "Impl",
    "PagePacker",
    "PreparedRows",
    "apply_token_bitmask",
    "apply_token_bitmask_",
    "expand_frontier",
    "linear",
    "linear_group",
    "move_kv",
    "page_packer",
    "paged_prefill",
    "prepare",
    "slot_mover",
    "tree_attention",
    "verify_tree",
    "write_kv",
]
