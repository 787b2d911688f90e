"""`Separators`: what stands between the tokens of JSON."""

from dataclasses import dataclass
from typing import Literal

Whitespace = Literal["compact", "spaced", "flexible"]


@dataclass(frozen=True, slots=True)
class Separators:
    """Text after a comma and after a colon, and how much white space may be added anywhere.

    Attributes:
        comma: b"," and what follows it.
        colon: b":" and what follows it.
        flexible: up to this many white-space characters before and after every mark; 0: none but those above.
    """

    comma: bytes
    colon: bytes
    flexible: int = 0

    @classmethod
    def of(cls, whitespace: Whitespace) -> "Separators":
        """compact: none. spaced: one after comma and colon, as `json.dumps` writes. flexible: up to 40 anywhere."""
        table = {
            "compact": cls(b",", b":"),
            "spaced": cls(b", ", b": "),
            "flexible": cls(b",", b":", flexible=40),
        }
        if whitespace not in table:
            raise ValueError(f"whitespace is {whitespace!r}, expected one of {', '.join(table)}")
        return table[whitespace]
