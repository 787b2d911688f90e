"""What is saved is what is loaded; what is damaged or foreign is refused, and memory keeps what it has."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from infercore.errors import CacheFileError, OutOfPages
from infercore.radix import KVPool, PrefixCache


def make(num_pages: int = 33, heads: int = 2, dtype: torch.dtype = torch.bfloat16) -> tuple[PrefixCache, KVPool]:
    pool = KVPool(num_pages, 4)
    for layer_idx in (0, 3):
        pool.layer(layer_idx, torch.zeros(1, heads, 8, dtype=dtype), torch.zeros(1, heads, 6, dtype=dtype))
    return PrefixCache(num_pages, 4, store=pool), pool


def put(cache: PrefixCache, pool: KVPool, token_ids: np.ndarray, namespace: object = None) -> None:
    """K and V of a page are its first token, plus ten times the layer."""
    sequence = cache.open(token_ids, namespace=namespace)
    start = sequence.num_tokens
    rows = torch.from_numpy(sequence.append(len(token_ids) - start))
    sequence.commit(token_ids[start:])
    for layer_idx, pair in pool.layers.items():
        for tensor in pair:
            values = torch.from_numpy(token_ids[start:]).to(tensor.dtype) + 10 * layer_idx
            tensor.view(-1, *tensor.shape[2:])[rows] = values[:, None, None]
    sequence.close()


def fill(cache: PrefixCache, pool: KVPool) -> list[tuple[np.ndarray, object]]:
    rng = np.random.default_rng(1)
    prompts = [(rng.integers(0, 3, 4 * rng.integers(1, 6)).astype(np.int32), [None, "a", 7][i % 3]) for i in range(9)]
    for token_ids, namespace in prompts:
        put(cache, pool, token_ids, namespace)
    return prompts


def check(cache: PrefixCache, pool: KVPool, prompts: list[tuple[np.ndarray, object]]) -> None:
    for token_ids, namespace in prompts:
        match = cache.match(token_ids, namespace=namespace)
        assert match.num_tokens == len(token_ids)
        for layer_idx, pair in pool.layers.items():
            for tensor in pair:
                stored = tensor[torch.from_numpy(match.page_ids.astype(np.int64))].flatten(0, 1)[:, 0, 0]
                assert stored.tolist() == (token_ids + 10 * layer_idx).tolist()


def test_a_cache_survives_its_process(tmp_path: Path) -> None:
    cache, pool = make()
    prompts = fill(cache, pool)
    cached = cache.counts().cached
    assert cache.save(tmp_path / "cache.safetensors") == 4 * cached
    fresh, fresh_pool = make(num_pages=99)
    assert fresh.load(tmp_path / "cache.safetensors") == 4 * cached
    assert fresh.counts().cached == cached
    assert fresh.counts().in_use == 0
    check(fresh, fresh_pool, prompts)
    assert fresh.load(tmp_path / "cache.safetensors") == 0
    assert fresh.counts().cached == cached


def test_layers_of_a_new_pool_are_made_by_loading(tmp_path: Path) -> None:
    cache, pool = make()
    prompts = fill(cache, pool)
    cache.save(tmp_path / "cache.safetensors")
    empty = KVPool(33, 4)
    fresh = PrefixCache(33, 4, store=empty)
    fresh.load(tmp_path / "cache.safetensors")
    check(fresh, empty, prompts)


def test_recency_survives(tmp_path: Path) -> None:
    cache = PrefixCache(9, 4)
    for value in (1, 2, 3):
        pages = cache.allocate(1)
        cache.insert([value] * 4, pages)
        cache.release(pages)
    cache.match([1] * 4)
    cache.save(tmp_path / "tree.safetensors")
    fresh = PrefixCache(9, 4)
    fresh.load(tmp_path / "tree.safetensors")
    fresh.evict(2)
    assert [fresh.match([value] * 4).num_tokens for value in (1, 2, 3)] == [4, 0, 0]


def test_damaged_and_foreign_files_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    cache, pool = make()
    prompts = fill(cache, pool)
    good = tmp_path / "good.safetensors"
    cache.save(good)
    content = good.read_bytes()
    bad: dict[str, bytes] = {
        "cut": content[: len(content) // 2],
        "flipped": content[:-20] + bytes([content[-20] ^ 1]) + content[-19:],
        "text": b"not a cache",
        "empty": b"",
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign")
    before = cache.counts()
    for name in [*bad, "foreign"]:
        with pytest.raises(CacheFileError, match=name):
            cache.load(tmp_path / name)
        assert cache.counts() == before
    check(cache, pool, prompts)
    with pytest.raises(FileNotFoundError):
        cache.load(tmp_path / "nowhere")


@pytest.mark.parametrize("change", ["page_size", "heads", "dtype", "store"])
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, change: str) -> None:
    cache, pool = make()
    fill(cache, pool)
    cache.save(tmp_path / "cache")
    other = {
        "page_size": lambda: PrefixCache(33, 8),
        "heads": lambda: make(heads=3)[0],
        "dtype": lambda: make(dtype=torch.float32)[0],
        "store": lambda: PrefixCache(33, 4),
    }[change]()
    with pytest.raises(CacheFileError):
        other.load(tmp_path / "cache")
    assert other.counts().free == other.counts().total


def test_a_pool_that_is_too_small_is_told_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    cache, pool = make()
    fill(cache, pool)
    cache.save(tmp_path / "cache")
    small, small_pool = make(num_pages=6)
    put(small, small_pool, np.arange(8, dtype=np.int32))
    with pytest.raises(OutOfPages):
        small.load(tmp_path / "cache")
    assert small.match(np.arange(8)).num_tokens == 8


def test_namespaces_that_json_cannot_hold_are_refused(tmp_path: Path) -> None:
    cache, pool = make()
    put(cache, pool, np.arange(4, dtype=np.int32), namespace=("a", 1))
    with pytest.raises(ValueError, match="cannot be saved"):
        cache.save(tmp_path / "cache")
    assert not list(tmp_path.iterdir())
