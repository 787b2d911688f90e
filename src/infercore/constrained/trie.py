"""`Trie`: byte strings of tokens as arrays in preorder, which compiled loops get as one address."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from infercore._jit import Directory
from infercore.constrained.charsets import cells
from infercore.constrained.loops import loops as c


class TrieArrays(NamedTuple):
    """What `_compiled.build_trie` gives; nodes are in preorder."""

    byte: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.int16]
    skip: npt.NDArray[np.int32]  # first node behind a node's subtree
    tokens_at: npt.NDArray[np.int32]  # where a node's tokens begin in `token_ids`
    token_ids: npt.NDArray[np.int32]
    classes: npt.NDArray[np.int64]  # classes of the bytes below a node, see `_compiled.BYTE_CLASS`, and cells
    tall: npt.NDArray[np.int16]  # levels below a node
    own: npt.NDArray[np.int8]  # class or cell of a node's own byte or character


class Trie:
    """Tokens by their bytes. Immutable.

    Attributes:
        handle: for compiled loops; it holds as long as this object lives.
    """

    def __init__(self, arrays: TrieArrays) -> None:
        self.arrays = arrays
        self._directory = Directory(c.TRIE)
        self._directory.show(arrays)
        self.handle = self._directory.handle

    @classmethod
    def build(cls, data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64], order: npt.NDArray[np.int32]) -> "Trie":
        """Trie of the byte strings that end at `ends` in `data`, those in `order`, which must be sorted."""
        return cls(TrieArrays(*c.build_trie(data, ends, order, cells())))
