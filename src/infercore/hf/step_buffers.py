"""`StepBuffers`: a step's rows in memory that stays where it is, as a captured graph needs it."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infercore.hf.plan import HostRows, Plan, Rows, fill_rows, plan_of
from infercore.radix import KVPool

_ALIGNMENT = 16  # bytes: what kernels were compiled for


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A shape that a graph is captured for: so many rows of so many sequences, with a draft tree somewhere or none."""

    num_rows: int
    num_seqs: int
    has_tree: bool


class StepBuffers:
    """The arrays of a plan at their largest, once on the host (pinned, for a GPU) and once on the device.

    `write` fills the host's and starts one copy of everything, and one of the block table if it changed. A bucket's
    plan consists of views of the device's. Rows and sequences that a bucket has too many are harmless: such rows are
    token 0 and belong to no sequence, their K/V go to the reserved page; such sequences have no rows.

    `chosen`, int64 `[max_rows]` on the device, is for whoever chooses tokens: the next step's rows may begin with them
    before the host has read them.
    """

    def __init__(self, max_rows: int, max_seqs: int, max_pages: int, device: torch.device) -> None:
        self.max_rows, self.max_seqs, self.max_pages = max_rows, max_seqs, max_pages
        shapes = {
            "sources": (torch.int64, (max_rows,)),
            "logits_rows": (torch.int64, (max_rows,)),
            "position_ids": (torch.int64, (max_rows,)),
            "slot_mapping": (torch.int64, (max_rows,)),
            "row_starts": (torch.int32, (max_seqs + 1,)),
            "context_lens": (torch.int32, (max_seqs,)),
            "num_causal_rows": (torch.int32, (max_seqs,)),
            "ancestor_bits": (torch.int32, (max_rows, (max_rows + 31) // 32)),
            "token_ids": (torch.int64, (max_rows,)),  # the last one: on the device those chosen stand behind them
        }
        on_gpu = device.type == "cuda"
        places: dict[str, tuple[int, int]] = {}
        size = 0
        for name, (dtype, shape) in shapes.items():
            count = int(np.prod(shape)) * dtype.itemsize
            places[name] = size, size + count
            size += -(-count // _ALIGNMENT) * _ALIGNMENT
        first, stop = places["token_ids"]
        self._host = torch.zeros(stop, dtype=torch.uint8, pin_memory=on_gpu)
        self._device = torch.zeros(stop + max_rows * 8, dtype=torch.uint8, device=device)
        self._ids = self._device[first:].view(torch.int64)
        self.chosen = self._ids[max_rows:]
        self._host_table = torch.full((max_seqs, max_pages), -1, dtype=torch.int32, pin_memory=on_gpu)
        self._device_table = torch.full((max_seqs, max_pages), -1, dtype=torch.int32, device=device)
        self._new_table = np.full((max_seqs, max_pages), -1, np.int32)
        self._on_host: dict[str, npt.NDArray[np.generic]] = {}
        self._on_device: dict[str, Tensor] = {}
        for name, (dtype, shape) in shapes.items():
            part = slice(*places[name])
            self._on_host[name] = self._host[part].view(dtype).view(shape).numpy()
            self._on_device[name] = self._device[part].view(dtype).view(shape)
        self._copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    def write(self, rows: Seq[Rows], bucket: Bucket) -> Tensor:
        """Bring `rows`, which fit the bucket, to the device; returns which of them give logits, there."""
        if self._copied is not None:
            self._copied.synchronize()  # the copy of the step before has been read
        host = self._on_host
        for name in ("token_ids", "position_ids", "slot_mapping", "ancestor_bits"):
            host[name][: bucket.num_rows] = 0
        for name in ("context_lens", "num_causal_rows"):
            host[name][: bucket.num_seqs] = 0
        filled = {name: array for name, array in host.items() if name not in ("ancestor_bits", "logits_rows")}
        bits = host["ancestor_bits"] if bucket.has_tree else None
        logits_rows = fill_rows(
            rows,
            HostRows(**filled, block_table=self._new_table, ancestor_bits=bits, first_chosen=self.max_rows),  # type: ignore[arg-type]
        )
        host["logits_rows"][: len(logits_rows)] = logits_rows
        starts = host["row_starts"]
        starts[len(rows) + 1 : bucket.num_seqs + 1] = starts[len(rows)]
        self._device[: len(self._host)].copy_(self._host, non_blocking=True)
        old, new = self._host_table.numpy()[: len(rows)], self._new_table[: len(rows)]
        if not np.array_equal(old, new):
            old[:] = new
            self._device_table[: len(rows)].copy_(self._host_table[: len(rows)], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return self._on_device["logits_rows"][: len(logits_rows)]

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
            "block_table": self._device_table[:seqs],
            "ancestor_bits": view["ancestor_bits"][:rows] if bucket.has_tree else None,
        }
        return plan_of(tensors, None, pool)
