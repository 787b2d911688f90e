"""A cache on disk: the tree and the K/V of its pages in one safetensors file, so that it survives its process.

Tensors: `tokens` int32 `[n, page_size]`, `parents` int32 `[n]` (index of the parent, which comes first; -1: a root),
`namespaces` int32 `[n]` (index into the list in the metadata), `recency` int32 `[n]`, and per layer `layer.<i>.k`,
`layer.<i>.v` `[n, page_size, num_kv_heads, head_dim]`. Metadata: format, version, page size, namespaces as JSON, a
CRC-32 of all tensors. Nothing of a file is used before all of it has been checked.
"""

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from infercore.errors import CacheFileError
from infercore.radix import _compiled as c
from infercore.radix.layout import Layout
from infercore.radix.types import Namespace

if TYPE_CHECKING:
    from torch import Tensor

    from infercore.radix.cache import PrefixCache

FORMAT, VERSION = "infercore.radix", "1"


@runtime_checkable
class SavableStore(Protocol):
    """A `PageStore` whose pages can be taken out and put back, by name of tensor, pages first."""

    def export_pages(self, page_ids: npt.NDArray[np.int32]) -> "dict[str, Tensor]": ...
    def check_import(self, tensors: "dict[str, Tensor]") -> None: ...
    def import_pages(self, page_ids: npt.NDArray[np.int32], tensors: "dict[str, Tensor]") -> None: ...


@dataclass(frozen=True, slots=True)
class SavedTree:
    """The tree of a file, checked: parents come first, namespaces are known."""

    tokens: npt.NDArray[np.int32]
    parents: npt.NDArray[np.int32]
    namespaces: list[Namespace]
    namespace_of: npt.NDArray[np.int32]
    recency: npt.NDArray[np.int32]
    store: "dict[str, Tensor]"


def save_cache(cache: "PrefixCache", path: Path) -> int:
    """What `PrefixCache.save` does."""
    if cache.store is not None and not isinstance(cache.store, SavableStore):
        raise ValueError(f"{type(cache.store).__name__} has no export_pages; a cache is saved with its K/V or none")
    with cache._lock:
        arrays, names = tree_tensors(cache.allocator.layout, cache._roots)
        pages = arrays.pop("pages")
        store = cache.store.export_pages(pages) if isinstance(cache.store, SavableStore) else {}
    write_file(path, cache.page_size, arrays, names, store)
    return len(pages) * cache.page_size


def load_into(cache: "PrefixCache", path: Path) -> int:
    """What `PrefixCache.load` does."""

    def check(tensors: dict[str, Any]) -> None:
        if isinstance(cache.store, SavableStore):
            cache.store.check_import(tensors)
        elif tensors or cache.store is not None:
            raise ValueError("it holds K/V, and this cache has no store that takes any")

    saved = read_file(path, cache.page_size, check)
    pages = cache.allocate(len(saved.parents))
    try:
        if isinstance(cache.store, SavableStore):
            cache.store.import_pages(pages, saved.store)
        with cache._lock:
            num_new = _hang(cache, saved, pages)
    finally:
        cache.release(pages)
    cache._tell()
    return num_new * cache.page_size


def _hang(cache: "PrefixCache", saved: SavedTree, pages: npt.NDArray[np.int32]) -> int:
    """Insert a saved tree whose K/V stands in `pages`, least recent leaf first; returns the new pages."""
    is_leaf = np.ones(len(pages), np.bool_)
    is_leaf[saved.parents[saved.parents >= 0]] = False
    leaves = np.flatnonzero(is_leaf)
    num_new = 0
    for leaf in leaves[np.argsort(saved.recency[leaves], kind="stable")].tolist():
        path = [leaf]
        while saved.parents[path[-1]] >= 0:
            path.append(int(saved.parents[path[-1]]))
        path.reverse()
        root = cache._root(saved.namespaces[saved.namespace_of[leaf]])
        tokens = np.ascontiguousarray(saved.tokens[path]).ravel()
        # Pages of the path that another leaf has brought already are in the tree; theirs stay.
        num_new += cache._insert(tokens, 0, root, root, pages[path], adopt=False, priority=0)
    return num_new


