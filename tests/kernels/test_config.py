"""The table of configs: every shape finds one that fits its device, and tuning adds devices without losing any."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercore.kernels.tree_attention.config import TABLE_FILE, Config, choose_config, table
from infercore.kernels.tree_attention.tune import candidates, fastest, with_device


@given(
    packed_rows=st.integers(1, 100_000),
    dims=st.tuples(*[st.sampled_from([16, 32, 64, 128, 256])] * 2),
    itemsize=st.sampled_from([2, 4]),
    shared_bytes=st.sampled_from([101_376, 166_912, 232_448]),
    batch_invariant=st.booleans(),
    load=st.floats(0, 1000),
)
def test_every_shape_gets_a_config_that_fits(packed_rows, dims, itemsize, shared_bytes, batch_invariant, load):
    config = choose_config(
        packed_rows,
        load=load,
        k_pad=dims[0],
        v_pad=dims[1],
        itemsize=itemsize,
        shared_bytes=shared_bytes,
        batch_invariant=batch_invariant,
    )
    used = (config.stages * config.block_n * sum(dims) + config.block_m * dims[0]) * itemsize
    assert used <= shared_bytes
    assert min(config.block_m, config.block_n) >= 16
    for size in (config.block_m, config.block_n):
        assert size & (size - 1) == 0
    if batch_invariant:
        other = choose_config(
            1, k_pad=dims[0], v_pad=dims[1], itemsize=itemsize, shared_bytes=shared_bytes, batch_invariant=True
        )
        assert config == other


def test_an_unknown_device_is_served_by_the_general_lines():
    assert table("a GPU of next year") == table("any")
    assert table("any")[-1][0] == (None, None)


def test_tuning_adds_a_device_and_keeps_the_others():
    known = json.loads(TABLE_FILE.read_text())
    rows = [{"packed_rows": None, "load": None, "block_m": 16, "block_n": 32, "stages": 2, "warps": 4, "waves": 1}]
    assert json.loads(with_device(known, "New", rows)) == {**known, "New": rows}
    assert with_device(known, "any", known["any"]) == TABLE_FILE.read_text()


def test_the_fastest_candidate_that_runs_wins(capsys):
    def time_us(config: Config) -> float:
        if config.stages == 2:
            raise MemoryError
        return config.block_n / config.stages

    best, time = fastest(candidates(16), time_us)
    assert (best.block_n, best.stages, time) == (32, 4, 8.0)
    assert "MemoryError" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="no candidate runs"):
        fastest([], time_us)
    assert all(config.block_m >= 64 for config in candidates(None))
