"""What the bytes written so far spell: the key, or the array item, that has just ended."""

import json
from fractions import Fraction
from typing import Any


def last_string(text: bytes) -> str:
    """The JSON string whose closing quote `text` ends in; its opening quote may be missing."""
    begin = _opening_quote(text, len(text) - 1)
    return str(json.loads(b'"' + text[begin + 1 : -1] + b'"'))


def last_item(text: bytes) -> Any:
    """The last item, whole, of the innermost array that is open at the end of `text`; the array may begin before it."""
    at = len(text)
    depth = 0
    while at > 0:
        at -= 1
        byte = text[at]
        if byte == 0x22:
            at = _opening_quote(text, at)
        elif byte in b"]}":
            depth += 1
        elif byte in b"[{" and depth > 0:
            depth -= 1
        elif byte in b"[," and depth == 0:
            at += 1
            break
    return json.loads(text[max(at, 0) :], parse_float=_Decimal)


def _opening_quote(text: bytes, closing: int) -> int:
    """Where the JSON string begins whose closing quote is at `closing`; -1: before `text`."""
    begin = closing
    while begin > 0:
        begin -= 1
        if text[begin] == 0x22:
            escapes = 0
            while begin - escapes > 0 and text[begin - escapes - 1] == 0x5C:
                escapes += 1
            if escapes % 2 == 0:
                return begin
    return -1


class _Decimal(str):
    """The digits of a number with a fraction or exponent."""


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values: keys sorted, numbers by value."""
    if isinstance(value, _Decimal):
        number = Fraction(value)
        return str(number.numerator) if number.denominator == 1 else json.dumps(float(value))
    if isinstance(value, list):
        return "[" + ",".join(canonical(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(json.dumps(key) + ":" + canonical(value[key]) for key in sorted(value)) + "}"
    return json.dumps(value)
