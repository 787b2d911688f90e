"""Every Python block of the README runs as it stands, and prints what stands below it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```python\n(?P<program>.*?)```(?:\n+```text\n(?P<output>.*?)```)?", re.DOTALL)
BLOCKS = list(BLOCK.finditer(README))


def test_there_are_blocks() -> None:
    assert BLOCKS
    assert len(BLOCKS) == README.count("```python")
    assert BLOCKS[0]["output"], "the first program shows its output"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line {README.count(chr(10), 0, block.start()) + 1}")
def test_block_runs_and_prints_its_output(block: re.Match[str], tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", block["program"]],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    if block["output"] is not None:
        assert run.stdout == block["output"]


def test_links_inside_the_repository_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert not [link for link in links if not (ROOT / link).exists()]


def test_every_figure_of_the_results_has_its_file() -> None:
    """A row with a number in a results table links to the file that the number came from."""
    section = README.split("## Results", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert rows
    assert not [row for row in rows if re.search(r"\d", row) and "](bench/results/" not in row]
