"""The prefix caches of SGLang 0.5.23 (Python, Rust core) and vLLM behind one interface, for `bench/radix.py`.

Neither package is installed: their wheels are unpacked, without dependencies, into the folder INFERCORE_PEERS

    pip download --no-deps -d wheels sglang==0.5.23 vllm==0.33.0
    for wheel in wheels/*.whl; do unzip -q $wheel -d $INFERCORE_PEERS; done

and only the modules of the cache itself are imported; every other module of theirs is a stub that is never called. A
peer that cannot be loaded has a row that says so. Each is called at its own lowest public level (the Rust core through
its binding, not through SGLang's adapter), in the format it likes best: `array("q")` for SGLang, tuples for vLLM.
"""

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_REAL = {
    "sglang": {
        "sglang",
        "sglang.srt",
        "sglang.srt.mem_cache",
        "sglang.srt.mem_cache.radix_cache",
        "sglang.srt.mem_cache.base_prefix_cache",
        "sglang.srt.mem_cache.cache_init_params",
        "sglang.srt.mem_cache.evict_policy",
        "sglang.srt.mem_cache.utils",
        "sglang.srt.mem_cache.rust_tree_core",
        "sglang.srt.mem_cache.rust_tree_core.mem_cache",
    },
    "vllm": {
        "vllm",
        "vllm.v1",
        "vllm.v1.core",
        "vllm.v1.core.block_pool",
        "vllm.v1.core.kv_cache_utils",
        "vllm.utils",
        "vllm.utils.hashing",
        "vllm.utils.math_utils",
    },
}
_EMPTY = {"sglang", "sglang.srt", "sglang.srt.mem_cache", "sglang.srt.mem_cache.rust_tree_core"}
_EMPTY |= {"vllm", "vllm.v1", "vllm.v1.core", "vllm.utils"}


