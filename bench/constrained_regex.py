"""Forty practical regexes: which engine says what `re.fullmatch` says, and how long do its masks take?

    python -m bench.constrained_regex --tiktoken tokenizer.model --save

Each pattern is tried on texts it matches and on texts it does not, whole, as canonical tokens. TTFM: compile and first
mask; mask: each later mask, the token's acceptance included. CPU time, one process, each pattern compiled afresh; each
engine runs a few other patterns before, so that its code is loaded and its vocabulary tables are there. An engine that
has used up `--slow-seconds` gets no more patterns; those count as not right.
"""

import argparse
import datetime
import gc
import os
import re
import subprocess
import time
from pathlib import Path

import numpy as np
from bench.constrained_suite import verdict
from bench.grammar_engines import ENGINES, load_smollm2, load_tiktoken

WORDS = "The quick brown fox jumps over the lazy dog, again and again."
REGEXES: list[tuple[str, list[str], list[str]]] = [
    (r"[a-z]+", ["word", "a"], ["", "Word", "two words"]),
    (r"[A-Z][a-z]*( [A-Z][a-z]*)*", ["Ada Lovelace", "X"], ["ada", "Ada  L"]),
    (r"\d+", ["0", "1234567890"], ["", "12a", "-1"]),
    (r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", ["0", "-12.5e+3", "7E2"], ["01", "1.", ".5"]),
    (r"\d{4}-\d{2}-\d{2}", ["2024-02-29"], ["2024-2-29", "2024-02-291"]),
    (r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\dZ", ["2024-12-31T23:59:59Z"],
     ["2024-13-31T23:59:59Z", "2024-12-31T24:00:00Z"]),
    (r"[^@\s]+@[^@\s]+\.[^@\s]+", ["a.b@c.de", "jörg@bücher.example"], ["a@b", "a b@c.de"]),
    (r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}", ["john.doe+x@mail.example.com"], ["john@mail", "@a.bc"]),
    (r"https?://[^\s/$.?#].[^\s]*", ["https://example.com/a?b=c#d"], ["ftp://example.com", "https:// a"]),
    (r"((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)", ["192.168.0.1", "255.255.255.255"],
     ["256.1.1.1", "1.2.3"]),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", ["123e4567-e89b-12d3-a456-426614174000"],
     ["123e4567-e89b-12d3-a456-42661417400", "123E4567-e89b-12d3-a456-426614174000"]),
    (r"#[0-9a-fA-F]{6}|#[0-9a-fA-F]{3}", ["#1aF", "#00ff7F"], ["#12", "123456"]),
    (r"(yes|no|maybe)", ["yes", "maybe"], ["y", "yesno"]),
    (r"(?i)(true|false)", ["TRUE", "False"], ["truth"]),
    (r"\+?\d{1,3}[ -]?\(?\d{2,4}\)?[ -]?\d{3,4}[ -]?\d{3,4}", ["+1 (555) 123 4567", "49-30-1234-5678"],
     ["12", "+1 555 x"]),
    (r"\$\d{1,3}(,\d{3})*(\.\d{2})?", ["$1,234,567.89", "$7"], ["$1234", "1,234"]),
    (r"v?\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?", ["1.2.3", "v10.0.1-rc.1+build.5"], ["1.2", "1.2.3-"]),
    (r"/([\w.-]+/)*[\w.-]*", ["/usr/local/bin/python3.11", "/"], ["usr/bin", "/a b"]),
    (r"<([a-z]+)>[^<]*</[a-z]+>", ["<b>bold text</b>"], ["<b>bold", "<B>x</B>"]),
    (r"\{\"name\": \"[^\"]*\", \"age\": \d{1,3}\}", ['{"name": "Bob Ross", "age": 52}'],
     ['{"name": "Bob", "age": 5200}']),
    (r".*", ["", WORDS, "日本語のテキスト"], ["a\nb"]),
    (r"(?s).*", [WORDS, "a\nb"], []),
    (r".{0,100}", ["", WORDS], ["x" * 101]),
    (r".{10,60}", [WORDS[:50], "日本語" * 10], ["short", "x" * 61]),
    (r"(?:\S+\s+){0,20}\S+", [WORDS], ["two words ", ""]),
    (r"[^.!?]+[.!?]", [WORDS], ["no end", "two. dots."]),
    (r"([^.!?]+[.!?] ?){1,3}", ["One. Two! Three?"], ["One. Two! Three? Four.", "One"]),
    (r"\p{Lu}\p{Ll}+( \p{Lu}\p{Ll}+)*", ["Ångström Équipe", "Иван Петров"], ["ångström", "X"]),
    (r"[\p{L}\p{N}_-]{1,32}", ["naïve_日本-7", "x"], ["a b", "x" * 33]),
    (r"(- [^\n]+\n){1,10}", ["- one\n- two and more\n"], ["- one", "one\n"]),
    (r"```python\n(?s:.*?)\n```", ["```python\nprint(1)\n```"], ["```\nprint(1)\n```", "```python\nx"]),
    (r"[01]{8}", ["01010101"], ["0101010", "01010102"]),
    (r"(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)", ["0xDEADbeef", "0b1011", "42"], ["0x", "0b12"]),
    (r"([A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2})", ["SW1A 1AA", "M1 1AE"], ["SW1A1AA", "sw1a 1aa"]),
    (r"(\d{4}[ -]?){3}\d{4}", ["4111 1111 1111 1111", "4111111111111111"], ["4111 1111 1111", "x"]),
    (r"(GET|POST|PUT|DELETE) /\S* HTTP/1\.[01]", ["GET /index.html?x=1 HTTP/1.1"],
     ["PATCH / HTTP/1.1", "GET  HTTP/1.1"]),
    (r"SELECT [\w*]+(, \w+)* FROM \w+( WHERE \w+ = ('[^']*'|\d+))?;", ["SELECT a, b FROM t WHERE c = 'x y';"],
     ["SELECT FROM t;", "SELECT a FROM t"]),
    (r"(a|a?)+b", ["aaaaab", "b"], ["aaaa", ""]),
    (r".*a.{30}", ["x" * 20 + "a" + "b" * 30], ["a" + "b" * 29]),
    (r"(foo|bar|baz){1,50}", ["foobarbaz" * 5], ["foobarba", ""]),
]  # fmt: skip
WARM_UP = [
    ("[a-c]{1,3}[^x]+|\\d", "abc def"),
    (r"(foo ?){2,60}|[b-k]{3,9}!", "foo foofoo"),
    (r"[b-k]{3,9}[!#]", "beech!"),
    (r"(a|b|xyz)*[^c]{2,90}", "abxyz 12"),
]


