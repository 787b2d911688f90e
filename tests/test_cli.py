"""The command line: errors are sentences on stderr with an exit status, not tracebacks."""

import subprocess
import sys
from pathlib import Path

import pytest

import infercore
from infercore import cli


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.strip() == infercore.__version__


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name in {"gguf", "rich"} else object())
    assert cli.main(["demo"]) == 1
    assert "the demo needs gguf, rich; pip install 'infercore[demo]'" in capsys.readouterr().err


def test_an_unknown_model_is_a_sentence(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "infercore", "demo", "--model", str(tmp_path / "nothing")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "infercore: " in run.stderr
    assert "nothing" in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_ctrl_c_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_demo", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "infercore: interrupted\n"
