"""References to values that are not known yet, as they stand inside formatted strings (in private-use characters)."""

from __future__ import annotations

import re

from infercore.errors import TraceError
from infercore.lang.ir import ArgRef, VarRef
from infercore.lang.location import caller

_OPEN, _CLOSE = "\ue000", "\ue001"
_REFERENCE = re.compile(f"{_OPEN}([va]):([^{_OPEN}{_CLOSE}]*){_CLOSE}")


def in_text(reference: VarRef | ArgRef) -> str:
    """How a reference stands inside a formatted string until it is appended."""
    kind, name = ("v", reference.var) if isinstance(reference, VarRef) else ("a", reference.name)
    return f"{_OPEN}{kind}:{name}{_CLOSE}"


def split_references(text: str) -> list[str | VarRef | ArgRef]:
    """The pieces of a formatted string: plain text (never empty) and references.

    Raises: TraceError where a reference was cut or changed: the program worked on the string.
    """
    pieces: list[str | VarRef | ArgRef] = []
    start = 0
    for found in _REFERENCE.finditer(text):
        pieces.append(text[start : found.start()])
        kind, name = found.groups()
        pieces.append(VarRef(int(name)) if kind == "v" else ArgRef(name))
        start = found.end()
    pieces.append(text[start:])
    if any(isinstance(piece, str) and (_OPEN in piece or _CLOSE in piece) for piece in pieces):
        raise TraceError(
            f"{caller()}: a formatted string was changed (cut, upper-cased, escaped, ...) while a value in it is not "
            'known yet, so the program cannot be traced; run it with mode="eager"'
        )
    return [piece for piece in pieces if piece != ""]
