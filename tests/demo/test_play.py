"""The whole demo: on a tiny random model made here, and on SmolLM2 where it is in the cache."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.demo.models import byte_tokenizer, tiny_model
from tests.hf.heads.checkpoints import CONFIGS, write

from infercore.demo import smollm2_path
from infercore.demo.play import play
from infercore.demo.report import as_json
from infercore.demo.scenes import SCENES, chat, editing, extraction, together
from infercore.demo.stage import Scene


@pytest.mark.parametrize("with_head", [False, True])
def test_every_scene_gives_what_generate_gives(
    with_head: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    for scene in (chat, editing, extraction, together):
        monkeypatch.setattr(scene, "MAX_NEW_TOKENS", 12)
    seen: list[Scene] = []
    head = None
    if with_head:
        head = str(write("eagle1", tmp_path / "head"))
        config = json.dumps(CONFIGS["eagle1"] | {"vocab_size": 258})
        (tmp_path / "head" / "config.json").write_text(config)
    performance = play(str(tmp_path), eagle=head, progress=lambda what, fraction: None, on_scene=seen.append)
    assert [scene.name for scene in seen] == list(SCENES)
    # Jump-forward writes a forced key as JSON writers do; a model of random weights may prefer an escape, so rows with
    # a grammar are compared on the real model only.
    constrained = {"extraction": {0, 1, 2, 3}, "together": {1}}
    for scene in performance.scenes:
        for side in scene.peers:
            for row, (ours, theirs) in enumerate(zip(scene.ours.outputs, side.outputs, strict=True)):
                assert ours == theirs or row in constrained.get(scene.name, ()), (scene.name, side.name, row)
    assert performance.scenes[0].ours.counts.num_reused > 5 * 1000
    assert performance.scenes[1].ours.counts.num_forced > 0
    assert "pages cached, 0 in use" in performance.radix_tree
    assert json.loads(as_json(performance))["rounds"] == 1


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no chat template"):
        play(str(tmp_path), progress=lambda what, fraction: None)


@pytest.mark.smollm2
@pytest.mark.slow
def test_the_command_plays_smollm2() -> None:
    if smollm2_path() is None:
        pytest.skip("SmolLM2 is not in the cache; `infercore demo` fetches it")
    run = subprocess.run(
        [sys.executable, "-m", "infercore", "demo", "--json"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    scenes = {scene["name"]: scene for scene in json.loads(run.stdout)["scenes"]}
    assert [scene["num_different_outputs"] for scene in scenes.values()] == [0, 0, 0, 0]
    assert scenes["chat"]["texts"][1] == "A book can be kept for four weeks."
    assert "It has two floors and a garden. On the first floor there are books" in scenes["editing"]["texts"][0]
    orders = [extraction.Order.model_validate_json(text) for text in scenes["extraction"]["texts"]]
    assert [order.customer_name for order in orders] == ["Anna Keller", "Peter Novak", "Maria Lopez", "John Hill"]
    # What makes the scenes faster, without a clock: forwards of the model.
    for name, at_most in {"chat": 0.5, "extraction": 0.6, "editing": 1.0, "together": 0.5}.items():
        scene = scenes[name]
        best = min(side["num_forwards"] for side in scene["peers"])
        assert scene["ours"]["num_forwards"] <= at_most * best, name