def tree_tensors(
    layout: Layout, roots: dict[Namespace, int]
) -> tuple[dict[str, npt.NDArray[np.int32]], list[Namespace]]:
    """The tree as arrays, `pages` among them: the page ids in the order of the file."""
    layout.settle()
    parents = layout.fields[c.PARENT, : int(layout.header[c.NUM_PAGES])]
    cached = np.flatnonzero(parents >= 0).astype(np.int32)
    depth = np.zeros(len(parents), np.int32)
    at = parents[cached].copy()
    while (inside := np.isin(at, cached)).any():  # one round per level
        depth[cached[inside]] += 1
        at[inside] = parents[at[inside]]
    pages = cached[np.argsort(depth[cached], kind="stable")]
    place = np.full(layout.num_nodes, -1, np.int32)
    place[pages] = np.arange(len(pages), dtype=np.int32)
    names = list(roots)
    name_at = {root: i for i, root in enumerate(roots.values())}
    return {
        "pages": pages,
        "tokens": layout.tokens.reshape(-1, int(layout.header[c.PAGE_SIZE]))[pages],
        "parents": place[parents[pages]],
        "namespaces": np.asarray([name_at[root] for root in layout.fields[c.ROOT, pages].tolist()], np.int32),
        "recency": layout.fields[c.STAMP, pages],
    }, names


def write_file(
    path: Path,
    page_size: int,
    arrays: dict[str, npt.NDArray[np.int32]],
    names: list[Namespace],
    store: "dict[str, Tensor]",
) -> None:
    """Write beside `path`, then put in place, so that a crash leaves the old file. Raises: ValueError for odd names."""
    import torch
    from safetensors.torch import save_file

    for name in names:
        if not (name is None or isinstance(name, str | int)):
            raise ValueError(f"namespace {name!r} cannot be saved; only strings, integers and None can")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()} | store
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "page_size": str(page_size),
        "namespaces": json.dumps(names),
        "crc32": str(_checksum(tensors)),
    }
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, beside, metadata)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_file(path: Path, page_size: int, check_store: "Callable[[dict[str, Tensor]], None]") -> SavedTree:
    """Read and check all of a file. Raises: CacheFileError, which says what is wrong with it."""
    tensors, metadata = _read(path)
    if metadata.get("format") != FORMAT:
        raise CacheFileError(f"{path} was not written by PrefixCache.save; its format is {metadata.get('format')!r}")
    if metadata.get("version") != VERSION:
        raise CacheFileError(
            f"{path} has version {metadata.get('version')!r}, this code reads {VERSION!r}; save it anew"
        )
    if metadata.get("page_size") != str(page_size):
        raise CacheFileError(f"{path} has pages of {metadata.get('page_size')} tokens, this cache of {page_size}")
    if metadata.get("crc32") != str(_checksum(tensors)):
        raise CacheFileError(f"{path} is damaged: its checksum does not fit its contents; delete it")
    try:
        tokens, parents, namespace_of, recency = (
            tensors.pop(name).numpy() for name in ("tokens", "parents", "namespaces", "recency")
        )
        names: list[Namespace] = [
            name if name is None or isinstance(name, int) else str(name) for name in json.loads(metadata["namespaces"])
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise CacheFileError(f"{path} lacks a part of the tree: {error}") from error
    count = len(parents)
    fits = (
        tokens.shape == (count, page_size)
        and namespace_of.shape == recency.shape == (count,)
        and all(array.dtype == np.int32 for array in (tokens, parents, namespace_of, recency))
        and bool((parents >= -1).all() and (parents < np.arange(count)).all())
        and bool((namespace_of >= 0).all() and (namespace_of < len(names)).all())
        and all(len(tensor) == count for tensor in tensors.values())
    )
    if not fits:
        raise CacheFileError(f"{path} holds no tree: shapes or links of its {count} pages do not fit together")
    try:
        check_store(tensors)
    except ValueError as error:
        raise CacheFileError(f"{path} does not fit this pool: {error}") from error
    return SavedTree(tokens, parents, names, namespace_of, recency, tensors)


def _read(path: Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise CacheFileError(f"{path} is no safetensors file, or is cut short: {error}") from error


def _checksum(tensors: "dict[str, Any]") -> int:
    import torch

    total = 0
    for name in sorted(tensors):
        if name != "pages":
            total = zlib.crc32(
                tensors[name].contiguous().view(torch.uint8).numpy().tobytes(), zlib.crc32(name.encode(), total)
            )
    return total
