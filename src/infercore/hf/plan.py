"""The plan of one packed forward: which rows run, where their K/V go, and what each of them sees.

Every sequence brings a run of rows: a causal chain (prefill chunk, forced tokens, the pending token) and then the nodes
of a draft tree. All runs stand one behind the other in a single `[1, T]` forward.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from infercore.hf import _compiled
from infercore.kernels import PreparedRows, prepare
from infercore.radix import KVPool, Sequence
from infercore.speculative import TokenTree


@dataclass(slots=True)
class Rows:
    """One sequence's share of a step.

    Args:
        sequence: its handle; `slots` were reserved from it for exactly these rows.
        token_ids: int32 `[num_causal]`, the chain, directly behind the committed tokens.
        tree: draft nodes below the last row of the chain.
        slots: int64 `[num_causal + tree.num_nodes]`, from `sequence.append`.
        first_logits_row: rows from here on (counted within this sequence) give logits; the number of rows for none.
        source: where the chain is one token that the host does not know yet: its place among the tokens chosen last,
            which are on the device. -1: `token_ids` are known.
    """

    sequence: Sequence
    token_ids: npt.NDArray[np.int32]
    tree: TokenTree
    slots: npt.NDArray[np.int64]
    first_logits_row: int
    source: int = -1


MAX_INTERVALS = 8  # groups in a step, and one more interval for who is in none


@dataclass(frozen=True, slots=True)
class PrefixGroups:
    """Intervals of a step's sequences: `starts[i]` to `starts[i + 1]` share their first `shared_lens[i]` tokens.

    starts: from 0 to the number of sequences.
    """

    starts: tuple[int, ...]
    shared_lens: tuple[int, ...]

    def fill(self, starts: npt.NDArray[np.int32], shared_lens: npt.NDArray[np.int32], num_seqs: int) -> None:
        """Write them into arrays that may be longer, of a step of `num_seqs` sequences, padding included.

        Intervals behind those that are used are empty, but for one of the padding, which shares nothing.
        """
        used = len(self.shared_lens)
        starts[0], starts[1:] = 0, num_seqs
        shared_lens[:] = 0
        starts[: used + 1] = self.starts
        shared_lens[:used] = self.shared_lens
        if not shared_lens[used - 1]:  # who is in no group, and the padding
            starts[used] = num_seqs


@dataclass(slots=True, eq=False)
class Plan:
    """Plain tensors on the model's device; `pool` is where layers read and write K/V. See `fill_rows` for the fields.

    Where `logits_rows` is None, all rows give logits.

    `prepared` is what the attention kernel worked out from these tensors, once a step instead of once a layer.
    `observed` collects `(layer_idx, sliding_window)` of every attention layer that used the plan, in order.
    """

    token_ids: Int64[Tensor, " rows"]
    position_ids: Int64[Tensor, " rows"]
    slot_mapping: Int64[Tensor, " rows"]
    row_starts: Int32[Tensor, " seqs_plus_1"]
    context_lens: Int32[Tensor, " seqs"]
    num_causal_rows: Int32[Tensor, " seqs"]
    block_table: Int32[Tensor, "seqs max_pages"]
    ancestor_bits: Int32[Tensor, "rows words"] | None
    logits_rows: Int64[Tensor, " logits"] | None
    pool: KVPool
    prepared: PreparedRows
    observed: list[tuple[int, int | None]] = field(default_factory=list)


_NO_NODES = np.empty(0, np.int32)  # one that may be written, so that loops are compiled once

Forward = Callable[[Plan], Tensor]
"""Runs the model on a plan; returns logits `[len(plan.logits_rows), vocab]`, of all rows if that is None."""


@dataclass(slots=True)
class HostRows:
    """The arrays of a plan on the host, for `fill_rows`; they may hold more rows and sequences than are used.

    `sources` says where each row's token stands: from `first_known` on in `token_ids`, below among those chosen last.
    `ancestor_bits` has no words where no sequence brings a tree. `widths` are the pages in each line of `block_table`.
    """

    token_ids: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]
    slot_mapping: npt.NDArray[np.int64]
    row_starts: npt.NDArray[np.int32]
    context_lens: npt.NDArray[np.int32]
    num_causal_rows: npt.NDArray[np.int32]
    ancestor_bits: npt.NDArray[np.int32]
    block_table: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    first_known: int


def count_rows(rows: Seq[Rows]) -> int:
    """Rows of the forward that `rows` make."""
    return sum([len(r.slots) for r in rows])


def fill_rows(rows: Seq[Rows], host: HostRows) -> bool:
    """Write `rows` one behind the other into the beginnings of `host`; returns whether the block table changed.

    A tree token's position is the context length plus its depth, never its slot; its ancestors' bits hide its siblings.
    Cost: about 2 us a sequence.
    """
    start = 0
    changed = False
    host.row_starts[0] = 0
    for seq, r in enumerate(rows):
        tree, sequence = r.tree, r.sequence
        has_tree = tree.num_nodes > 0
        changed |= _compiled.fill_sequence(
            host.token_ids,
            host.sources,
            host.position_ids,
            host.slot_mapping,
            host.row_starts,
            host.context_lens,
            host.num_causal_rows,
            host.ancestor_bits,
            host.block_table,
            host.widths,
            seq,
            start,
            sequence.num_tokens,
            host.first_known,
            r.source,
            r.token_ids,
            tree.token_ids if has_tree else _NO_NODES,
            tree.parents if has_tree else _NO_NODES,
            r.slots,
            sequence.page_ids,
        )
        start += len(r.slots)
    return bool(changed)


def rows_with_logits(rows: Seq[Rows]) -> npt.NDArray[np.int64]:
    """Which of all packed rows give logits."""
    parts: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
    start = 0
    for r in rows:
        stop = start + len(r.slots)
        parts.append(np.arange(start + r.first_logits_row, stop))
        start = stop
    return np.concatenate(parts)


def build_plan(
    rows: Seq[Rows],
    pool: KVPool,
    device: torch.device,
    chosen: Tensor | None = None,
    groups: PrefixGroups | None = None,
) -> Plan:
    """Pack `rows` into one forward.

    Args:
        chosen: int64, on the device: the tokens that rows with a `source` begin with.
        groups: of the sequences of `rows`, in their order.
    Cost: O(rows + sequences * pages) on the host, one copy of each array to the device, none of which waits for it.
    """
    num_seqs, total = len(rows), count_rows(rows)
    max_nodes = max((r.tree.num_nodes for r in rows), default=0)
    host = HostRows(
        np.empty(total, np.int64),
        np.empty(total, np.int64),
        np.empty(total, np.int64),
        np.empty(total, np.int64),
        np.empty(num_seqs + 1, np.int32),
        np.empty(num_seqs, np.int32),
        np.empty(num_seqs, np.int32),
        np.zeros((total, (max_nodes + 31) // 32), np.int32),
        np.full((num_seqs, max((r.sequence.num_pages for r in rows), default=0)), -1, np.int32),
        np.zeros(num_seqs, np.int32),
        first_known=0 if chosen is None else len(chosen),
    )
    fill_rows(rows, host)
    not_of_plans = ("sources", "widths", "first_known")
    arrays = {f.name: getattr(host, f.name) for f in fields(host) if f.name not in not_of_plans}
    tensors: dict[str, Tensor | None] = {name: _on_device(array, device) for name, array in arrays.items()}
    if not max_nodes:
        tensors["ancestor_bits"] = None
    if any(r.source >= 0 for r in rows):
        assert chosen is not None, "a row's token is on the device, but the tokens chosen last were not given"
        known = tensors["token_ids"]
        assert known is not None
        tensors["token_ids"] = torch.cat([chosen, known])[_on_device(host.sources, device)]
    shared: dict[str, Any] = {}
    if groups is not None:
        starts, shared_lens = np.empty(MAX_INTERVALS + 1, np.int32), np.empty(MAX_INTERVALS, np.int32)
        groups.fill(starts, shared_lens, num_seqs)
        shared = {"group_starts": _on_device(starts, device), "shared_lens": _on_device(shared_lens, device)}
    return plan_of(tensors, _on_device(rows_with_logits(rows), device), pool, **shared)


def _on_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """`array` on its way to the device; from pinned memory, so that the host does not wait for earlier work there."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def plan_of(
    tensors: dict[str, Tensor | None], logits_rows: Int64[Tensor, " logits"] | None, pool: KVPool, **groups: Any
) -> Plan:
    """The plan of `tensors`, named like the fields of `HostRows`; attention's part is prepared here.

    groups: sequences that begin with the same pages, as `prepare` takes them; the tile is chosen as if all rows of the
    step were in one, so that it depends on the shape alone.
    """
    attended: dict[str, Any] = {k: t for k, t in tensors.items() if k not in ("token_ids", "slot_mapping")}
    if groups:
        groups["rows_together"] = len(attended["position_ids"])
    prepared = prepare(**attended, **groups, page_size=pool.page_size)
    return Plan(**tensors, logits_rows=logits_rows, pool=pool, prepared=prepared)  # type: ignore[arg-type]