def main() -> None:
    """Print the table, and save it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiktoken", type=Path, help="Llama-3 tokenizer.model (PyPI: llama-models); else SmolLM2's")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--slow-seconds", type=float, default=60.0, help="time in all for engines that compile slowly")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    token_bytes, eos, encode = load_tiktoken(arguments.tiktoken) if arguments.tiktoken else load_smollm2()
    assert len(REGEXES) == 40
    for pattern, yes, no in REGEXES:
        plain = (
            pattern.replace(r"\p{Lu}", "[A-ZÅÉИП]")
            .replace(r"\p{Ll}", "[^\\W\\dA-ZÅÉИП_]")
            .replace(r"\p{L}\p{N}", r"\w")
        )
        for text in [*yes, *no]:
            assert bool(re.fullmatch(plain, text)) == (text in yes), (pattern, text)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    lines = [
        f"{len(REGEXES)} regexes, vocabulary of {len(token_bytes)} tokens | {datetime.date.today()} | commit "
        f"{commit.strip()} | load {os.getloadavg()[0]:.1f} | CPU time, one core",
        "",
        "| engine | right | TTFM ms p50 / worst | mask µs mean / p50 / p99 | not right |",
        "| --- | --- | --- | --- | --- |",
    ]
    clock = time.process_time_ns
    for name in arguments.engines.split(","):
        try:
            engine = ENGINES[name](token_bytes, eos, encode)
        except ImportError as error:
            lines.append(f"| {name} | not installed ({error}) | | | |")
            continue
        for pattern, text in WARM_UP:
            session = engine.compile_regex(pattern)
            for token_id in encode(text):
                session.fill()
                session.accept(token_id)
        gc.collect()
        first_ms, mask_us, wrong = [], [], []
        started = time.perf_counter()
        for pattern, yes, no in REGEXES:
            if engine.slow and time.perf_counter() - started > arguments.slow_seconds:
                wrong.append(pattern)
                continue
            begin = clock()
            try:
                session = engine.compile_regex(pattern)
                session.fill()
                first_ms.append((clock() - begin) / 1e6)
                for text in yes:
                    session.restart()
                    for token_id in encode(text):
                        begin = clock()
                        session.fill()
                        session.accept(token_id)
                        mask_us.append((clock() - begin) / 1e3)
                good = all(verdict(session, encode(t)) for t in yes) and not any(
                    verdict(session, encode(t)) for t in no
                )
            except Exception:
                good = False
            if not good:
                wrong.append(pattern)
        spread = " / ".join(f"{value:.3g}" for value in (np.mean(mask_us), *np.percentile(mask_us, (50, 99))))
        lines.append(
            f"| {name} {engine.version} | {len(REGEXES) - len(wrong)} | {np.median(first_ms):.3g} / {max(first_ms):.3g}"
            f" | {spread} | {', '.join('`' + w.replace('|', chr(92) + '|') + '`' for w in wrong[:6])}"
            f"{', ..' if len(wrong) > 6 else ''} |"
        )
    print("\n".join(lines))
    if arguments.save:
        (Path(__file__).parent / "results" / "constrained-regex.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
