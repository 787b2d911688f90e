"""The changelog is gathered from fragments without losing one."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "changes"


def test_every_fragment_can_be_gathered() -> None:
    kinds = {path.name.rsplit(".", 2)[-2] for path in FOLDER.glob("*.md") if path.name != "README.md"}
    assert kinds <= set(_load().KINDS)
    assert all(path.read_text(encoding="utf-8").strip() for path in FOLDER.glob("*.md"))


def test_gathering_moves_every_fragment_under_the_version(tmp_path: Path) -> None:
    changelog = tmp_path / "log.txt"
    changelog.write_text("# Changelog\n\nIntro.\n\n## 0.0.1 (2020-01-01)\n\n- Old.\n", encoding="utf-8")
    for name, text in {"b.fixed.md": "A fix.", "a.added.md": "One.\nTwo.", "c.added.md": "Three."}.items():
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("stays", encoding="utf-8")
    _load().gather("0.1.0", folder=tmp_path, changelog=changelog)
    words = changelog.read_text(encoding="utf-8")
    expected = ["Intro.", "## 0.1.0", "- One.\n  Two.", "- Three.", "- A fix.", "## 0.0.1", "- Old."]
    positions = [words.index(piece) for piece in expected]
    assert positions == sorted(positions)
    assert [path.name for path in tmp_path.glob("*.md")] == ["README.md"]


def test_a_fragment_of_no_kind_stops_everything(tmp_path: Path) -> None:
    changelog = tmp_path / "log.txt"
    changelog.write_text("# Changelog\n", encoding="utf-8")
    (tmp_path / "a.improved.md").write_text("Better.", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.improved\.md: expected"):
        _load().gather("0.1.0", folder=tmp_path, changelog=changelog)
    assert (tmp_path / "a.improved.md").exists()
    assert changelog.read_text(encoding="utf-8") == "# Changelog\n"


def _load():
    spec = importlib.util.spec_from_file_location("gather", FOLDER / "gather.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
