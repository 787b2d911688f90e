"""The automata of the formats, computed ahead: `formats.npz` beside this holds one `Block` each.

After a change of `formats.py` or of what a block holds, write it anew:

    python -c "from infercore.constrained.schema import format_blocks; format_blocks.main()"

A test compares what it holds with what the patterns give.
"""

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infercore.constrained.block import Block
from infercore.constrained.limits import Limits
from infercore.constrained.machine import Machine
from infercore.constrained.regex import full_match
from infercore.constrained.schema.formats import FORMATS
from infercore.constrained.schema.texts import Texts

_FILE = Path(__file__).with_name("formats.npz")
_KEYS = ("names", "configs", "sizes", "spans", "cells", "accepts", "loops", "distances")


@cache
def format_block(name: str) -> Block:
    """The texts of a format; its arrays are shared, not to be changed."""
    return _blocks()[name]


@cache
def _blocks() -> dict[str, Block]:
    """All formats: reading them takes 5 ms, one by one 1 ms each."""
    with np.load(_FILE) as file:
        names, configs, sizes, spans, cells, accepts, loops, distances = (file[key] for key in _KEYS)
    blocks = {}
    config = cell = 0
    for name, count, size in zip(names.tolist(), configs.tolist(), sizes.tolist(), strict=True):
        own, inside = slice(config, config + count), slice(cell, cell + size)
        blocks[name] = Block.from_rows(
            spans[own].astype(np.int32),
            cells[inside].astype(np.int32),
            accepts[own],
            loops[own],
            distances[own].astype(np.int32),
        )
        config, cell = config + count, cell + size
    return blocks


def compute_block(name: str) -> Block:
    """The same from the format's pattern; some milliseconds."""
    machine = Machine(Limits())
    return Block.of(machine, Texts(machine).of_node(full_match(FORMATS[name], ecma=True)))


def main() -> None:
    """Write the file."""
    blocks = {name: compute_block(name) for name in FORMATS}
    arrays: tuple[npt.NDArray[np.generic], ...] = (
        np.array(list(blocks)),
        np.array([len(block.span) for block in blocks.values()]),
        np.array([len(block.cells) for block in blocks.values()]),
        np.concatenate([block.span[:, :2] for block in blocks.values()]).astype(np.uint16),
        np.concatenate([block.cells for block in blocks.values()]).astype(np.uint16),
        np.concatenate([block.accepts for block in blocks.values()]),
        np.concatenate([block.loops for block in blocks.values()]),
        np.concatenate([block.distance for block in blocks.values()]).astype(np.uint16),
    )
    np.savez_compressed(_FILE, allow_pickle=False, **dict(zip(_KEYS, arrays, strict=True)))
