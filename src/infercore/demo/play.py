"""The whole demo: fetch or load a model, build an engine on it, warm both sides up, play the scenes in order."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import infercore
from infercore import _jit
from infercore.demo import peers
from infercore.demo.fetch import Progress, ensure_smollm2, smollm2_path
from infercore.demo.recorder import Draft
from infercore.demo.scenes import SCENES, extraction
from infercore.demo.stage import Counts, Outputs, Scene, Stage
from infercore.errors import FetchError
from infercore.hf import EagleDrafter, Engine
from infercore.speculative import NGramDrafter

SMOLLM2 = "SmolLM2-135M-Instruct"
_NUM_WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Performance:
    """Everything the demo has to show.

    Args:
        environment: what the figures depend on, by name.
        seconds: from the first file that was opened to the end of the last scene, without the download.
        radix_tree: the prefix cache after the last scene, drawn with the text of its tokens.
        draft: one draft tree of the editing scene.
        decode: token ids to text.
    """

    model: str
    environment: dict[str, str]
    rounds: int
    scenes: list[Scene]
    seconds: float
    radix_tree: str
    draft: Draft | None
    decode: Callable[[list[int]], str]


def play(
    model_name: str | None = None,
    *,
    rounds: int = 1,
    eagle: str | None = None,
    progress: Progress,
    on_scene: Callable[[Scene], object] = lambda scene: None,
) -> Performance:
    """Play every scene on `model_name` (a Hugging Face name or folder), or on SmolLM2-135M-Instruct.

    Args:
        rounds: how often all scenes are played, from empty caches; each side's best time counts.
        eagle: folder of an EAGLE head for the model, which then drafts as well; "": the one that comes with us.
        on_scene: gets each scene of the first round as soon as it is over.
    Raises: FetchError, UnsupportedModel; what transformers raises for a name that it cannot load.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, expected at least 1")
    source = str(_set_up(progress)) if model_name is None else model_name
    start = time.perf_counter()
    stage = _stage(source, progress, None if eagle is None else Path(eagle) if eagle else shipped_head())
    scenes: list[Scene] = []
    for _ in range(rounds):
        stage.engine.invalidate()
        stage.kept.clear()
        for i, play_scene in enumerate(SCENES.values()):
            scene = play_scene(stage)
            if i < len(scenes):
                scenes[i] = scenes[i].best_with(scene)
            else:
                scenes.append(scene)
                on_scene(scene)
    decode = stage.tokenizer.decode
    return Performance(
        model=SMOLLM2 if model_name is None else model_name,
        environment=_environment(stage.model),
        rounds=rounds,
        scenes=scenes,
        seconds=time.perf_counter() - start,
        radix_tree=stage.engine.cache.render(decode=decode),
        draft=stage.kept["draft"],
        decode=decode,
    )


def _set_up(progress: Progress) -> Path:
    """SmolLM2's folder. The first time, while it is fetched and converted, the CPU loops compile in another process."""
    if (ready := smollm2_path()) is not None:
        return ready
    with subprocess.Popen([sys.executable, "-m", "infercore", "warmup"], stdout=DEVNULL, stderr=DEVNULL) as compiling:
        folder = ensure_smollm2(progress)
        progress("compiling the CPU loops (once)", None)
        compiling.wait()  # whether it went well shows when the loops are called
    return folder


def shipped_head() -> Path:
    """The EAGLE head for SmolLM2-135M-Instruct that comes with us.

    Raises: FetchError if this copy of infercore has none.
    """
    folder = Path(__file__).parent / "eagle_smollm2"
    if not (folder / "config.json").is_file():
        raise FetchError(
            "this copy of infercore comes without the head for SmolLM2; train one with `infercore train-eagle --out "
            "head`, and pass `--eagle head`"
        )
    return folder


def _stage(source: str, progress: Progress, eagle: Path | None) -> Stage:
    progress("loading the model", None)
    transformers.utils.logging.disable_progress_bar()  # the demo draws one bar for everything
    transformers.utils.logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    if tokenizer.chat_template is None:
        raise ValueError(f"{source} has no chat template; pass --model an instruction-tuned model")
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = next(iter(peers.end_token_ids(model)), 0)
    attention = model.config._attn_implementation
    progress("building the engine", None)
    head = None if eagle is None else EagleDrafter.from_pretrained(eagle, model)
    stage = Stage(model, tokenizer, Engine(model, tokenizer), attention, progress, eagle=head)
    _warm_up(stage)
    return stage


def _warm_up(stage: Stage) -> None:
    """A few tokens from each side, so that no scene pays for compiling loops or for building the vocabulary."""
    prompt = stage.tokenizer("Warm and ready, warm and ready, warm and").input_ids

    def by_engine() -> Outputs:
        options = {"max_new_tokens": _NUM_WARM_UP_TOKENS, "drafter": NGramDrafter()}
        done = [
            *stage.engine.generate([prompt], **options),
            *stage.engine.generate([prompt], grammar=extraction.grammar(stage), **options),
        ]
        return [completion.token_ids for completion in done], Counts()

    def by_generate() -> Outputs:
        return [peers.generate(stage.model, prompt, _NUM_WARM_UP_TOKENS)], Counts()

    stage.peer("generate", by_generate, what="warming up", num_expected=_NUM_WARM_UP_TOKENS)
    stage.ours(by_engine, what="warming up", num_expected=2 * _NUM_WARM_UP_TOKENS)


def _environment(model: Any) -> dict[str, str]:
    return {
        "infercore": infercore.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": f"{model.device}, {torch.get_num_threads()} threads of {os.cpu_count()}",
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million",
        "CPU loops": _jit.status(),
    }
