"""Which line of the user's program is running."""

from __future__ import annotations

import sys
from types import FrameType

from infercore.lang.ir import Location

_PASSED_OVER = ("infercore.lang", "contextlib", "jaxtyping", "beartype")


def caller() -> Location | None:
    """The innermost line outside of this package: the user's own. Wrappers that check annotations are passed over."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        file = frame.f_code.co_filename
        if not module.startswith(_PASSED_OVER) and not file.startswith("<@beartype"):
            return Location(file, frame.f_lineno)
        frame = frame.f_back
    return None
