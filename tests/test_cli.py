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


def test_train_eagle_writes_a_head_that_the_engine_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.demo.models import byte_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    from infercore.hf import EagleDrafter, Engine

    config = LlamaConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=0, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog and the cat sleeps. " * 30)
    (tmp_path / "test.txt").write_text("the quick brown fox jumps over the lazy dog\n")
    small = ["--text-tokens", "600", "--text-batch", "8", "--max-tokens", "64", "--draft-vocab", "100"]
    run = [
        "train-eagle",
        "--model",
        str(tmp_path / "model"),
        "--out",
        str(tmp_path / "head"),
        "--max-steps",
        "2",
        *small,
    ]
    assert cli.main([*run, "--text", str(tmp_path / "text.txt"), "--avoid", str(tmp_path / "test.txt")]) == 0
    assert "documents share eight words with 1 files" in capsys.readouterr().out
    assert "Documents that share eight words" in (tmp_path / "head" / "README.md").read_text()
    drafter = EagleDrafter.from_pretrained(tmp_path / "head", model)
    (done,) = Engine(model).generate([[5, 6, 7]], max_new_tokens=8, drafter=drafter)
    assert done.stats.num_drafted_tokens > 0
    monkeypatch.setenv("INFERCORE_CACHE", str(tmp_path / "empty"))
    assert cli.main(["train-eagle", "--out", str(tmp_path / "none")]) == 1
    assert "no --model given" in capsys.readouterr().err
