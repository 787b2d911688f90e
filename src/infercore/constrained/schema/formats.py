"""The formats that are enforced, as patterns over whole texts. Others are annotations, as the standard has them."""

_YEAR_DAYS = (
    r"(\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
    r"|(\d\d(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
)
_OFFSET = r"([zZ]|[+-]([01]\d|2[0-3]):[0-5]\d)"
_TIME = rf"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?{_OFFSET}|23:59:60(\.\d+)?([zZ]|[+-]00:00)"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(\.{_LABEL})*"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}"
_H16 = r"[0-9A-Fa-f]{1,4}"
_LS32 = rf"({_H16}:{_H16}|{_IPV4})"
_IPV6 = "|".join(
    [rf"({_H16}:){{6}}{_LS32}"]
    + [
        rf"(({_H16}:){{0,{max(i - 1, 0)}}}{_H16})?::({_H16}:){{{5 - i}}}{_LS32}" if i else rf"::({_H16}:){{5}}{_LS32}"
        for i in range(6)
    ]
    + [rf"(({_H16}:){{0,5}}{_H16})?::{_H16}", rf"(({_H16}:){{0,6}}{_H16})?::"]
)
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_QUOTED = r'"([ !#-\[\]-~]|\\[ -~])*"'
_EMAIL = rf"({_ATOM}(\.{_ATOM})*|{_QUOTED})@({_HOST}|\[{_IPV4}\]|\[IPv6:({_IPV6})\])"
_PCT = r"%[0-9A-Fa-f]{2}"


def _uri(unreserved: str, *, reference: bool) -> str:
    pchar = rf"([{unreserved}!$&'()*+,;=:@]|{_PCT})"
    host = rf"(\[(({_IPV6})|v[0-9A-Fa-f]+\.[{unreserved}!$&'()*+,;=:]+)\]|([{unreserved}!$&'()*+,;=]|{_PCT})*)"
    authority = rf"(([{unreserved}!$&'()*+,;=:]|{_PCT})*@)?{host}(:\d*)?"
    tail = rf"(\?({pchar}|[/?])*)?(#({pchar}|[/?])*)?"
    path = rf"(//{authority}(/{pchar}*)*|/({pchar}+(/{pchar}*)*)?|{pchar}+(/{pchar}*)*|)"
    absolute = rf"[A-Za-z][A-Za-z0-9+.-]*:{path}{tail}"
    if not reference:
        return absolute
    no_colon = rf"([{unreserved}!$&'()*+,;=@]|{_PCT})+"
    relative = rf"(//{authority}(/{pchar}*)*|/({pchar}+(/{pchar}*)*)?|{no_colon}(/{pchar}*)*|){tail}"
    return rf"({absolute}|{relative})"


_UNRESERVED = r"A-Za-z0-9._~\-"
_UCS = _UNRESERVED + r"\u00A0-\uD7FF\uF900-\uFDCF\uFDF0-\uFFEF\U00010000-\U000EFFFD"

FORMATS: dict[str, str] = {
    "date": _YEAR_DAYS,
    "time": _TIME,
    "date-time": rf"{_YEAR_DAYS}[tT]({_TIME})",
    "duration": (
        r"P(\d+W|\d+Y(\d+M(\d+D)?)?(T(\d+H(\d+M(\d+S)?)?|\d+M(\d+S)?|\d+S))?|\d+M(\d+D)?(T(\d+H(\d+M(\d+S)?)?"
        r"|\d+M(\d+S)?|\d+S))?|\d+D(T(\d+H(\d+M(\d+S)?)?|\d+M(\d+S)?|\d+S))?|T(\d+H(\d+M(\d+S)?)?|\d+M(\d+S)?|\d+S))"
    ),
    "email": _EMAIL,
    "hostname": rf"(?=.{{1,253}}$){_HOST}",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uri": _uri(_UNRESERVED, reference=False),
    "uri-reference": _uri(_UNRESERVED, reference=True),
    "iri": _uri(_UCS, reference=False),
    "iri-reference": _uri(_UCS, reference=True),
    "uuid": r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}",
    "json-pointer": r"(/([^/~]|~[01])*)*",
    "relative-json-pointer": r"(0|[1-9]\d*)(#|(/([^/~]|~[01])*)*)",
}
FORMATS["hostname"] = _HOST  # a name of more than 253 characters is not told apart
