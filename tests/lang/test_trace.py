"""Tracing: what becomes a constant, an argument, a switch, and what cannot be traced; the printed form and its hash."""

import subprocess
import sys
from dataclasses import dataclass

import pytest
from fake import FakeBackend

from infercore.errors import TraceError
from infercore.lang import assistant, function, gen, select, user
from infercore.lang.ir import Insert, Switch, Text


@function
def greet(s, name, polite):
    s += "Hello " + name
    if polite:
        s += f", dear {name}!"
    s += select("mood", ["good", "bad"], method="greedy")
    s["line"] = f"{name}: {s['mood']}"
    return s["mood"], name


def test_a_program_prints_as_what_it_does():
    expected = """program greet(name)
  s0 += 'Hello '
  s0 += $name
  s0 += ', dear '
  s0 += $name
  s0 += '!'
  s0 += %0: str = select('mood', ['good', 'bad'], greedy)
  name mood = %0
  name line = $name ++ ': ' ++ %0
  return (%0, $name)"""
    assert str(greet.trace(name="Ann", polite=True)) == expected
    assert greet.trace(name="Ann", polite=True) == greet.trace(name="Bob", polite=True)
    assert greet.trace(name="Ann", polite=True) != greet.trace(name="Ann", polite=False)


def test_the_hash_is_the_same_in_another_process():
    program = "from test_trace import greet; print(greet.trace(name='x', polite=True).digest)"
    here = greet.trace(name="y", polite=True).digest
    folder = __file__.rsplit("/", 1)[0]
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        assert run.stdout.strip() == here, run.stderr


def test_arguments_that_the_function_looks_into_become_part_of_the_program():
    @function
    def shout(s, word, other):
        s += word.upper() + other
        for letter in word:
            s += letter

    program = shout.trace(word="ab", other="c")
    assert program.parameters == ("other",)
    assert [op.text for op in program.body.ops if isinstance(op, Text)] == ["AB", "a", "b"]
    assert [op.source.name for op in program.body.ops if isinstance(op, Insert)] == ["other"]


def test_a_branch_on_a_select_becomes_a_switch():
    @function
    def route(s, question):
        s += question
        s += select("kind", ["math", "other"])
        if s["kind"] == "math":
            s += gen("number", dtype=int)
        else:
            s += select("tone", ["kind", "stern"])
            s += {"kind": ":)", "stern": ":("}[s["tone"]]

    program = route.trace(question="?")
    assert program.num_paths == 3
    assert isinstance(program.body.end, Switch)
    assert [choice for choice, _ in program.body.end.cases] == ["math", "other"]
    assert "case 'stern':" in str(program)
    dot = program.to_dot()
    assert dot.startswith('digraph "route" {')
    assert dot.count("switch") == 2
    assert "[style=dashed]" in dot


def test_more_than_sixteen_paths_are_refused():
    @function
    def many(s, n):
        for i in range(n):
            s += select(f"x{i}", ["a", "b"])
            if s[f"x{i}"] == "a":
                s += "!"

    assert many.trace(n=4).num_paths == 16
    with pytest.raises(TraceError, match=r"test_trace\.py:\d+: .* more than 16 paths"):
        many.trace(n=5)


