"""`StepBuffers`: a step's rows in memory that stays where it is, as a captured graph needs it."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infercore.hf import _compiled
from infercore.hf.choices import Choices, choices_size
from infercore.hf.plan import MAX_INTERVALS, HostRows, Plan, PrefixGroups, Rows, fill_rows, plan_of
from infercore.radix import KVPool

_ALIGNMENT = 16  # bytes: what kernels were compiled for


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A shape that a graph is captured for: so many rows of so many sequences, with a draft tree somewhere or none.

    has_groups: sequences that begin with the same pages are read once, see `prefix_groups.py`.
    """

    num_rows: int
    num_seqs: int
    has_tree: bool
    has_groups: bool = False


class StepBuffers:
    """The arrays of a plan at their largest, once on the host (pinned, for a GPU) and once on the device.

    `write` fills the host's and starts one copy of everything, of the block table if it changed. A bucket's plan
    consists of views of the device's. Rows and sequences that a bucket has too many are harmless: such rows are
    token 0 and belong to no sequence, their K/V go to the reserved page; such sequences have no rows.

    `choices` stand before the token ids on the device: the next step's rows may begin with what was chosen before the
    host has read it.
    """

    def __init__(self, max_rows: int, max_seqs: int, max_pages: int, device: torch.device) -> None:
        self.max_rows, self.max_seqs, self.max_pages = max_rows, max_seqs, max_pages
        words = (max_rows + 31) // 32
        shapes = {
            "token_ids": (torch.int64, (max_rows,)),  # the first one: on the device those chosen stand before them
            "sources": (torch.int64, (max_rows,)),
            "position_ids": (torch.int64, (max_rows,)),
            "slot_mapping": (torch.int64, (max_rows,)),
            "row_starts": (torch.int32, (max_seqs + 1,)),
            "context_lens": (torch.int32, (max_seqs,)),
            "num_causal_rows": (torch.int32, (max_seqs,)),
            "ancestor_bits": (torch.int32, (max_rows, words)),
            "group_starts": (torch.int32, (MAX_INTERVALS + 1,)),
            "shared_lens": (torch.int32, (MAX_INTERVALS,)),
            "block_table": (torch.int32, (max_seqs, max_pages)),  # the last one: it is copied as far as it is used
        }
        on_gpu = device.type == "cuda"
        places: dict[str, tuple[int, int]] = {}
        size = 0
        for name, (dtype, shape) in shapes.items():
            count = int(np.prod(shape)) * dtype.itemsize
            places[name] = size, size + count
            size += -(-count // _ALIGNMENT) * _ALIGNMENT
        before = choices_size(max_rows)
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=on_gpu)
        self._device = torch.zeros(before + size, dtype=torch.uint8, device=device)
        self.choices = Choices(self._device[:before], max_rows)
        self._ids = self._device[before - max_rows * 8 : before + max_rows * 8].view(torch.int64)
        on_host: dict[str, npt.NDArray[Any]] = {}
        self._on_device: dict[str, Tensor] = {}
        for name, (dtype, shape) in shapes.items():
            first, stop = places[name]
            on_host[name] = self._host[first:stop].view(dtype).view(shape).numpy()
            self._on_device[name] = self._device[before + first : before + stop].view(dtype).view(shape)
        on_host["block_table"][:] = -1
        self._on_device["block_table"].fill_(-1)
        self._group_starts, self._shared_lens = on_host.pop("group_starts"), on_host.pop("shared_lens")
        self._rows = HostRows(**on_host, widths=np.zeros(max_seqs, np.int32), first_known=max_rows)
        self._plain_rows = replace(self._rows, ancestor_bits=on_host["ancestor_bits"][:, :0])
        self._table_start = places["block_table"][0]
        self._table_row = max_pages * 4
        self._parts: dict[int, tuple[Tensor, Tensor]] = {}
        self._copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    def write(self, rows: Seq[Rows], bucket: Bucket, groups: PrefixGroups | None = None) -> None:
        """Bring `rows`, which fit the bucket, to the device; `groups` of them where the bucket has any."""
        if self._copied is not None:
            self._copied.synchronize()  # the copy of the step before has been read
        host = self._rows if bucket.has_tree else self._plain_rows
        table_changed = fill_rows(rows, host)
        _compiled.fill_padding(
            host.token_ids,
            host.sources,
            host.position_ids,
            host.slot_mapping,
            host.row_starts,
            host.context_lens,
            host.num_causal_rows,
            int(host.row_starts[len(rows)]),
            bucket.num_rows,
            len(rows),
            bucket.num_seqs,
            self.max_rows,
        )
        if bucket.has_groups:
            groups = PrefixGroups((0, bucket.num_seqs), (0,)) if groups is None else groups
            groups.fill(self._group_starts, self._shared_lens, bucket.num_seqs)
        size = self._table_start + len(rows) * self._table_row if table_changed else self._table_start
        if size not in self._parts:
            before = len(self._device) - len(self._host)
            self._parts[size] = self._device[before : before + size], self._host[:size]
        there, here = self._parts[size]
        there.copy_(here, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def plan(self, bucket: Bucket, pool: KVPool) -> Plan:
        """The bucket's plan, all rows giving logits; to be called inside the capture, where attention plans anew."""
        view, rows, seqs = self._on_device, bucket.num_rows, bucket.num_seqs
        tensors: dict[str, Tensor | None] = {
            "token_ids": self._ids.index_select(0, view["sources"][:rows]),
            "position_ids": view["position_ids"][:rows],
            "slot_mapping": view["slot_mapping"][:rows],
            "row_starts": view["row_starts"][: seqs + 1],
            "context_lens": view["context_lens"][:seqs],
            "num_causal_rows": view["num_causal_rows"][:seqs],
            "block_table": view["block_table"][:seqs],
            "ancestor_bits": view["ancestor_bits"][:rows] if bucket.has_tree else None,
        }
        shared: dict[str, Any] = {}
        if bucket.has_groups:
            shared = {name: view[name] for name in ("group_starts", "shared_lens")}
        return plan_of(tensors, None, pool, **shared)
