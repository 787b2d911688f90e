"""Which tile, pipeline and number of programs `tree_attention` uses: a small table by shape, no search at run time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class Config:
    """One launch of the attention kernel.

    block_m: packed rows (tree rows x query heads of a KV head) of a tile; block_n: keys per step; stages: steps loaded
    ahead; warps: per program; waves: programs to aim for, as a multiple of the device's multiprocessors.
    """

    block_m: int
    block_n: int
    stages: int
    warps: int
    waves: int


TABLE_FILE = Path(__file__).with_name("configs.json")
"""Per device name a list of `{"packed_rows": up to, "load": up to, ...Config}`, for 16-bit pools with head sizes up to
128; the first line that fits counts, and null is no limit.

packed_rows: rows x query heads of a KV head, of a sequence on average. load: sequences x KV heads per multiprocessor;
from one on keys are hardly split. "any" serves devices that are not listed, with the values found on an H100 with 8 KV
heads of size 128, page size 16, contexts of 1k to 32k. `python -m infercore.kernels.tree_attention.tune` adds the GPU
it runs on.
"""

INVARIANT_SPLIT_KEYS = 1024  # batch_invariant: keys per split, whatever the batch
_INVARIANT = Config(16, 64, 3, 4, 1)


def choose_config(
    packed_rows: int,
    *,
    load: float = 0.0,
    k_pad: int,
    v_pad: int,
    itemsize: int,
    shared_bytes: int,
    device_name: str = "any",
    batch_invariant: bool = False,
) -> Config:
    """The config for about `packed_rows` packed rows per sequence.

    Args:
        load: sequences x KV heads per multiprocessor.
        k_pad, v_pad: head sizes as powers of two. itemsize: bytes per element of the pool.
        shared_bytes: shared memory that one program may take; the pipeline is shortened until its keys and values fit.
        batch_invariant: one config for every number of rows, so that a row's sums never change their order.
    """
    config = _INVARIANT
    if not batch_invariant:
        config = next(
            config
            for (most_rows, most_load), config in table(device_name)
            if (most_rows is None or packed_rows <= most_rows) and (most_load is None or load <= most_load)
        )
    block_m, block_n, stages = config.block_m, config.block_n, config.stages
    if itemsize > 2 or max(k_pad, v_pad) > 128:  # the accumulator or the operands take twice the registers
        block_m, block_n = min(block_m, 64), 32
    while stages > 1 and _shared(block_m, block_n, stages, k_pad, v_pad, itemsize) > shared_bytes:
        stages -= 1
    while block_n > 16 and _shared(block_m, block_n, stages, k_pad, v_pad, itemsize) > shared_bytes:
        block_n //= 2
    return Config(block_m, block_n, stages, config.warps, config.waves)


@lru_cache
def table(device_name: str) -> tuple[tuple[tuple[int | None, float | None], Config], ...]:
    """The lines of `configs.json` for a device: packed rows and load up to (None: any number), and the config."""
    known = json.loads(TABLE_FILE.read_text(encoding="utf-8"))
    rows = known.get(device_name, known["any"])
    return tuple(
        ((row["packed_rows"], row["load"]), Config(**{f: row[f] for f in Config.__dataclass_fields__})) for row in rows
    )


def _shared(block_m: int, block_n: int, stages: int, k_pad: int, v_pad: int, itemsize: int) -> int:
    """Bytes: the pipeline's keys and values, and the tile of queries."""
    return (stages * block_n * (k_pad + v_pad) + block_m * k_pad) * itemsize


@lru_cache
def device_limits(device: torch.device) -> tuple[str, int, int, bool]:
    """Name, multiprocessors, shared bytes per program, and whether a launch may overlap the one before (from sm_90)."""
    if device.type != "cuda":  # Triton's interpreter: any numbers will do, so those of an H100
        return "any", 132, 232448, False
    properties = torch.cuda.get_device_properties(device)
    return (
        properties.name,
        properties.multi_processor_count,
        int(getattr(properties, "shared_memory_per_block_optin", 101376)),
        properties.major >= 9,
    )