LOOKS = {
    "bool": lambda v: bool(v),
    "len": lambda v: len(v),
    "method": lambda v: v.strip(),
    "index": lambda v: v[0],
    "compare": lambda v: v == "x",
    "int": lambda v: int(v),
    "str": lambda v: str(v),
    "width": lambda v: f"{v:>8}",
    "iterate": lambda v: list(v),
    "key": lambda v: {v: 1},
    "arithmetic": lambda v: v * 2,
    "type": lambda v: isinstance(v, str),
    "length of a sum": lambda v: len("a" + v + "b"),
    "comparison of a sum": lambda v: v + "b" == "ab",
    "number added": lambda v: v + 1,
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
def test_looking_at_a_generated_value_is_an_error_that_names_the_line(look):
    @function
    def looks(s):
        s += gen("x")
        look(s["x"])

    generated = looks.body.__code__.co_firstlineno + 2
    with pytest.raises(TraceError, match=rf"generated at .*test_trace\.py:{generated} "):
        looks.trace()


CHANGED = {
    "upper": lambda s: f"{s['x']}".upper(),
    "cut": lambda s: f"{s['x']} and so on"[:4],
    "gen": lambda s: gen("y", regex=f"{s['x']}!"),
    "select": lambda s: select("y", [f"{s['x']}1", "2"]),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED.keys())
def test_a_formatted_string_that_is_changed_or_used_as_an_option_is_not_traced(change):
    @function
    def changes(s):
        s += gen("x")
        s += change(s)

    with pytest.raises(TraceError, match=r"test_trace\.py:\d+: .* mode=\"eager\""):
        changes.trace()
    assert changes.run(FakeBackend()) == changes.run(FakeBackend(), mode="eager")


@dataclass
class Answer:
    text: object


OPAQUE = {
    "join": lambda s: " ".join(["a", s["x"]]),
    "object": lambda s: Answer(s["x"]),
    "set of tuples": lambda s: {(1, 2)} if s["x"] else None,
}


@pytest.mark.parametrize("use", OPAQUE.values(), ids=OPAQUE.keys())
def test_what_others_would_do_to_a_stand_in_runs_op_by_op(use):
    @function
    def opaque(s):
        s += gen("x")
        return use(s)

    with pytest.raises((TraceError, TypeError)):
        opaque.run(FakeBackend(), mode="traced")
    run = opaque.run(FakeBackend())
    assert run == opaque.run(FakeBackend(), mode="eager")
    assert "Symbol" not in repr(run)


def test_arguments_may_be_looked_into_in_any_way():
    @function
    def looks(s, topic):
        title = f"{topic}!"
        if len(title) > 5:
            s += "long "
        s += title.upper() + gen_or_not(title)
        s += gen("x")

    def gen_or_not(title):
        return "sea" if title == "sea!" else "no sea"

    for topic in ("sea", "mountains"):
        run = looks.run(FakeBackend(), topic=topic, mode="traced")
        assert run == looks.run(FakeBackend(), topic=topic, mode="eager")
        assert looks.trace(topic=topic).parameters == ()
    assert looks.trace(topic="sea") != looks.trace(topic="air")


def test_a_constraint_made_of_an_argument_or_an_outcome_is_part_of_the_program():
    @function
    def constrained(s, unit):
        s += select("digits", ["1", "2"])
        s += gen("x", regex=f"[0-9]{{{s['digits']}}} {unit}")

    program = constrained.trace(unit="km")
    assert program.parameters == ()
    assert [case.ops[0].options.regex for _, case in program.body.end.cases] == ["[0-9]{1} km", "[0-9]{2} km"]


@pytest.mark.parametrize("thing", [b"\x89PNG", {"type": "image_url"}, object()], ids=["bytes", "part", "object"])
def test_images_are_refused_in_words(thing):
    @function
    def look(s):
        s += user("What is on this picture?", thing)

    with pytest.raises(TypeError, match=r"cannot append a \w+; .* images are out of scope"):
        look.trace()
    with pytest.raises(TypeError, match="images are out of scope"):
        look.run(FakeBackend(), mode="eager")


def test_a_function_that_is_not_the_same_twice_is_refused():
    calls = []

    @function
    def fickle(s):
        calls.append(1)
        s += f"call {len(calls)} "
        s += select("x", ["a", "b"])
        if s["x"] == "a":
            s += "!"

    with pytest.raises(TraceError, match="did something else"):
        fickle.trace()


def test_what_cannot_be_appended_or_asked_for_says_what_can():
    @function
    def bad(s, what):
        if what == "none":
            s += None
        elif what == "name":
            s += s["nobody"]
        elif what == "fork":
            s.fork(0)
        elif what == "model":
            s += gen("person", schema={"type": "object"})
            s += s["person"]

    for what, error, message in (
        ("none", TypeError, "cannot append a NoneType"),
        ("name", KeyError, "known are"),
        ("fork", ValueError, "at least 1"),
        ("model", TypeError, "write f"),
    ):
        with pytest.raises(error, match=message):
            bad.trace(what=what)
    with pytest.raises(TypeError, match="it takes"):
        bad.trace(wrong=1)
    with pytest.raises(TypeError, match="expected a state first"):
        function(lambda: None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gen(regex="a", choices=["b"]), "regex and choices; pass one"),
        (lambda: gen(max_tokens=0), "at least 1"),
        (lambda: gen(stop=["a", ""]), "empty string"),
        (lambda: select("x", []), "at least one string"),
        (lambda: select("x", "abc"), "expected a list"),
        (lambda: select("x", ["a", "a"]), "each choice once"),
    ],
)
def test_nodes_refuse_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_dtype_gives_values_of_its_type():
    pydantic = pytest.importorskip("pydantic")

    class Person(pydantic.BaseModel):
        name: str
        age: int

    assert gen(dtype=int).parse("-12") == -12
    assert gen(dtype=float).parse("1.5") == 1.5
    assert gen(dtype=bool).parse("false") is False
    assert gen(dtype=Person).parse('{"name": "Ann", "age": 3}') == Person(name="Ann", age=3)
    assert gen(schema={"type": "array"}).parse("[1]") == [1]
    assert gen(schema=Person) == gen(dtype=Person)
    with pytest.raises(TypeError, match="no dtype or schema"):
        gen(dtype=complex)


def test_turns_nest_text_and_generations():
    @function
    def chat(s):
        s += user("1 + 1 = ", 2, "?")
        s += assistant("Yes, ", gen("why"), ".")

    assert [line.strip() for line in str(chat.trace()).splitlines()[1:-1]] == [
        "s0 begin user",
        "s0 += '1 + 1 = '",
        "s0 += '2'",
        "s0 += '?'",
        "s0 end user",
        "s0 begin assistant",
        "s0 += 'Yes, '",
        "s0 += %0: str = gen('why')",
        "s0 += '.'",
        "s0 end assistant",
        "name why = %0",
    ]