class _Stub(types.ModuleType):
    """A module with every name: classes that can be subclassed, called and indexed, and do nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def nothing(*_: Any, **__: Any) -> Any:
            return None

        made = type(name, (), {"__init__": nothing, "__class_getitem__": classmethod(lambda cls, _: cls)})
        for method in ("debug", "info", "warning", "record_all_cleared", "record_store", "record_remove"):
            setattr(made, method, nothing)
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves the real files of `_REAL`, packages without their `__init__`, and stubs for the rest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        package = name.split(".")[0]
        if package not in _REAL and name != "cbor2":
            return None
        if name in _REAL.get(package, set()) - _EMPTY:
            base = self.folder / name.replace(".", "/")
            files = [base.with_suffix(".py"), *base.parent.glob(base.name + ".cpython-*.so")]
            for file in files:
                if file.exists():
                    return importlib.util.spec_from_file_location(name, file)  # type: ignore[attr-defined]
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


def install_finder() -> str | None:
    """Make the unpacked peers importable; None if INFERCORE_PEERS names no folder."""
    folder = Path(os.environ.get("INFERCORE_PEERS", ""))
    if not os.environ.get("INFERCORE_PEERS") or not folder.is_dir():
        return None
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(folder))
    return str(folder)


class SGLangPython:
    """`RadixCache` of SGLang, with an allocator that does nothing."""

    name = "SGLang Python"

    def __init__(self, page_size: int, num_tokens: int) -> None:
        module = importlib.import_module("sglang.srt.mem_cache.radix_cache")
        self._module = module
        self._cache = module.RadixCache.create_simulated(page_size=page_size, mock_allocator=_NoAllocator())

    def native(self, token_ids: npt.NDArray[np.int32]) -> "array[int]":
        key = array("q")
        key.frombytes(memoryview(token_ids.astype(np.int64)).cast("B"))
        return key

    def from_list(self, token_ids: list[int]) -> "array[int]":
        return array("q", token_ids)

    def match(self, key: "array[int]") -> int:
        m = self._module
        return int(self._cache.match_prefix(m.MatchPrefixParams(key=m.RadixKey(key))).device_prefix_len)

    def insert(self, key: "array[int]", slots: torch.Tensor) -> int:
        """Cache `key` whose rows stand in `slots`; returns the tokens that were cached already."""
        m = self._module
        return int(self._cache.insert(m.InsertParams(key=m.RadixKey(key), value=slots)).prefix_len)

    def evict(self, num_tokens: int) -> int:
        return int(self._cache.evict(self._module.EvictParams(num_tokens=num_tokens)).num_tokens_evicted)

    def num_nodes(self) -> int:
        waiting, count = [self._cache.root_node], 0
        while waiting:
            node = waiting.pop()
            count += 1
            waiting.extend(node.children.values())
        return count - 1


class SGLangRust:
    """The compiled tree core of SGLang, called through its binding."""

    name = "SGLang Rust"

    def __init__(self, page_size: int, num_tokens: int) -> None:
        module = importlib.import_module("sglang.srt.mem_cache.rust_tree_core.mem_cache")
        self._module = module
        params = module.TreeCoreInitParamsBinding(eviction_policy="lru", page_size=page_size, device="cpu")
        self._tree = module.RustUnifiedTreeCoreBinding(params, [0])

    native = SGLangPython.native
    from_list = SGLangPython.from_list

    def match(self, key: "array[int]") -> int:
        return int(self._tree.match_prefix(self._module.MatchParamsBinding(key)).device_prefix_len)

    def insert(self, key: "array[int]", slots: torch.Tensor) -> int:
        return int(self._tree.insert(self._module.InsertParamsBinding(key, slots)).prefix_len)

    def evict(self, num_tokens: int) -> int:
        tree = self._tree
        done = 0
        tree.evict_device_start(0, num_tokens)
        while done < num_tokens:
            found = tree.evict_device_next_node(0, {0: done})
            done += found.tracker.get(0, 0)
            if found.node_id is None:
                if not found.made_progress:
                    break
            else:
                done += tree.evict_device_leaf(found.node_id).tracker.get(0, 0)
        tree.evict_device_end(0)
        return done

    def num_nodes(self) -> int:
        return -1


class VLLMBlockPool:
    """`BlockPool` of vLLM with its default hash (SHA-256 of the pickled block); hashing counts, as it does there."""

    name = "vLLM BlockPool"

    def __init__(self, page_size: int, num_tokens: int) -> None:
        self._utils = importlib.import_module("vllm.v1.core.kv_cache_utils")
        self._hash = importlib.import_module("vllm.utils.hashing").sha256
        self._utils.init_none_hash(self._hash)
        pool = importlib.import_module("vllm.v1.core.block_pool").BlockPool
        self._pool = pool(num_tokens // page_size + 1, True, page_size)
        self._page_size = page_size

    def native(self, token_ids: npt.NDArray[np.int32]) -> list[int]:
        return token_ids.tolist()

    def from_list(self, token_ids: list[int]) -> list[int]:
        return token_ids

    def hashes(self, token_ids: list[int]) -> list[Any]:
        parent, found, size = None, [], self._page_size
        for start in range(0, len(token_ids) - size + 1, size):
            parent = self._utils.hash_block_tokens(self._hash, parent, token_ids[start : start + size], None)
            found.append(parent)
        return found

    def lookup(self, hashes: list[Any]) -> list[Any]:
        blocks = []
        for block_hash in hashes:
            block = self._pool.get_cached_block(block_hash, [0])
            if block is None:
                break
            blocks += block
        return blocks

    def match(self, key: list[int]) -> int:
        return len(self.lookup(self.hashes(key))) * self._page_size

    def serve(self, key: list[int]) -> int:
        """One request from admission to its end; returns the tokens found."""
        request = types.SimpleNamespace(block_hashes=self.hashes(key))
        found = self.lookup(request.block_hashes)
        self._pool.touch(found)
        blocks = found + self._pool.get_new_blocks(len(request.block_hashes) - len(found))
        self._pool.cache_full_blocks(request, blocks, len(found), len(blocks), self._page_size, 0)
        self._pool.free_blocks(reversed(blocks))
        return len(found) * self._page_size


class _NoAllocator:
    device = "cpu"

    def free_segment(self, *_: Any, **__: Any) -> None:
        pass


def available_peers() -> tuple[list[Any], list[str]]:
    """Classes that can be made, and a line for each that cannot."""
    if install_finder() is None:
        return [], ["SGLang and vLLM: INFERCORE_PEERS names no folder; see bench/radix_peers.py"]
    found, missing = [], []
    for peer in (SGLangPython, SGLangRust, VLLMBlockPool):
        try:
            peer(16, 1600)
            found.append(peer)
        except (ImportError, AttributeError, TypeError) as error:
            missing.append(f"{peer.name}: {type(error).__name__}: {error}")
    return found, missing


def slots_like(num_tokens: int) -> torch.Tensor:
    """Slots for peers, which take one int64 a token."""
    return torch.arange(num_tokens)


Keys = Sequence[Any]
