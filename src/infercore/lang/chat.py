"""A transcript as the text that a tokenizer's chat template makes of it, turn by turn.

Templates only render whole conversations, so what stands around a turn is found by rendering: the text in front of it
is where the conversation with it departs from the conversation without, and the text after it is what follows its
content. A program may so stop in the middle of an assistant's turn, which templates do not foresee.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from infercore.lang.types import Mark, Role, Transcript

_CONTENT = "\ue010content\ue011"  # no template changes private-use characters, or strips them


class ChatFormat:
    """Renders transcripts with one tokenizer's template.

    Raises: ValueError if the template cannot be taken apart: it must put earlier turns in front of later ones as they
        were.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._around = lru_cache(maxsize=1024)(self._find_around)

    def render(self, transcript: Transcript) -> str:
        """The transcript's text; an open turn at its end stays open."""
        pieces: list[str] = []
        roles: tuple[Role, ...] = ()
        for item in transcript.items:
            if isinstance(item, str):
                pieces.append(item)
            elif item.begins:
                roles = (*roles, item.role)
                pieces.append(self._around(roles)[0])
            else:
                pieces.append(self._around(roles)[1])
        return "".join(pieces)

    def _find_around(self, roles: tuple[Role, ...]) -> tuple[str, str]:
        """What the template writes before and after the last of these turns."""
        before = [{"role": role, "content": _CONTENT} for role in roles[:-1]]
        whole = self._apply([*before, {"role": roles[-1], "content": _CONTENT}])
        start = self._apply(before) if before else ""
        pieces = whole.split(_CONTENT)
        if len(pieces) != len(roles) + 1 or not whole.startswith(start):
            raise ValueError(
                f"the chat template renders {' -> '.join(roles)} in a way that turns cannot be added to one by one; "
                "write the turns as text instead of roles"
            )
        return whole[len(start) : len(whole) - len(_CONTENT) - len(pieces[-1])], pieces[-1]

    def _apply(self, messages: list[dict[str, str]]) -> str:
        if getattr(self._tokenizer, "chat_template", None) is None:
            raise ValueError("the tokenizer has no chat template; write turns as text instead of system/user/assistant")
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))


def plain(transcript: Transcript) -> str:
    """A readable rendering without any template, for tests and error messages."""
    return "".join(
        item if isinstance(item, str) else (f"<{item.role}>" if item.begins else f"</{item.role}>")
        for item in transcript.items
        if isinstance(item, str | Mark)
    )
