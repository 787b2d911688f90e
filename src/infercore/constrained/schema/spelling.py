"""What the bytes written so far spell: the key, or the array item, that has just ended."""

import json
from fractions import Fraction
from typing import Any


def last_string(text: bytes) -> str:
    """The JSON string whose closing quote `text` ends in; its opening quote may be missing."""
    begin = len(text) - 1
    while begin > 0:
        begin -= 1
        if text[begin] == 0x22:
            escapes = 0
            while begin - escapes > 0 and text[begin - escapes - 1] == 0x5C:
                escapes += 1
            if escapes % 2 == 0:
                break
    else:
        begin = -1
    return str(json.loads(b'"' + text[begin + 1 : -1] + b'"'))


def last_item(text: bytes) -> Any:
    """The last item, whole, of the innermost array that is open at the end of `text`."""
    starts = [0]  # for each open container: where its latest item or value begins
    at = 0
    while at < len(text):
        byte = text[at]
        if byte == 0x22:
            at += 1
            while text[at] != 0x22:
                at += 2 if text[at] == 0x5C else 1
        elif byte in b"[{":
            starts.append(at + 1)
        elif byte in b"]}":
            starts.pop()
        elif byte in b",:":
            starts[-1] = at + 1
        at += 1
    return json.loads(text[starts[-1] :], parse_float=_Decimal)


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
