"""`python changes/gather.py 0.1.0` moves the fragments of this folder into CHANGELOG.md, under that version."""

import datetime
import re
import sys
from pathlib import Path

KINDS = ("added", "changed", "fixed", "removed")
FOLDER = Path(__file__).parent


def gather(version: str, *, folder: Path = FOLDER, changelog: Path = FOLDER.parent / "CHANGELOG.md") -> None:
    """Put every fragment below a new heading for `version`, newest version on top, and delete the fragments.

    Raises: ValueError if there is nothing to gather or a fragment has another kind than `KINDS`; nothing is changed.
    """
    fragments = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    if not fragments:
        raise ValueError(f"{folder} holds no fragments; write <slug>.<{'|'.join(KINDS)}>.md first")
    if wrong := [path.name for path in fragments if not re.fullmatch(rf".+\.({'|'.join(KINDS)})\.md", path.name)]:
        raise ValueError(f"{', '.join(wrong)}: expected <slug>.<{'|'.join(KINDS)}>.md; rename these")
    lines = [f"## {version} ({datetime.date.today()})", ""]
    for kind in KINDS:
        texts = [path.read_text(encoding="utf-8").strip() for path in fragments if path.name.endswith(f".{kind}.md")]
        if texts:
            lines += [f"### {kind.capitalize()}", "", *("- " + text.replace("\n", "\n  ") for text in texts), ""]
    head, _, rest = changelog.read_text(encoding="utf-8").partition("\n## ")
    parts = [head.strip() + "\n", "\n".join(lines).strip() + "\n", *(["## " + rest] if rest else [])]
    changelog.write_text("\n".join(parts), encoding="utf-8")
    for path in fragments:
        path.unlink()


if __name__ == "__main__":
    gather(sys.argv[1])
