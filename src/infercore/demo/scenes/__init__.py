"""The four scenes, in order: `chat.py`, `extraction.py`, `editing.py`, `together.py`.

Each is a function `play(stage) -> Scene` that runs both sides on the same token ids and says what came out.
"""

from collections.abc import Callable

from infercore.demo.scenes import chat, editing, extraction, together
from infercore.demo.stage import Scene, Stage

SCENES: dict[str, Callable[[Stage], Scene]] = {
    "chat": chat.play,
    "extraction": extraction.play,
    "editing": editing.play,
    "together": together.play,
}

__all__ = ["SCENES"]
