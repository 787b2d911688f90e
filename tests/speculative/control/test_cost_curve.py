"""CostCurve learns what rows cost."""

from pathlib import Path

import numpy as np
import pytest

from infercore.speculative import CostCurve


def test_unknown_sizes_cost_what_the_nearest_known_smaller_one_does() -> None:
    curve = CostCurve()
    assert curve.seconds(np.array([1, 64])).tolist() == [1.0, 1.0]
    curve.observe(1, 0.02)
    assert curve.seconds(64) == pytest.approx(0.02), "an optimist tries it"
    curve.observe(8, 0.04)
    assert curve.seconds(64) == pytest.approx(0.04)
    assert curve.knows(8)
    assert not curve.knows(64)


def test_measured_sizes_are_interpolated() -> None:
    curve = CostCurve()
    for rows, seconds in ((4, 0.02), (8, 0.04)):
        curve.observe(rows, seconds)
    assert curve.seconds(6) == pytest.approx(0.03, rel=0.1)


def test_one_outlier_does_not_decide_and_a_lasting_change_does() -> None:
    curve = CostCurve()
    for _ in range(50):
        curve.observe(1, 0.01)
    curve.observe(1, 10.0)
    assert curve.seconds(1) < 0.0115
    for _ in range(200):
        curve.observe(1, 0.03)
    assert curve.seconds(1) == pytest.approx(0.03, rel=0.05)


def test_longer_contexts_raise_sizes_that_were_not_run() -> None:
    curve = CostCurve()
    curve.observe(1, 0.01)
    curve.observe(32, 0.02)
    for _ in range(60):
        curve.observe(1, 0.02)
    assert curve.seconds(32) > 0.022


def test_what_one_size_tells_about_longer_contexts_holds_for_others() -> None:
    """Attention costs by row and context: what rows cost on top of one row doubles, and the one row does not change."""
    curve = CostCurve()
    measured = {1: 0.010, 4: 0.012, 8: 0.014, 16: 0.018}
    for rows, seconds in measured.items():
        curve.observe(rows, seconds)
    noise = np.random.default_rng(0)
    for _ in range(60):
        curve.observe(1, 0.010 * noise.lognormal(0, 0.05))
        curve.observe(8, 0.018 * noise.lognormal(0, 0.05))
    assert curve.seconds(1) == pytest.approx(0.010, rel=0.07)
    assert curve.seconds(8) == pytest.approx(0.018, rel=0.07)
    assert curve.seconds(16) > 0.023, "though it was not run"


def test_a_size_between_known_ones_is_not_judged_by_one_step() -> None:
    curve = CostCurve()
    for rows, seconds in ((1, 0.010), (8, 0.012)):
        for _ in range(10):
            curve.observe(rows, seconds)
    curve.observe(4, 0.020)
    assert curve.seconds(4) < 0.016


def test_no_size_is_cheaper_than_the_smallest() -> None:
    curve = CostCurve()
    curve.observe(1, 0.012)
    curve.observe(8, 0.010)
    assert curve.seconds(8) == curve.seconds(1)


def test_what_is_known_of_expensive_sizes_fades() -> None:
    curve = CostCurve()
    curve.observe(1, 0.01)
    curve.observe(32, 0.08)
    for _ in range(2000):
        curve.observe(1, 0.01)
    assert curve.seconds(32) < 0.03


def test_measure_takes_the_median_of_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    calls: list[int] = []

    def run(num_rows: int) -> None:
        calls.append(num_rows)
        clock[0] += 0.001 * num_rows + (5.0 if len(calls) <= 2 else 0.0)  # the first of each compiles something

    monkeypatch.setattr("infercore.speculative.control.cost_curve.time.perf_counter", lambda: clock[0])
    curve = CostCurve.measure(run, rows=(1, 8), repeats=3)
    assert calls == [1, 8] * 4
    assert curve.table() == pytest.approx({1: 0.001, 8: 0.008})


def test_a_saved_curve_comes_back_under_its_key_alone(tmp_path: Path) -> None:
    curve = CostCurve()
    curve.observe(1, 0.01)
    curve.observe(16, 0.02)
    path = curve.save("cpu/model", folder=tmp_path)
    loaded = CostCurve.load("cpu/model", folder=tmp_path)
    assert loaded is not None
    assert loaded.table() == pytest.approx(curve.table())
    assert CostCurve.load("gpu/model", folder=tmp_path) is None
    for broken in ("", "{}", '{"key": "cpu/model", "seconds": {"1": -1}}', '{"key": "cpu/model", "seconds": 3}'):
        path.write_text(broken)
        assert CostCurve.load("cpu/model", folder=tmp_path) is None


@pytest.mark.parametrize(("num_passed", "least", "most"), [(0, 1.0, 1.1), (200, 1.25, 1.5)])
def test_after_steps_that_told_nothing_the_next_one_is_believed_more(
    num_passed: int, least: float, most: float
) -> None:
    curve = CostCurve()
    for _ in range(300):
        curve.observe(1, 0.01)
        curve.observe(8, 0.012)
    for _ in range(num_passed):
        curve.let_pass()
    assert curve.step(8) == pytest.approx(0.012, rel=0.01)
    curve.observe(8, 1.5 * 0.012)
    assert least < curve.step(8) / 0.012 < most
    assert least < curve.step(1) / 0.01 < most
