"""Index pages name every page, and no link is dead."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "changes" / "README.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?![a-z]+://|#)([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize(("index", "folder"), [("docs/README.md", "docs/design"), ("docs/log.md", "docs/log")])
def test_index_names_every_page(index: str, folder: str) -> None:
    text = (ROOT / index).read_text(encoding="utf-8")
    pages = [path.relative_to((ROOT / index).parent).as_posix() for path in (ROOT / folder).glob("*.md")]
    assert not [page for page in pages if f"]({page})" not in text]
